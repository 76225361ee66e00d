"""The HTTP actor: serves connections from a listening socket that outlives the actor."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
from aiohttp import HttpVersion11, web

from bcs.config.settings import Settings
from bcs.domain.token_buckets import TokenBuckets
from bcs.errors import BcsError, os_reason
from bcs.http.acceptor import Accepted, Acceptor
from bcs.http.access import Access
from bcs.http.bodies import Bodies
from bcs.http.callers import Callers
from bcs.http.callers_file import KnownCallers
from bcs.http.connection import Connection
from bcs.http.deadlines import task_deadlines
from bcs.http.descriptors import most_connections
from bcs.http.guard import Handler, RequestGuard, not_found, unexpected
from bcs.http.identity import Scope
from bcs.http.live_feed import LiveFeed
from bcs.http.reloaded import Reloaded, keep_fresh
from bcs.http.routing import Route, served_by
from bcs.http.tls import ServerTls, TlsTransport
from bcs.http.tracing import traced
from bcs.observability.failpoints import FailPoint, hit
from bcs.observability.telemetry import Telemetry
from bcs.observability.tracing import Tracer
from bcs.supervision import ActorContext

# aiohttp logs a traceback for bytes that are not HTTP, so a port scan would flood the log. RequestGuard catches and
# logs the errors of handlers.
_PROTOCOL_LOG = logging.getLogger("bcs.http.protocol")
_PROTOCOL_LOG.setLevel(logging.CRITICAL)
# At a stop, each open connection may send one more request for this long: a slow caller may be about to send one.
# The scopes of BOS's own calls, on whose failures there are alerts.
_COUNTED_FROM_ZERO = frozenset({Scope.RESOLVE, Scope.REPORT})
_LAST_REQUESTS_SECONDS = 1.0
_POLL_SECONDS = 0.01
# A TCP handshake that has begun is complete after this time.
_HANDSHAKE_SECONDS = 0.05


def open_listener(settings: Settings, *, probes: bool = False) -> socket.socket:
    """Open a listening socket.

    The process owns the socket, so connections wait in its backlog while the HTTP actor restarts.

    :param probes: True for the port of the probes.
    :raises AddressUnavailable: the service can't listen at the address.
    """
    variable = "BCS_HTTP_PROBE_PORT" if probes else "BCS_HTTP_PORT"
    host, port = settings.http_host, (settings.http_probe_port or 0) if probes else settings.http_port
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
        raise AddressUnavailable(host, port, os_reason(error), variable) from error
    listener.setblocking(False)
    return listener


class AddressUnavailable(BcsError):
    """The service can't listen at the configured address.

    :param problem: the reason from the operating system.
    :param variable: the setting with the port.
    """

    def __init__(self, host: str, port: int, problem: str, variable: str = "BCS_HTTP_PORT") -> None:
        super().__init__(f"can't listen on BCS_HTTP_HOST {host}, {variable} {port}: {problem}")
        self.host = host
        self.port = port
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpServer:
    """The HTTP front end. One instance serves all incarnations of the actor.

    :param listener: for all routes, or for all but the probes.
    :param probe_listener: for the probes, without TLS; None if they have no port of their own.
    :param known: the callers; None if everybody may do everything.
    :param tls: for connections to `listener`; None without TLS.
    :param handlers: objects whose methods declare routes; see `routing.py`.
    :param feed: the snapshots for open pages `/ui`; None without the page.
    :param rates: the rate of each caller; None for no limit.
    """

    settings: Settings
    telemetry: Telemetry
    listener: socket.socket
    probe_listener: socket.socket | None
    known: Reloaded[KnownCallers] | None
    tls: Reloaded[ServerTls] | None
    handlers: Sequence[object]
    feed: LiveFeed | None
    rates: TokenBuckets | None
    tracer: Tracer

    async def run(self, context: ActorContext[Any]) -> None:
        """Serve until the actor must stop, then answer all requests on accepted connections."""
        await hit(FailPoint.STARTING, context.name)
        settings, callers = self.settings, Callers(self.settings, self.telemetry, most=most_connections(self.settings))
        bodies = Bodies(callers.bodies, callers.held, settings.http_max_body_bytes)
        deadlines = task_deadlines(callers.clock, settings.request_deadline_seconds)
        guard = RequestGuard(
            settings,
            self.telemetry,
            bodies,
            deadlines,
            rates=self.rates,
            crowded=callers.crowded,
            access=Access(self.known) if self.known else None,
        )
        async with anyio.create_task_group() as group:
            group.start_soon(callers.clock.run)
            group.start_soon(keep_fresh, [each for each in (self.known, self.tls) if each])
            if self.feed:
                group.start_soon(self.feed.run)
            try:
                await self._serve(context, guard, callers)
            finally:
                callers.end_sendings()
            group.cancel_scope.cancel()

    async def _serve(self, context: ActorContext[Any], guard: RequestGuard, callers: Callers) -> None:
        ports = [await self._open(self.listener, guard, callers, tls=self.tls, probes=self.probe_listener is None)]
        if self.probe_listener is not None:
            ports.append(await self._open(self.probe_listener, guard, callers, tls=None, probes=True, all_else=False))
        stopped = False
        try:
            async with anyio.create_task_group() as group:
                for port in ports:
                    group.start_soon(port.acceptor.run)
                context.ready()
                await context.wait_stopping()
                guard.close_after_response()
                if self.feed:
                    self.feed.end()  # the pages connect again, to another replica or to the next process
                # /readyz already answers 503. The load balancer needs this time to notice.
                await anyio.sleep(self.settings.shutdown_drain_seconds)
                guard.end_streams()
                for port in ports:
                    port.acceptor.reject_new_connections()
                await anyio.sleep(_HANDSHAKE_SECONDS)
                group.cancel_scope.cancel()
            for port in ports:
                await port.acceptor.accept_remaining_and_close()
            with anyio.move_on_after(_LAST_REQUESTS_SECONDS):
                while any(port.server.connections for port in ports):  # noqa: ASYNC110 (aiohttp has no event for it)
                    await anyio.sleep(_POLL_SECONDS)
            await guard.idle()
            stopped = True
        finally:
            # The sum of all waits in the block; aiohttp alone waits for its timeout twice. A shorter time would leave
            # connections half closed.
            for port in ports:
                port.acceptor.close()
            linger_seconds = self.settings.http_linger_seconds
            grace_seconds = self.settings.http_kill_grace_seconds
            with anyio.move_on_after(linger_seconds + grace_seconds * 4, shield=True):
                guard.close_after_response()
                guard.end_streams()
                if not stopped:
                    # A caller that has just connected is about to send a request.
                    await anyio.sleep(linger_seconds)
                    with anyio.move_on_after(grace_seconds):
                        await guard.idle()
                async with anyio.create_task_group() as group:
                    for port in ports:
                        group.start_soon(port.runner.cleanup)

    async def _open(
        self,
        listener: socket.socket,
        guard: RequestGuard,
        callers: Callers,
        *,
        tls: Reloaded[ServerTls] | None,
        probes: bool,
        all_else: bool = True,
    ) -> _Port:
        """Make what serves one port.

        :param probes: True if the port has the probes.
        :param all_else: True if the port has all other routes.
        """
        exact: dict[tuple[str, str], Handler] = {}
        runner = web.AppRunner(
            self._application(guard, exact, probes=probes, all_else=all_else),
            handle_signals=False,
            # By default aiohttp waits for a minute, twice as long as Kubernetes. The requests are done before that.
            shutdown_timeout=self.settings.http_kill_grace_seconds,
        )
        await runner.setup()
        server = runner.server
        assert server is not None  # noqa: S101 (it was set up)
        loop = asyncio.get_running_loop()

        # Without a token, a stranger must not learn which paths there are.
        unrouted = guard.wrap(not_found, None, public=not all_else)

        def connection(accepted: Accepted) -> asyncio.BaseProtocol:
            plain = Connection(
                server,
                exact=exact,
                unrouted=unrouted,
                settings=self.settings,
                callers=callers,
                network=accepted.network,
                crowded=accepted.crowded,
                loop=loop,
                logger=_PROTOCOL_LOG,
                access_log=None,
            )
            return TlsTransport(plain, tls.current.context) if tls else plain

        return _Port(runner, server, Acceptor(listener, connection, callers))

    def _application(
        self, guard: RequestGuard, exact: dict[tuple[str, str], Handler], *, probes: bool, all_else: bool
    ) -> web.Application:
        """Make the application.

        :param exact: gets the handlers of all paths without parameters, by method and path.
        """
        application = web.Application()
        router = application.router

        def add(route: Route, handler: Handler) -> None:
            resource, public = router.add_resource(route.resource), route.probe or route.public
            guarded = guard.wrap(
                handler,
                resource.canonical,
                reads_body=route.body is not None,
                scope=route.scope,
                public=public,
            )
            guarded = traced(guarded, self.tracer, route)
            expect = _expecting(guard, route.scope, resource.canonical, public=public)
            for accepted in (route.method, "HEAD") if route.method == "GET" else (route.method,):
                resource.add_route(accepted, guarded, expect_handler=expect)
            if route.scope in _COUNTED_FROM_ZERO:
                guard.count_from_zero(route.method, resource.canonical)
            if isinstance(resource, web.PlainResource):
                exact[route.method, route.path] = guarded

        for handlers in self.handlers:
            for route, handler in served_by(handlers):
                if probes if route.probe else all_else:
                    add(route, handler)
        # Without a token, a stranger must not learn which paths there are.
        expect = _expecting(guard, None, None, public=not all_else)
        router.add_route(
            "*", "/{path:(?s:.*)}", guard.wrap(not_found, None, public=not all_else), expect_handler=expect
        )
        return application


@dataclass(frozen=True, slots=True)
class _Port:
    """What serves one listening socket."""

    runner: web.AppRunner
    server: web.Server
    acceptor: Acceptor


def _expecting(
    guard: RequestGuard, scope: Scope | None, route: str | None, *, public: bool
) -> Callable[[web.Request], Awaitable[web.StreamResponse | None]]:
    """Make a handler for the `Expect` header, because aiohttp's own handler does not answer with a problem document.

    A caller that is refused is refused here, before its body is asked for.
    """
    refuse = guard.wrap(unexpected, route, scope=scope, public=public)

    async def expect(request: web.Request) -> web.StreamResponse | None:
        if request.version < HttpVersion11:
            return None
        if request.headers["Expect"].lower() != "100-continue" or not (public or guard.admits(scope, request)):
            return await refuse(request)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # this counts the bytes of the response, which has not begun
        return None

    return expect
