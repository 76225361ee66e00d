"""Spans of a running service: from a request or an event to what is published because of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from aiokafka import ConsumerRecord
from opentelemetry.trace import SpanKind, StatusCode

from bcs.wire import topics
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import COMPLETE, DEFINE, Orchestrator, RunningService, service_in_thread, utc_now
from tests.support.spans import PARENT, SPAN_ID, TRACE_ID, Spans, context_of, links_of, parent_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def spans() -> Spans:
    """The spans of `service`."""
    return Spans()


@pytest.fixture(scope="module")
def service(redis_url: str, kafka_bootstrap_servers: str, spans: Spans) -> Iterator[RunningService]:
    """A service that keeps its spans here."""
    with service_in_thread(
        None,
        utc_now,
        spans.tracer_of,
        redis_url=redis_url,
        kafka_bootstrap_servers=kafka_bootstrap_servers,
    ) as service:
        yield service


async def announced(platform: Platform, batch: str) -> ConsumerRecord:
    """The only announcement about a batch, once it is on Kafka."""
    await wait_until(lambda: platform.messages(topics.PHASE_SKIPPED, batch))
    [record] = await platform.messages(topics.PHASE_SKIPPED, batch)
    return record


async def test_a_request_is_traced_to_the_announcement_on_kafka(
    orchestrator: Orchestrator, platform: Platform, spans: Spans, batch: str
) -> None:
    headers = {"traceparent": PARENT, "tracestate": "a=b", "baggage": "pupil=x"}
    body = {"batch_id": batch, "phase_name": "spellcheck", "success": True}
    assert (await orchestrator.request("POST", COMPLETE, json=body, headers=headers)).status == 200
    report = await spans.wait_for("report", bcs__batch__id=batch)
    commit = await spans.wait_for("commit", bcs__batch__id=batch)
    assert [parent_of(report), parent_of(commit)] == [PARENT, context_of(report)]

    body = {"batch_id": batch, "requested_pipeline": "ai_feedback", "correlation_id": f"click {batch}"}
    assert (await orchestrator.request("POST", DEFINE, json=body, headers=headers)).status == 200
    resolve = await spans.wait_for("resolve", bcs__batch__id=batch)
    assert (resolve.kind, parent_of(resolve)) == (SpanKind.SERVER, PARENT)
    attributes = dict(resolve.attributes or {})
    assert attributes.pop("client.address") == "127.0.0.1"
    assert attributes == {
        "http.request.method": "POST",
        "http.route": DEFINE,
        "url.path": DEFINE,
        "url.scheme": "http",
        "http.response.status_code": 200,
        "bcs.batch.id": batch,
        "bcs.correlation_id": f"click {batch}",
        "bcs.pipeline": "ai_feedback",
        "bcs.source": "redis",
        "bcs.phases.run": ("ai_feedback",),
        "bcs.phases.pruned": ("spellcheck",),
    }

    record = await announced(platform, batch)
    publish = await spans.wait_for(f"publish {topics.PHASE_SKIPPED}", messaging__kafka__message__key=batch)
    assert (publish.kind, parent_of(publish)) == (SpanKind.PRODUCER, context_of(resolve))
    assert dict(record.headers) == {"traceparent": context_of(publish).encode(), "tracestate": b"a=b"}
    assert json.loads(record.value)["metadata"] == {
        "partition_key": batch,
        "traceparent": context_of(resolve),
        "tracestate": "a=b",
    }


async def test_an_invalid_traceparent_is_ignored(orchestrator: Orchestrator, spans: Spans, batch: str) -> None:
    for number, sent in enumerate(("nonsense", PARENT.upper(), f"00-{'0' * 32}-{SPAN_ID}-01", f"{PARENT}-more")):
        body = {"batch_id": f"{batch}-{number}"}
        answer = await orchestrator.request("POST", DEFINE, json=body, headers={"traceparent": sent})
        assert answer.status == 400, answer.body
        resolve = await spans.wait_for("resolve", bcs__batch__id=body["batch_id"])
        assert (resolve.parent, resolve.status.status_code) == (None, StatusCode.UNSET)
        assert TRACE_ID not in context_of(resolve)


async def test_commits_link_to_the_producers_of_their_events(
    platform: Platform, service: RunningService, spans: Spans, batch: str
) -> None:
    enveloped, replayed, both = (f"{batch}-{name}" for name in ("envelope", "replayed", "both"))
    await platform.send(spellchecked(enveloped, "1"))  # its metadata has PARENT
    await platform.send(spellchecked(both, "1"), headers=[("traceparent", OTHER.encode()), ("tracestate", b"x" * 513)])
    await platform.send(
        registered(replayed, ["1"]), headers=[("traceparent", PARENT.encode()), ("dlt-traceparent", OTHER.encode())]
    )
    for about, parent, links in (
        (enveloped, PARENT, [PARENT]),
        (both, OTHER, [OTHER]),  # the header is closer to the producer than the envelope
        (replayed, None, [PARENT, OTHER]),
    ):
        commit = await spans.wait_for("commit", bcs__batch__id=about)
        assert (commit.kind, parent_of(commit), links_of(commit)) == (SpanKind.CONSUMER, parent, links)
        attributes = dict(commit.attributes or {})
        assert attributes["messaging.system"] == "kafka"
        assert attributes["messaging.operation.type"] == "process"
        assert attributes["messaging.consumer.group.name"] == service.group
        assert isinstance(attributes["messaging.kafka.offset"], int)
        assert commit.context is not None
        assert commit.context.trace_flags.sampled


async def test_a_dead_letter_belongs_to_the_trace_of_its_event(platform: Platform, spans: Spans, batch: str) -> None:
    event = spellchecked(batch, "1", status="no such status")
    await platform.send(event, headers=[("traceparent", PARENT.encode())])
    topic = topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED)
    await wait_until(lambda: platform.messages(topic, batch))
    [record] = await platform.messages(topic, batch)
    publish = await spans.wait_for(f"publish {topic}", messaging__kafka__message__key=batch)
    assert parent_of(publish) == PARENT
    headers = dict(record.headers)
    assert headers["traceparent"] == PARENT.encode()  # the original's own
    assert headers["dlt-traceparent"] == context_of(publish).encode()


async def test_reads_are_traced_and_probes_are_not(orchestrator: Orchestrator, spans: Spans, batch: str) -> None:
    answer = await orchestrator.get(f"/internal/v1/batches/{batch}")
    assert answer.status == 404
    read = await spans.wait_for("GET /internal/v1/batches/{id}", url__path=f"/internal/v1/batches/{batch}")
    assert read.status.status_code is StatusCode.UNSET
    assert (await orchestrator.get("/healthz")).status == 200
    assert (await orchestrator.get("/internal/v1/actors")).status == 200
    assert not [span.name for span in spans.all if "healthz" in span.name or "actors" in span.name]
