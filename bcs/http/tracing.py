"""The spans of requests; attributes are named as in OpenTelemetry's conventions for HTTP."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import web

from bcs.actors.spans import BATCH_ID as BATCH
from bcs.actors.spans import CORRELATION_ID as CORRELATION
from bcs.http.guard import BATCH_ID, CORRELATION_ID, Handler
from bcs.http.routing import Group, Route
from bcs.observability.tracing import NO_SPAN, Attributes, Span, SpanDescription, SpanKind, Tracer
from bcs.wire.tracing import TraceContext, trace_of

_SPAN: Final = web.RequestKey("span", Span)
# Probes would drown the others, and the stream of the page lasts for hours.
_TRACED = frozenset({Group.PIPELINES, Group.PHASES, Group.BATCHES})


def traced(handler: Handler, tracer: Tracer, route: Route) -> Handler:
    """Give each request a span; the handler itself while tracing is off, and for routes without spans.

    :param handler: answers every request, also with an error.
    """
    if not tracer.enabled or route.group not in _TRACED:
        return handler

    async def answer(request: web.Request) -> web.StreamResponse:
        with tracer.span(_about_request, route, request) as span:
            request[_SPAN] = span
            response = await handler(request)
            span.set(_about_response, request, response)
            if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                span.fail(str(response.status))
        return response

    return answer


def span_of(request: web.Request, tracer: Tracer) -> Span:
    """The span of a request."""
    # A request without a span takes long to say so.
    return request[_SPAN] if tracer.enabled else NO_SPAN


def cause_of(request: web.Request, span: Span) -> TraceContext | None:
    """The context for all that a request causes: that of its span, else that of the caller."""
    return span.context or trace_of(request.headers)


def _about_request(route: Route, request: web.Request) -> SpanDescription:
    caller = trace_of(request.headers)
    attributes = {
        "http.request.method": request.method,
        "http.route": route.path,
        "url.path": request.path,
        "url.scheme": request.scheme,
        "client.address": request.remote or "",
    }
    return SpanDescription(
        name=route.span or f"{route.method} {route.path}",
        kind=SpanKind.SERVER,
        attributes=attributes,
        causes=[caller] if caller else [],
    )


def _about_response(request: web.Request, response: web.StreamResponse) -> Attributes:
    attributes: dict[str, str | int] = {"http.response.status_code": response.status}
    for name, key in ((BATCH, BATCH_ID), (CORRELATION, CORRELATION_ID)):
        value = request.get(key)
        if value is not None:
            attributes[name] = value
    return attributes
