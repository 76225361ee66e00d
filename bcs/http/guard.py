"""The work around every request: body, limit of requests, deadline, metrics, and a well-formed response."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cache, lru_cache, partial
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import quote

import anyio
import structlog
from aiohttp import web
from aiohttp.hdrs import CONTENT_TYPE

from bcs.config.settings import Settings
from bcs.domain.token_buckets import TokenBuckets
from bcs.http.access import Access
from bcs.http.addresses import network_of
from bcs.http.bodies import Bodies, CallerLeft, Reading
from bcs.http.deadlines import Deadlines
from bcs.http.identity import Scope, identity_of
from bcs.http.lines import Lines, LinesResponse
from bcs.http.problems import (
    Problem,
    draining,
    fault,
    from_aiohttp,
    invalid_fields,
    overloaded,
    problem_of,
    too_many_requests,
)
from bcs.http.requests import DEAD_LETTER_WRITTEN, InvalidRequest
from bcs.observability.telemetry import RATE, Telemetry
from bcs.supervision import describe
from bcs.wire.events import MOST_ID_CHARACTERS

log = structlog.stdlib.get_logger("bcs.http", actor="http")

T = TypeVar("T")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Admit = Callable[[web.Request], None]

CORRELATION_ID: Final = web.RequestKey("correlation_id", str)
DEAD_LETTER: Final = web.RequestKey("dead_letter", str)
"""Set once the request is stored as a dead letter."""

BATCH_ID: Final = web.RequestKey("batch_id", str)
"""The batch of the request, for the log. Set once the batch is known."""

CALLER_LEFT: Final = 499
"""The status in the metrics if the caller left before the body was complete. Other servers use this number, too."""

CORRELATION_HEADER: Final = "X-Correlation-ID"
ANYWHERE: Final = "/{path}"
_UNMATCHED = "unmatched"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HEADER_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
# Readers of a header drop the blanks at both ends of its value.
_is_header_safe = re.compile(r"(?! )[ -$&-~]*(?<! )").fullmatch
_AGENT_CHARACTERS = 100
_JSON = "application/json"
_READING_METHODS = frozenset({"GET", "HEAD"})
_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})


class RequestGuard:
    """Answers every request in time, and counts the requests.

    A request counts against the limit of concurrent requests only after its body is complete, so slow callers do not
    use up the limit.

    :param bodies: reads the bodies.
    :param deadlines: the deadlines of requests whose bodies are complete.
    :param rates: the rate of each caller; None for no limit.
    :param crowded: the connections on which only probes are answered, each with the reason.
    :param access: admits callers; None if everybody may do everything.
    """

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        bodies: Bodies,
        deadlines: Deadlines[asyncio.Task[object]],
        *,
        rates: TokenBuckets | None,
        crowded: Mapping[Any, str],
        access: Access | None = None,
    ) -> None:
        self._settings = settings
        self._bodies = bodies
        self._deadlines = deadlines
        self._rates = rates
        self._rate_exceeded = telemetry.http_limited.labels(RATE).inc
        self._crowded = crowded
        self._access = access
        self._in_flight = 0
        self._concurrent = 0
        self._streams = 0
        self._ends_streams = False
        telemetry.http_in_flight.set_function(lambda: self._in_flight)
        self._closes_after_response = False
        self._all_answered: anyio.Event | None = None
        # A lookup by labels costs more than counting. The cache stays small, because each label has few values.
        self._series = cache(
            lambda method, route, status: (
                telemetry.http_requests.labels(method, route, str(status)),
                telemetry.http_duration.labels(method, route),
            )
        )

    def close_after_response(self) -> None:
        """Close each connection after its next response, from now on.

        The caller learns from the response that the connection closes, and sends no further request on it.
        """
        self._closes_after_response = True

    def end_streams(self) -> None:
        """End each answer that is still being sent line by line, from now on, with a line that says so."""
        self._ends_streams = True

    def count_from_zero(self, method: str, route: str) -> None:
        """Show the series of a route's answers and failures before the first one: alerts see only what increases."""
        for status in (HTTPStatus.OK, HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE):
            self._series(method, route, status.value)

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        while self._in_flight:
            self._all_answered = anyio.Event()
            await self._all_answered.wait()

    def admits(self, scope: Scope | None, request: web.Request) -> bool:
        """True if the caller of a request is known and has the scope."""
        return self._access is None or self._access.admits(scope, request)

    def wrap(
        self,
        handler: Handler,
        route: str | None,
        *,
        reads_body: bool = False,
        scope: Scope | None = None,
        public: bool = False,
    ) -> Handler:
        """Wrap a handler, so that every error becomes a response.

        This is not a middleware, because aiohttp builds the chain of middlewares again for each request, which costs a
        tenth of the request.

        :param route: the label in the metrics; None if the label depends on the request.
        :param reads_body: True if the handler needs `request[BODY]`, which must be JSON.
        :param scope: what the caller must be allowed to do; None where it is enough to be known.
        :param public: True if the caller need not be known.
        """
        admit = None if public or self._access is None else partial(self._access.admit, scope)
        return partial(self._answer, handler, route, reads_body, admit)

    async def _answer(
        self, handler: Handler, route: str | None, reads_body: bool, admit: Admit | None, request: web.Request
    ) -> web.StreamResponse:
        began = time.perf_counter()
        self._in_flight += 1
        try:
            response, problem = await self._guarded(request, handler, reads_body, admit)
        finally:
            self._not_in_flight()
        if type(response) is LinesResponse:  # responses are mappings, whose `isinstance` takes a microsecond
            self._guard_lines(request, response, route, began)
        else:
            self._count(request, route, response.status, problem, began)
        if self._closes_after_response:
            response.force_close()
        # Callers may choose any characters for the id, but a header must not contain all characters.
        correlation_id = correlation_id_of(request)
        if not _is_header_safe(correlation_id):
            correlation_id = quote(correlation_id, safe=_HEADER_SAFE)
        response.headers[CORRELATION_HEADER] = correlation_id
        return response

    def _not_in_flight(self) -> None:
        self._in_flight -= 1
        if self._all_answered and not self._in_flight:
            self._all_answered.set()

    def _guard_lines(self, request: web.Request, response: LinesResponse, route: str | None, began: float) -> None:
        """Have the further lines of a response made under the same guard.

        A request is in flight while lines are made, and not while its caller reads them. It is counted at the end.
        """
        failures: list[Problem] = []
        finished = False

        async def following() -> bytes:
            nonlocal finished
            while not (response.lines.ended or failures):
                self._in_flight += 1
                try:
                    problem, made = await self._more_lines(request, response.lines)
                finally:
                    self._not_in_flight()
                failures.extend([problem] if problem else [])
                if made:
                    return made
            finished = True
            return b""

        def count() -> None:
            self._streams -= 1
            self._bodies.release(response)
            problem = failures[0] if failures else None
            status = CALLER_LEFT if not (finished or problem) else problem.status.value if problem else response.status
            self._count(request, route, status, problem, began)

        self._streams += 1
        response.guard(following)
        response.at_end(count)

    async def _more_lines(self, request: web.Request, lines: Lines) -> tuple[Problem | None, bytes]:
        try:
            if self._ends_streams:
                raise draining()
            return None, await self._in_time(lines.more)
        except Problem as error:
            problem = error
        except Exception as error:  # noqa: BLE001 (the caller must get a last line)
            problem = problem_of(error) or self._fault(request, error)
        return problem, lines.failed(problem.document(correlation_id_of(request)))

    def _count(
        self, request: web.Request, route: str | None, status: int, problem: Problem | None, began: float
    ) -> None:
        route = route or _route_label(request)
        method = request.method if request.method in _METHODS else "other"
        seconds = time.perf_counter() - began
        requests, duration = self._series(method, route, status)
        requests.inc()
        duration.observe(seconds)
        self._log(request, method, route, status, problem, seconds)

    def _log(
        self, request: web.Request, method: str, route: str, status: int, problem: Problem | None, seconds: float
    ) -> None:
        """Log each request if the access log is on; otherwise log only refusals, summed up."""
        if self._settings.http_access_log:
            refused = {} if problem is None else {"kind": problem.kind}
            log.info("request", method=method, route=route, status=status, **refused, **_about(request, seconds))
        elif problem is None or status == HTTPStatus.INTERNAL_SERVER_ERROR:
            pass  # the fault is already in the log
        elif status == HTTPStatus.NOT_FOUND and method in _READING_METHODS and route != _UNMATCHED:
            log.debug("not_found", route=route, kind=problem.kind, **_about(request, seconds))
        else:
            log.info(
                "request_refused",
                method=method,
                route=route,
                status=status,
                kind=problem.kind,
                summed_by=("method", "route", "status", "kind"),
                **_about(request, seconds),
            )

    async def _guarded(
        self, request: web.Request, handler: Handler, reads_body: bool, admit: Admit | None
    ) -> tuple[web.StreamResponse, Problem | None]:
        reading: Reading | None = None
        try:
            if admit is not None:
                self._admit(admit, request)  # before anything is read for this caller, or told
            if self._crowded and request.protocol in self._crowded and request.path not in _PROBES:
                raise overloaded(self._crowded[request.protocol])
            if self._rates is not None and request.path not in _PROBES:
                self._use_rate(self._rates, request)
            if reads_body:
                _ensure_json(request)
                if not self._bodies.take_small(request):
                    reading = Reading(asyncio.current_task())  # type: ignore[arg-type]
                    await self._bodies.read(request, reading)
            # Probes do not count: the platform would kill an overloaded service whose probes fail.
            if self._concurrent >= self._settings.http_max_concurrent_requests and request.path not in _PROBES:
                raise overloaded("too many requests at a time")
            return self._begun(await self._in_time(partial(handler, request)), reading), None
        except Problem as error:
            problem = error
        except CallerLeft:
            log.debug("client_disconnected", correlation_id=correlation_id_of(request))
            return web.Response(status=CALLER_LEFT), None
        except InvalidRequest as error:
            problem = invalid_fields(error)
        except web.HTTPException as error:
            problem = from_aiohttp(error)
        except Exception as error:  # noqa: BLE001 (the last code before the socket: every caller must get a response)
            problem = problem_of(error) or self._fault(request, error)
        finally:
            if reading:
                self._bodies.release(reading)
        return self._refuse(request, problem), problem

    def _begun(self, response: web.StreamResponse, reading: Reading | None) -> web.StreamResponse:
        """The response of a handler.

        :raises Problem: too many responses are being sent line by line.
        """
        if type(response) is LinesResponse:
            if self._streams >= self._settings.http_max_concurrent_requests:
                raise overloaded("too many answers at a time that are sent line by line")
            if reading:
                # What the body says is needed until the last line.
                self._bodies.keep(reading, response)
        return response

    async def _in_time(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do work that has a deadline.

        :raises Problem: the work was not done in time.
        """
        task: asyncio.Task[object] = asyncio.current_task()  # type: ignore[assignment]
        self._concurrent += 1
        self._deadlines.watch(task)
        late = False
        try:
            try:
                return await work()
            finally:
                late = not self._deadlines.unwatch(task)
                self._concurrent -= 1
        except asyncio.CancelledError:
            # The deadline has not cancelled the task, or is not the only reason: the connection must end.
            if not late or task.uncancel():
                raise
            raise Problem("deadline", "no answer in time") from None

    def _admit(self, admit: Admit, request: web.Request) -> None:
        try:
            admit(request)
        except Problem:
            # Strangers have the rate of their address, and so have guesses of a token.
            if self._rates is not None:
                self._use_rate(self._rates, request)
            raise

    def _use_rate(self, rates: TokenBuckets, request: web.Request) -> None:
        wait_seconds = rates.take(caller_of(request))
        if wait_seconds:
            self._rate_exceeded()
            raise too_many_requests(wait_seconds)

    def _refuse(self, request: web.Request, problem: Problem) -> web.Response:
        response = problem.response(correlation_id_of(request), self._settings.retry_after_seconds)
        if DEAD_LETTER in request:
            response.headers[DEAD_LETTER_WRITTEN] = request[DEAD_LETTER]
        if "allowed_methods" in problem.extensions:
            response.headers["Allow"] = ", ".join(problem.extensions["allowed_methods"])
        return response

    def _fault(self, request: web.Request, error: Exception) -> Problem:
        log.error(
            "request_failed",
            correlation_id=correlation_id_of(request),
            batch_id=request.get(BATCH_ID),
            path=request.path,
            error=describe(error),
            kind=type(error).__name__,
            exc_info=error,
            summed_by=("kind",),
        )
        return fault()


def correlation_id_of(request: web.Request) -> str:
    """The correlation id of a request: from the body, or else from the header, or else a new one."""
    known = request.get(CORRELATION_ID)
    if known is None:
        known = request[CORRELATION_ID] = correlation_id_sent(request) or secrets.token_hex(16)
    return known


def correlation_id_sent(request: web.Request) -> str | None:
    """The correlation id in the header of a request; None if the header has no usable one."""
    sent = request.headers.get(CORRELATION_HEADER)
    return sent if sent and len(sent) <= MOST_ID_CHARACTERS and sent.isascii() and sent.isprintable() else None


def caller_of(request: web.Request) -> str:
    """The caller whose rate and quotas the request uses: by its name, or by its address while BCS does not know it."""
    return identity_of(request).name or network_of(request.remote or "")


def asked_by(request: web.Request) -> str:
    """The caller, as far as the request identifies the caller: the name if BCS knows it, the program, the address."""
    return _caller(identity_of(request).name, request.headers.get("User-Agent", "unknown"), request.remote)


@lru_cache
def _caller(name: str, agent: str, address: str | None) -> str:
    # aiohttp turns bytes that are not UTF-8 into lone surrogates, which no store accepts.
    program = f"{agent.encode(errors='replace').decode()[:_AGENT_CHARACTERS]} at {address}"
    return f"{name} ({program})" if name else program


def _about(request: web.Request, seconds: float) -> dict[str, object]:
    """The fields in the log that identify a request and its caller."""
    return {
        "correlation_id": correlation_id_of(request),
        "batch_id": request.get(BATCH_ID),
        "requested_by": asked_by(request),
        "seconds": round(seconds, 6),
    }


def _ensure_json(request: web.Request) -> None:
    # aiohttp takes the header apart, which is seldom necessary.
    if request.headers.get(CONTENT_TYPE) != _JSON and request.content_type != _JSON:
        raise Problem("unsupported-media-type", "the content type must be application/json")


async def not_found(request: web.Request) -> web.StreamResponse:
    """Answers a request that matches no route.

    :raises HTTPMethodNotAllowed: a route has this path, but not this method.
    :raises HTTPNotFound: no route has this path.
    """
    allowed: set[str] = set()
    for resource in _resources(request):
        _, methods = await resource.resolve(request)
        allowed |= methods
    raise web.HTTPMethodNotAllowed(request.method, allowed) if allowed else web.HTTPNotFound


async def unexpected(_: web.Request) -> web.StreamResponse:
    """Answers an `Expect` header with any value but `100-continue`.

    :raises HTTPExpectationFailed: always.
    """
    raise web.HTTPExpectationFailed


def _route_label(request: web.Request) -> str:
    # A path without a route must not become a label: callers could create any number of labels.
    ours = {resource.canonical for resource in _resources(request)}
    return request.path if request.path in ours else _UNMATCHED


def _resources(request: web.Request) -> list[web.AbstractResource]:
    return [resource for resource in request.app.router.resources() if resource.canonical != ANYWHERE]
