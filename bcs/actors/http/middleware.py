"""What happens around every request: a deadline, a place in the queue, metrics, and a well-formed answer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from functools import cache
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

import anyio
import structlog
from aiohttp import web

from bcs.actors.http.problems import Problem, from_aiohttp, invalid_fields, problem_of
from bcs.contracts.http import InvalidBody
from bcs.domain.errors import BcsError
from bcs.settings import Settings
from bcs.supervision import SupervisionError
from bcs.telemetry import Telemetry

log = structlog.stdlib.get_logger("bcs.http", actor="http")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CORRELATION_ID: Final = web.RequestKey("correlation_id", str)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HEADER_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})


class Guard:
    """Answers every request in time, and counts it.

    :param in_flight: how many requests are being answered.
    """

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self.in_flight = 0
        self._last_answers = False
        self._all_answered: anyio.Event | None = None
        # To look them up by their labels costs more than to count; there are few, as labels have closed sets of values.
        self._series = cache(
            lambda method, route, status: (
                telemetry.http_requests.labels(method, route, str(status)),
                telemetry.http_duration.labels(method, route),
            )
        )

    def say_goodbye(self) -> None:
        """From now on each connection is closed with its next answer: a request sent on one that is just being closed
        would find nobody.
        """
        self._last_answers = True

    async def idle(self) -> None:
        """Wait until no request is being answered."""
        while self.in_flight:
            self._all_answered = anyio.Event()
            await self._all_answered.wait()

    @web.middleware
    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The middleware: whatever happens, the caller gets an answer."""
        began = time.perf_counter()
        # The body's own id replaces this one as soon as the body is read.
        request[CORRELATION_ID] = secrets.token_hex(16)
        self.in_flight += 1
        self._telemetry.http_in_flight.set(self.in_flight)
        try:
            response = await self._guarded(request, handler)
        finally:
            self.in_flight -= 1
            self._telemetry.http_in_flight.set(self.in_flight)
            if self._all_answered and not self.in_flight:
                self._all_answered.set()
        route = _route_label(request)
        method = request.method if request.method in _METHODS else "other"
        seconds = time.perf_counter() - began
        requests, duration = self._series(method, route, response.status)
        requests.inc()
        duration.observe(seconds)
        if self._settings.http_access_log:
            log.info(
                "request",
                correlation_id=request[CORRELATION_ID],
                method=method,
                route=route,
                status=response.status,
                seconds=round(seconds, 6),
            )
        if self._last_answers:
            response.force_close()
        # Callers may choose any characters, a header may not have all of them.
        response.headers["X-Correlation-ID"] = quote(request[CORRELATION_ID], safe=_HEADER_SAFE)
        return response

    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            # Probes are let in always: an overloaded service that looks dead would be killed for it.
            if self.in_flight > self._settings.http_max_concurrent_requests and request.path not in _PROBES:
                raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", "too many requests at a time", retry=True)
            with anyio.fail_after(self._settings.request_deadline_seconds):
                return await handler(request)
        except TimeoutError:
            problem = Problem(HTTPStatus.SERVICE_UNAVAILABLE, "deadline", "no answer in time", retry=True)
        except Problem as error:
            problem = error
        except InvalidBody as error:
            problem = invalid_fields(error.problems)
        except web.HTTPException as error:
            problem = from_aiohttp(error)
        except (BcsError, SupervisionError) as error:
            problem = problem_of(error) or self._fault(request, error)
        except Exception as error:  # noqa: BLE001 (the last line before the socket: no caller may be left without one)
            problem = self._fault(request, error)
        if problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
            log.debug("request_refused", correlation_id=request[CORRELATION_ID], kind=problem.kind)
        elif problem.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            log.info("request_refused", correlation_id=request[CORRELATION_ID], kind=problem.kind)
        response = problem.response(request[CORRELATION_ID], self._settings.retry_after_seconds)
        if "allowed_methods" in problem.extensions:
            response.headers["Allow"] = ", ".join(problem.extensions["allowed_methods"])
        return response

    def _fault(self, request: web.Request, error: Exception) -> Problem:
        log.error("request_failed", correlation_id=request[CORRELATION_ID], path=request.path, exc_info=error)
        return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "a fault in this service; it has been logged")


def _route_label(request: web.Request) -> str:
    resource = request.match_info.route.resource
    if resource:
        return resource.canonical
    # A wrong method matches no route, but the path may be one of ours; never a label: a path that is not.
    ours = {resource.canonical for resource in request.app.router.resources()}
    return request.path if request.path in ours else "unmatched"
