"""Tracing with OpenTelemetry. Needs the extra `tracing`.

The standard variables count: `OTEL_EXPORTER_OTLP_…`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_…`, `OTEL_SERVICE_NAME`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextvars import Token
from types import TracebackType
from typing import ParamSpec, Self

import anyio
import anyio.to_thread
import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, StatusCode, TraceFlags, TraceState
from opentelemetry.trace import Span as ApiSpan
from opentelemetry.util.types import Attributes as ApiAttributes

from bcs import __version__
from bcs.config.settings import Settings
from bcs.errors import ConfigurationError
from bcs.observability.tracing import ACTIVE_SPAN, Attributes, LoggedSpan, Span, SpanDescription, SpanKind
from bcs.wire.published import SERVICE
from bcs.wire.tracing import TraceContext

P = ParamSpec("P")

log = structlog.stdlib.get_logger("bcs.tracing")

_KINDS = {
    SpanKind.SERVER: trace.SpanKind.SERVER,
    SpanKind.CLIENT: trace.SpanKind.CLIENT,
    SpanKind.CONSUMER: trace.SpanKind.CONSUMER,
    SpanKind.PRODUCER: trace.SpanKind.PRODUCER,
    SpanKind.INTERNAL: trace.SpanKind.INTERNAL,
}
# The SDK drops more by default. A group of messages may have a thousand.
_MOST_LINKS = 128
_NO_PARENT = Context()


def tracer_of(settings: Settings) -> OpenTelemetryTracer:
    """A tracer that exports by OTLP over HTTP, in a thread of its own.

    :raises ConfigurationError: an `OTEL_…` variable can't be used.
    """
    try:
        exporter = ReportingExporter(OTLPSpanExporter())
        tracer = OpenTelemetryTracer(settings, BatchSpanProcessor(exporter))
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"BCS_TRACING: an OTEL_… variable can't be used: {error}") from error
    if exporter.problem:
        # The library goes on with a default where it can't use a variable, such as that of the sampler.
        log.warning("tracing_variable_ignored", problem=exporter.problem)
    return tracer


class OpenTelemetryTracer:
    """Begins spans of OpenTelemetry.

    :param processor: gets each span that has ended.
    """

    enabled = True

    def __init__(self, settings: Settings, processor: SpanProcessor) -> None:
        # Not at the exit of Python, which would wait for a collector that does not answer.
        self._provider = TracerProvider(resource=_resource(settings), shutdown_on_exit=False)
        self._provider.sampler = _FollowingLinks(self._provider.sampler)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("bcs", __version__)
        self._flush_seconds = settings.tracing_flush_seconds

    def span(self, describe: Callable[P, SpanDescription], *args: P.args, **kwargs: P.kwargs) -> Span:
        """See `Tracer.span`."""
        about = describe(*args, **kwargs)
        causes = [_span_context(cause) for cause in _distinct(about.causes)]
        alone = len(causes) == 1
        # A consumer links to its producer, even where that is its parent.
        linked = not alone or about.kind is SpanKind.CONSUMER
        return _OpenTelemetrySpan(
            self._tracer.start_span(
                about.name,
                trace.set_span_in_context(NonRecordingSpan(causes[0]), _NO_PARENT) if alone else _NO_PARENT,
                _KINDS[about.kind],
                about.attributes,
                [Link(cause) for cause in causes] if linked else None,
                record_exception=False,
            )
        )

    async def aclose(self) -> None:
        """See `Tracer.aclose`."""
        # In a thread that is not waited for: the collector may be silent.
        with anyio.move_on_after(self._flush_seconds, shield=True):
            await anyio.to_thread.run_sync(self._provider.shutdown, abandon_on_cancel=True)


class _OpenTelemetrySpan:
    """See `Span`."""

    __slots__ = ("_span", "_token", "context", "ended", "span_id", "trace_id")

    def __init__(self, span: ApiSpan) -> None:
        about = span.get_span_context()
        self._span = span
        self._token: Token[LoggedSpan | None] | None = None
        self.ended = False
        self.trace_id, self.span_id = f"{about.trace_id:032x}", f"{about.span_id:016x}"
        parent = f"00-{self.trace_id}-{self.span_id}-{about.trace_flags:02x}"
        self.context: TraceContext | None = TraceContext(parent, about.trace_state.to_header())

    def set(self, describe: Callable[P, Attributes], *args: P.args, **kwargs: P.kwargs) -> None:
        """See `Span.set`."""
        if self._span.is_recording():
            self._span.set_attributes(describe(*args, **kwargs))

    def fail(self, problem: str) -> None:
        """See `Span.fail`."""
        self._span.set_attribute("error.type", problem)
        self._span.set_status(StatusCode.ERROR)

    def end(self) -> None:
        """See `Span.end`."""
        if not self.ended:
            self.ended = True
            self._span.end()

    def __enter__(self) -> Self:
        self._token = ACTIVE_SPAN.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            ACTIVE_SPAN.reset(self._token)
        if kind is not None:
            # Not its text, which may have data of pupils in it.
            self.fail(kind.__qualname__)
        self.end()


class _FollowingLinks(Sampler):
    """Samples a span that has several causes if one of these was sampled; a sampler asks for the only parent alone.

    :param sampler: the sampler that the `OTEL_TRACES_SAMPLER` variables choose.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: trace.SpanKind | None = None,
        attributes: ApiAttributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """See `Sampler.should_sample`."""
        decides = self._sampler
        if links and len(links) > 1 and isinstance(decides, ParentBased):
            decides = ALWAYS_ON if any(link.context.trace_flags.sampled for link in links) else ALWAYS_OFF
        return decides.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """See `Sampler.get_description`."""
        return self._sampler.get_description()


class ReportingExporter(SpanExporter):
    """Exports spans. Logs once that the collector does not take them, and once that it takes them again.

    :param exporter: does the work, and logs each failure.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._failing = False
        self._library = _LastProblem(logging.WARNING)
        library = logging.getLogger("opentelemetry")
        library.propagate = False
        library.handlers[:] = [self._library]

    @property
    def problem(self) -> str:
        """The last thing that the library has logged; empty if nothing."""
        return self._library.text

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter.export`."""
        result = self._exporter.export(spans)
        failing = result is not SpanExportResult.SUCCESS
        if failing and not self._failing:
            log.warning("spans_not_exported", problem=self._library.text, spans=len(spans))
        elif self._failing and not failing:
            log.info("spans_exported_again")
        self._failing = failing
        return result

    def shutdown(self) -> None:
        """See `SpanExporter.shutdown`."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """See `SpanExporter.force_flush`."""
        return self._exporter.force_flush(timeout_millis)


class _LastProblem(logging.Handler):
    """Keeps the last thing that the library has logged, which it does for each failure."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text."""
        self.text = record.getMessage()


def _distinct(causes: Iterable[TraceContext]) -> Iterable[TraceContext]:
    found: dict[TraceContext, None] = {}
    for cause in causes:
        found[cause] = None
        if len(found) == _MOST_LINKS:
            break
    return found


def _span_context(context: TraceContext) -> SpanContext:
    _, trace_id, span_id, flags = context.traceparent.split("-")
    state = TraceState.from_header([context.tracestate]) if context.tracestate else None
    return SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)), state)


def _resource(settings: Settings) -> Resource:
    ours = {
        "service.name": SERVICE,
        "service.version": __version__,
        "service.instance.id": settings.instance,
        "deployment.environment.name": settings.environment.value,
    }
    given = OTELResourceDetector().detect().attributes
    return Resource.create({name: value for name, value in ours.items() if name not in given})
