"""Tracing: spans of what BCS does. While it is off, a span is an object that does nothing.

A context travels as a field of messages, see `TraceContext`. Only the log looks for the span of the running task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Final, ParamSpec, Protocol, Self

import structlog

from bcs.wire.tracing import TraceContext

P = ParamSpec("P")

Attributes = Mapping[str, str | int | bool | Sequence[str]]


class SpanKind(Enum):
    """The part that BCS has in a call or a message, as OpenTelemetry defines it."""

    SERVER = "server"
    CLIENT = "client"
    CONSUMER = "consumer"
    PRODUCER = "producer"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanDescription:
    """What a span is about.

    :param causes: the spans that caused this one. A single one is its parent. Of several, none is: the span begins a
        trace of its own, with a link to each.
    """

    name: str
    kind: SpanKind
    attributes: Attributes
    causes: Iterable[TraceContext] = ()


class Span(Protocol):
    """A span that has begun. As a context manager it ends with its block, and the log lines of the block name it."""

    @property
    def context(self) -> TraceContext | None:
        """For what the span causes; None while tracing is off."""

    def set(self, describe: Callable[P, Attributes], *args: P.args, **kwargs: P.kwargs) -> None:
        """Add attributes. `describe` makes them, and is called only if the span is recorded."""

    def fail(self, problem: str) -> None:
        """Mark the span as failed."""

    def end(self) -> None:
        """End the span. A repeated call changes nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class LoggedSpan(Protocol):
    """What the log needs of a span."""

    trace_id: str
    span_id: str
    ended: bool


class Tracer(Protocol):
    """Begins spans."""

    @property
    def enabled(self) -> bool:
        """False while tracing is off."""

    def span(self, describe: Callable[P, SpanDescription], *args: P.args, **kwargs: P.kwargs) -> Span:
        """Begin a span. `describe` says what it is about, and is called only while tracing is on."""

    async def aclose(self) -> None:
        """Export what has ended, within a time limit."""


class _NoSpan:
    """The span while tracing is off."""

    __slots__ = ()

    context = None

    def set(self, describe: Callable[P, Attributes], *args: P.args, **kwargs: P.kwargs) -> None:
        """Do nothing."""

    def fail(self, problem: str) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


NO_SPAN: Final[Span] = _NoSpan()


class _NoTracer:
    """Tracing that is off."""

    __slots__ = ()

    enabled = False

    def span(self, describe: Callable[P, SpanDescription], *args: P.args, **kwargs: P.kwargs) -> Span:
        """Begin nothing."""
        return NO_SPAN

    async def aclose(self) -> None:
        """Do nothing."""


NO_TRACER: Final[Tracer] = _NoTracer()


ACTIVE_SPAN: Final[ContextVar[LoggedSpan | None]] = ContextVar("active_span", default=None)
"""The span whose block the running task is in, for the log alone. A task that was started there inherits it."""


def name_span(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A processor of structlog that puts the ids of the active span into a line."""
    span = ACTIVE_SPAN.get()
    if span is not None and not span.ended:  # a task may outlive the span in which it was started
        event["trace_id"], event["span_id"] = span.trace_id, span.span_id
    return event
