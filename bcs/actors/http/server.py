"""The HTTP actor: serves connections from a socket that outlives it."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from typing import Any

import anyio
from aiohttp import web

from bcs.actors.http.health import Probes
from bcs.actors.http.middleware import Guard
from bcs.actors.http.pipelines import PipelineCalls
from bcs.settings import Settings
from bcs.supervision import ActorContext
from bcs.telemetry import Telemetry

# What aiohttp itself logs is about bytes that are no HTTP, with a traceback for each: a port scan would flood the log.
# The errors of handlers are caught and logged by the guard.
_PROTOCOL_LOG = logging.getLogger("bcs.http.protocol")
_PROTOCOL_LOG.setLevel(logging.CRITICAL)
# After a kill, requests in hand get this long to end before their connections are closed.
_KILLED_GRACE_SECONDS = 1.0


def open_listener(settings: Settings) -> socket.socket:
    """The listening socket. It belongs to the process: while the HTTP actor restarts, connections wait in its backlog.

    :raises OSError: the address can't be had.
    """
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    listener = socket.create_server(
        (settings.http_host, settings.http_port), family=family, backlog=settings.http_backlog_connections
    )
    listener.setblocking(False)
    return listener


@dataclass(frozen=True, slots=True)
class HttpServer:
    """The HTTP front end. One instance serves all incarnations of the actor."""

    settings: Settings
    telemetry: Telemetry
    listener: socket.socket
    pipelines: PipelineCalls
    probes: Probes

    async def run(self, context: ActorContext[Any]) -> None:
        """Serve until asked to stop; then answer what was accepted."""
        guard = Guard(self.settings, self.telemetry)
        runner = web.AppRunner(
            self._application(guard),
            handle_signals=False,
            access_log=None,
            logger=_PROTOCOL_LOG,
            # aiohttp waits a minute by default, twice as long as Kubernetes does. By then requests are done anyway.
            shutdown_timeout=_KILLED_GRACE_SECONDS,
        )
        await runner.setup()
        stopped = False
        try:
            # A duplicate, because aiohttp closes the socket that it is given.
            listening = web.SockSite(runner, self.listener.dup(), backlog=self.settings.http_backlog_connections)
            await listening.start()
            context.ready()
            await context.wait_stopping()
            # From now on connections are refused, and no longer taken into the backlog.
            self.listener.close()
            await listening.stop()
            await guard.idle()
            stopped = True
        finally:
            with anyio.move_on_after(_KILLED_GRACE_SECONDS * 2, shield=True):
                if not stopped:
                    for site in list(runner.sites):
                        await site.stop()
                    with anyio.move_on_after(_KILLED_GRACE_SECONDS):
                        await guard.idle()
                await runner.cleanup()

    def _application(self, guard: Guard) -> web.Application:
        application = web.Application(middlewares=[guard.answer], client_max_size=self.settings.http_max_body_bytes)
        application.router.add_post("/internal/v1/pipelines/define", self.pipelines.define)
        application.router.add_post("/internal/v1/phases/complete", self.pipelines.complete)
        application.router.add_get("/healthz", self.probes.healthz)
        application.router.add_get("/readyz", self.probes.readyz)
        application.router.add_get("/metrics", self.probes.render)
        return application
