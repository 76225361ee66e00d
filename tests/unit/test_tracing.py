"""Spans: their parents and links, what is sampled, what the log says, and nothing at all while tracing is off."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import anyio
import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from bcs.config.loading import load_settings
from bcs.errors import ConfigurationError
from bcs.observability.opentelemetry import ReportingExporter, tracer_of
from bcs.observability.tracer_factory import TracingUnavailable, open_tracer
from bcs.observability.tracing import NO_SPAN, NO_TRACER, SpanDescription, SpanKind, name_span
from bcs.wire.tracing import TraceContext, trace_in, trace_of_message
from tests.support.spans import PARENT, Spans, context_of, contexts, links_of, parent_of

SETTINGS = load_settings(instance_name="replica-1")


def about(causes: Sequence[TraceContext], kind: SpanKind = SpanKind.CLIENT) -> SpanDescription:
    """A span with causes."""
    return SpanDescription(name="work", kind=kind, attributes={}, causes=causes)


def ended(causes: Sequence[TraceContext], kind: SpanKind = SpanKind.CLIENT) -> list[ReadableSpan]:
    """The span with these causes; nothing if it was not sampled."""
    spans = Spans()
    spans.tracer_of(SETTINGS).span(about, causes, kind).end()
    return spans.named("work")


def test_a_single_cause_is_the_parent_and_several_are_linked() -> None:
    [one, two] = contexts(1, 2)
    [span] = ended([one, one])
    assert (parent_of(span), links_of(span)) == (one.traceparent, [])
    [span] = ended([one], SpanKind.CONSUMER)
    assert (parent_of(span), links_of(span)) == (one.traceparent, [one.traceparent])
    [span] = ended([one, two, one])
    assert (parent_of(span), links_of(span)) == (None, [one.traceparent, two.traceparent])
    assert context_of(span)[3:35] not in (one.traceparent[3:35], two.traceparent[3:35])
    [span] = ended([])
    assert (parent_of(span), links_of(span)) == (None, [])


def test_the_links_of_a_span_are_bounded() -> None:
    [span] = ended(contexts(*range(1, 1001)))
    assert len(links_of(span)) == 128


@pytest.mark.parametrize(
    ("envelope", "found"),
    [
        (f'{{"data": {{}}, "metadata": {{"traceparent": "{PARENT}", "partition_key": 7}}}}', PARENT),
        (f'{{"data": {{"metadata": {{"traceparent": "{PARENT}"}}}}}}', None),
        (f'{{"metadata": {{"traceparent": ["{PARENT}"]}}}}', None),
        ('{"metadata": null}', None),
        ("not json", None),
        (f'{{"metadata": {{"traceparent": "{PARENT}"}}, "data": "{"x" * 2**20}"}}', None),
    ],
    ids=["valid", "of the data", "no text", "null", "no JSON", "too large"],
)
def test_the_context_in_an_envelope(envelope: str, found: str | None) -> None:
    context = trace_of_message((), envelope.encode())
    assert (context and context.traceparent) == found


def test_a_span_is_sampled_as_its_causes_are(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled, unsampled = contexts(1, 2), contexts(3, 4, sampled=False)
    assert not ended(unsampled[:1])
    assert not ended(unsampled)
    assert ended([*unsampled, *sampled])
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    assert not ended([])
    assert ended(sampled[:1])
    assert ended([*unsampled, *sampled])


def test_a_context_that_is_passed_on_keeps_the_state_and_says_whether_it_is_sampled() -> None:
    span = Spans().tracer_of(SETTINGS).span(about, [TraceContext(f"{PARENT[:-2]}00", "a=b,c=d")])
    assert span.context is not None
    assert span.context.traceparent.startswith(PARENT[:35])
    assert (span.context.traceparent[-2:], span.context.tracestate) == ("00", "a=b,c=d")


def test_the_resource_names_the_replica_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=7,team=blue")
    [span] = ended([])
    attributes = span.resource.attributes
    assert attributes["service.name"] == "batch_conductor_service"
    assert attributes["service.instance.id"] == "replica-1"
    assert (attributes["service.version"], attributes["team"]) == ("7", "blue")


def test_log_lines_name_the_span_until_it_ends() -> None:
    spans = Spans()
    assert name_span(None, "info", {}) == {}
    with spans.tracer_of(SETTINGS).span(about, contexts(1)) as span:
        assert span.context is not None
        _, trace_id, span_id, _ = span.context.traceparent.split("-")
        assert name_span(None, "info", {"event": "x"}) == {"event": "x", "trace_id": trace_id, "span_id": span_id}
        span.end()
        assert name_span(None, "info", {}) == {}
    assert name_span(None, "info", {}) == {}


def test_an_error_marks_its_span_without_its_text() -> None:
    spans = Spans()
    with pytest.raises(ValueError, match="pupil"), spans.tracer_of(SETTINGS).span(about, []):
        raise ValueError("the name of a pupil")
    [span] = spans.named("work", error__type="ValueError")
    assert not span.events
    assert "pupil" not in span.to_json()


def test_nothing_is_described_while_tracing_is_off() -> None:
    assert open_tracer(SETTINGS) is NO_TRACER
    with NO_TRACER.span(pytest.fail) as span:
        span.set(pytest.fail)
        span.fail("x")
        span.end()
    assert span is NO_SPAN
    assert span.context is None


def test_missing_packages_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcs.observability.opentelemetry", None)
    with pytest.raises(TracingUnavailable, match="pip install 'batch-conductor-service\\[tracing\\]'"):
        open_tracer(load_settings(tracing=True))


def test_variables_that_the_library_ignores_are_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always")
    with structlog.testing.capture_logs() as lines:
        tracer = tracer_of(load_settings(tracing=True))
    anyio.run(tracer.aclose)
    assert [line["event"] for line in lines] == ["tracing_variable_ignored"]
    assert "sampler" in lines[0]["problem"]
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    with pytest.raises(ConfigurationError, match="OTEL_… variable can't be used: max_queue_size"):
        tracer_of(load_settings(tracing=True))


def test_the_log_has_one_line_for_an_outage_of_the_collector() -> None:
    answers = iter([SpanExportResult.FAILURE] * 3 + [SpanExportResult.SUCCESS] * 2 + [SpanExportResult.FAILURE])

    class Collector(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return next(answers)

    exporter = ReportingExporter(Collector())
    with structlog.testing.capture_logs() as lines:
        for _ in range(6):
            exporter.export([])
    assert [line["event"] for line in lines] == ["spans_not_exported", "spans_exported_again", "spans_not_exported"]


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([("traceparent", PARENT.encode())], PARENT),
        ([("traceparent", b"x"), ("traceparent", PARENT.encode())], PARENT),
        ([("traceparent", None)], None),
        ([("traceparent", b"\xff" * 55)], None),
        ([("tracestate", b"a=b")], None),
    ],
)
def test_the_context_in_the_headers_of_kafka(headers: list[tuple[str, bytes | None]], found: str | None) -> None:
    context = trace_in(headers)
    assert (context and context.traceparent) == found
