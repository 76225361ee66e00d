"""The HTTP actor: serves connections from a listening socket that outlives the actor."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
from aiohttp import HttpVersion11, web

from bcs.config.settings import Settings
from bcs.errors import BcsError, os_reason
from bcs.http.acceptor import Acceptor
from bcs.http.bodies import Bodies
from bcs.http.callers import Callers
from bcs.http.connection import Connection
from bcs.http.deadlines import task_deadlines
from bcs.http.descriptors import most_connections
from bcs.http.guard import Handler, RequestGuard, not_found, unexpected
from bcs.http.openapi import OPENAPI
from bcs.http.parameters import BATCHES
from bcs.http.routes.actors import ActorHandlers
from bcs.http.routes.batches import BatchHandlers
from bcs.http.routes.description import describe
from bcs.http.routes.health import HealthHandlers
from bcs.http.routes.pipelines import PipelineHandlers
from bcs.observability.failpoints import FailPoint, hit
from bcs.observability.telemetry import Telemetry
from bcs.supervision import ActorContext

# aiohttp logs a traceback for bytes that are not HTTP, so a port scan would flood the log. RequestGuard catches and
# logs the errors of handlers.
_PROTOCOL_LOG = logging.getLogger("bcs.http.protocol")
_PROTOCOL_LOG.setLevel(logging.CRITICAL)
# At a stop, each open connection may send one more request for this long: a slow caller may be about to send one.
_LAST_REQUESTS_SECONDS = 1.0
_POLL_SECONDS = 0.01
# A TCP handshake that has begun is complete after this time.
_HANDSHAKE_SECONDS = 0.05


def open_listener(settings: Settings) -> socket.socket:
    """Open the listening socket.

    The process owns the socket, so connections wait in its backlog while the HTTP actor restarts.

    :raises AddressUnavailable: the service can't listen at the address.
    """
    host, port = settings.http_host, settings.http_port
    version_6 = ":" in host
    try:
        listener = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if version_6 else socket.AF_INET,
            backlog=settings.http_backlog_connections,
            # "::" must mean every address, including IPv4, as "0.0.0.0" means every IPv4 address.
            dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        raise AddressUnavailable(host, port, os_reason(error)) from error
    listener.setblocking(False)
    return listener


class AddressUnavailable(BcsError):
    """The service can't listen at the configured address.

    :param problem: the reason from the operating system.
    """

    def __init__(self, host: str, port: int, problem: str) -> None:
        super().__init__(f"can't listen on BCS_HTTP_HOST {host}, BCS_HTTP_PORT {port}: {problem}")
        self.host = host
        self.port = port
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpServer:
    """The HTTP front end. One instance serves all incarnations of the actor."""

    settings: Settings
    telemetry: Telemetry
    listener: socket.socket
    pipelines: PipelineHandlers
    batches: BatchHandlers
    health: HealthHandlers
    actors: ActorHandlers

    async def run(self, context: ActorContext[Any]) -> None:
        """Serve until the actor must stop, then answer all requests on accepted connections."""
        await hit(FailPoint.STARTING, context.name)
        settings, callers = self.settings, Callers(self.settings, self.telemetry, most=most_connections(self.settings))
        bodies = Bodies(callers.bodies, callers.held, settings.http_max_body_bytes)
        deadlines = task_deadlines(callers.clock, settings.request_deadline_seconds)
        async with anyio.create_task_group() as group:
            group.start_soon(callers.clock.run)
            try:
                await self._serve(
                    context, RequestGuard(settings, self.telemetry, bodies, deadlines, callers.crowded), callers
                )
            finally:
                callers.end_sendings()
            group.cancel_scope.cancel()

    async def _serve(self, context: ActorContext[Any], guard: RequestGuard, callers: Callers) -> None:
        exact: dict[tuple[str, str], Handler] = {}
        runner = web.AppRunner(
            self._application(guard, exact),
            handle_signals=False,
            # By default aiohttp waits for a minute, twice as long as Kubernetes. The requests are done before that.
            shutdown_timeout=self.settings.http_kill_grace_seconds,
        )
        await runner.setup()
        server = runner.server
        assert server is not None  # noqa: S101 (it was set up)
        loop = asyncio.get_running_loop()

        def connection(crowded: bool) -> Connection:
            return Connection(
                server,
                exact=exact,
                settings=self.settings,
                callers=callers,
                crowded=crowded,
                loop=loop,
                logger=_PROTOCOL_LOG,
                access_log=None,
            )

        acceptor = Acceptor(self.listener, connection, callers)
        stopped = False
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(acceptor.run)
                context.ready()
                await context.wait_stopping()
                guard.close_after_response()
                # /readyz already answers 503. The load balancer needs this time to notice.
                await anyio.sleep(self.settings.shutdown_drain_seconds)
                acceptor.reject_new_connections()
                await anyio.sleep(_HANDSHAKE_SECONDS)
                group.cancel_scope.cancel()
            await acceptor.accept_remaining_and_close()
            with anyio.move_on_after(_LAST_REQUESTS_SECONDS):
                while server.connections:  # noqa: ASYNC110 (aiohttp has no event for it)
                    await anyio.sleep(_POLL_SECONDS)
            await guard.idle()
            stopped = True
        finally:
            # The sum of all waits in the block; aiohttp alone waits for its timeout twice. A shorter time would leave
            # connections half closed.
            acceptor.close()
            linger_seconds = self.settings.http_linger_seconds
            grace_seconds = self.settings.http_kill_grace_seconds
            with anyio.move_on_after(linger_seconds + grace_seconds * 4, shield=True):
                guard.close_after_response()
                if not stopped:
                    # A caller that has just connected is about to send a request.
                    await anyio.sleep(linger_seconds)
                    with anyio.move_on_after(grace_seconds):
                        await guard.idle()
                await runner.cleanup()

    def _application(self, guard: RequestGuard, exact: dict[tuple[str, str], Handler]) -> web.Application:
        """Make the application.

        :param exact: gets the handlers of all paths without parameters, by method and path.
        """
        application = web.Application()
        router = application.router

        def add(method: str, path: str, handler: Handler, *, reads_body: bool = False) -> None:
            resource = router.add_resource(path)
            guarded = guard.wrap(handler, resource.canonical, reads_body=reads_body)
            expect = _expecting(guard.wrap(unexpected, resource.canonical))
            for accepted in (method, "HEAD") if method == "GET" else (method,):
                resource.add_route(accepted, guarded, expect_handler=expect)
            if isinstance(resource, web.PlainResource):
                exact[method, path] = guarded

        add("POST", "/internal/v1/pipelines/define", self.pipelines.define, reads_body=True)
        add("POST", "/internal/v1/phases/complete", self.pipelines.complete, reads_body=True)
        # The pattern is needed: "{id}" alone does not match braces.
        add("GET", f"{BATCHES}/{{id:[^/]+}}", self.batches.show)
        add("GET", f"{BATCHES}/{{id:[^/]+}}/history", self.batches.history)
        add("GET", "/internal/v1/actors", self.actors.show)
        add("POST", "/internal/v1/actors/{name:(?s:.+)}/kill", self.actors.kill)
        add("GET", "/healthz", self.health.healthz)
        add("GET", "/readyz", self.health.readyz)
        add("GET", "/metrics", self.health.render)
        add("GET", OPENAPI, describe)
        expect = _expecting(guard.wrap(unexpected, None))
        router.add_route("*", "/{path:(?s:.*)}", guard.wrap(not_found, None), expect_handler=expect)
        return application


def _expecting(refuse: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse | None]]:
    """Make a handler for the `Expect` header, because aiohttp's own handler does not answer with a problem document."""

    async def expect(request: web.Request) -> web.StreamResponse | None:
        if request.version < HttpVersion11:
            return None
        if request.headers["Expect"].lower() != "100-continue":
            return await refuse(request)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # this counts the bytes of the response, which has not begun
        return None

    return expect
