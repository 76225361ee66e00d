"""Spans of a service in this process, kept in memory."""

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bcs.config.settings import Settings
from bcs.observability.opentelemetry import OpenTelemetryTracer
from bcs.wire.tracing import TraceContext
from tests.support.waiting import wait_until

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


class Spans:
    """Everything that has ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()

    def tracer_of(self, settings: Settings) -> OpenTelemetryTracer:
        """A tracer whose spans come here."""
        return OpenTelemetryTracer(settings, SimpleSpanProcessor(self._exporter))

    @property
    def all(self) -> Sequence[ReadableSpan]:
        """All of them."""
        return self._exporter.get_finished_spans()

    def named(self, name: str, **attributes: object) -> list[ReadableSpan]:
        """Those with a name and with attributes, the dots in whose names are two underscores."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return [
            span
            for span in self._exporter.get_finished_spans()
            if span.name == name and wanted.items() <= dict(span.attributes or {}).items()
        ]

    async def wait_for(self, name: str, **attributes: object) -> ReadableSpan:
        """The only one of them, once it has ended."""
        await wait_until(lambda: self.named(name, **attributes))
        [span] = self.named(name, **attributes)
        return span


def context_of(span: ReadableSpan) -> str:
    """The `traceparent` that names a span."""
    assert span.context is not None
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


def parent_of(span: ReadableSpan) -> str | None:
    """The `traceparent` of a span's parent."""
    parent = span.parent
    return parent and f"00-{parent.trace_id:032x}-{parent.span_id:016x}-{parent.trace_flags:02x}"


def links_of(span: ReadableSpan) -> list[str]:
    """The `traceparent` of each link."""
    return [
        f"00-{one.context.trace_id:032x}-{one.context.span_id:016x}-{one.context.trace_flags:02x}" for one in span.links
    ]


def contexts(*spans: int, sampled: bool = True) -> Sequence[TraceContext]:
    """Contexts of a trace each."""
    return [TraceContext(f"00-{number:032x}-{number:016x}-{sampled:02x}") for number in spans]
