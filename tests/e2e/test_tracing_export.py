"""Spans reach a collector, through restarts and replays; one that is away or silent holds up nothing."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bcs.wire import topics
from tests.support.commands import bcs
from tests.support.events import Event, spellchecked
from tests.support.kafka import Platform
from tests.support.otlp import Collector
from tests.support.service import COMPLETE, DEFINE, BcsProcess, Orchestrator, serve
from tests.support.spans import PARENT, SPAN_ID, TRACE_ID
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.release]

FLUSH_SECONDS = 1.0
# Long enough that no busy machine makes the two look alike.
SILENT_SECONDS = 60
KILL = "/internal/v1/actors/{}/kill"


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    """A collector that listens."""
    async with Collector() as collector:
        yield collector


@pytest.fixture
async def platform(kafka_bootstrap_servers: str) -> AsyncIterator[Platform]:
    """The services around this one."""
    async with Platform(kafka_bootstrap_servers) as platform:
        yield platform


def traced(directory: Path, redis_url: str, kafka: str, collector: Collector, **environment: object) -> BcsProcess:
    """A service whose spans go to the collector."""
    own = {"BCS_ENVIRONMENT": "production", "BCS_CHAOS_ENABLED": "true", "BCS_TRACING_FLUSH_SECONDS": FLUSH_SECONDS}
    return serve(directory, redis_url, kafka, forked=False, **{**collector.environment, **own, **environment})


def log_of(service: BcsProcess, event: str) -> list[dict[str, Any]]:
    """The lines of the log about something."""
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


async def report(orchestrator: Orchestrator, batch: str) -> None:
    """Report a phase, in the caller's trace."""
    body = {"batch_id": batch, "phase_name": "spellcheck", "success": True}
    answer = await orchestrator.request("POST", COMPLETE, json=body, headers={"traceparent": PARENT})
    assert answer.status == 200, answer.body


async def stopped(service: BcsProcess) -> float:
    """Stop a service in order; how long it took in seconds."""
    began = time.monotonic()
    service.signal(signal.SIGTERM)
    assert await service.ended() == 0, service.log.read_text()
    return time.monotonic() - began


async def test_spans_are_exported_through_restarts_of_actors_and_the_last_ones_at_the_end(
    tmp_path: Path, redis_url: str, kafka_bootstrap_servers: str, collector: Collector, platform: Platform
) -> None:
    with traced(
        tmp_path, redis_url, kafka_bootstrap_servers, collector, BCS_HTTP_ACCESS_LOG="true", BCS_INSTANCE_NAME="one"
    ) as service:
        await service.answers()
        async with Orchestrator(service.base) as orchestrator:
            for number, actor in enumerate(("publisher", "batches", "intake", "http", "metrics")):
                killed = await orchestrator.request("POST", KILL.format(actor))
                assert killed.status == 202, killed.body
                batch = f"{tmp_path.name}-{number}"
                await report(orchestrator, batch)
                body = {"batch_id": batch, "requested_pipeline": "ai_feedback", "correlation_id": batch}
                answer = await orchestrator.request("POST", DEFINE, json=body, headers={"traceparent": PARENT})
                assert answer.status == 200, answer.body
                resolve = await collector.wait_for("resolve", bcs__batch__id=batch)
                assert (resolve.trace_id, resolve.parent_id, resolve.instance) == (TRACE_ID, SPAN_ID, "one")
                publish = await collector.wait_for(
                    f"publish {topics.PHASE_SKIPPED}", messaging__kafka__message__key=batch
                )
                assert (publish.trace_id, publish.parent_id) == (TRACE_ID, resolve.span_id)
                await platform.send(spellchecked(f"{batch}-event", "1"))
                commit = await collector.wait_for("commit", bcs__batch__id=f"{batch}-event")
                assert (commit.trace_id, commit.links) == (TRACE_ID, [SPAN_ID])
            [line] = [one for one in log_of(service, "request") if one["batch_id"] == batch and one["route"] == DEFINE]
            assert (line["trace_id"], line["span_id"]) == (TRACE_ID, resolve.span_id)
            await report(orchestrator, f"{tmp_path.name}-last")
        await stopped(service)
        assert collector.named("report", bcs__batch__id=f"{tmp_path.name}-last")
        assert not log_of(service, "spans_not_exported")


async def test_a_collector_that_is_away_costs_one_line_and_no_time(
    tmp_path: Path, redis_url: str, kafka_bootstrap_servers: str, collector: Collector
) -> None:
    await collector.leave()
    with traced(
        tmp_path, redis_url, kafka_bootstrap_servers, collector, OTEL_EXPORTER_OTLP_TRACES_TIMEOUT=1
    ) as service:
        await service.answers()
        async with Orchestrator(service.base) as orchestrator:
            await report(orchestrator, f"{tmp_path.name}-lost")
            await wait_until(lambda: log_of(service, "spans_not_exported"))
            for number in range(20):
                await report(orchestrator, f"{tmp_path.name}-{number}")
            await collector.come()
            await report(orchestrator, f"{tmp_path.name}-back")
            await collector.wait_for("report", bcs__batch__id=f"{tmp_path.name}-back")
            [line] = log_of(service, "spans_not_exported")
            assert "opentelemetry" not in service.log.read_text()
            assert line["problem"]
            await wait_until(lambda: log_of(service, "spans_exported_again"))
            await collector.leave()
            await report(orchestrator, f"{tmp_path.name}-late")
        await stopped(service)


async def test_a_silent_collector_holds_up_neither_requests_nor_the_end(
    tmp_path: Path, redis_url: str, kafka_bootstrap_servers: str, collector: Collector
) -> None:
    collector.delay_seconds = SILENT_SECONDS
    with traced(
        tmp_path,
        redis_url,
        kafka_bootstrap_servers,
        collector,
        OTEL_EXPORTER_OTLP_TRACES_TIMEOUT=SILENT_SECONDS,
        OTEL_BSP_MAX_QUEUE_SIZE=512,
    ) as service:
        await service.answers()
        async with Orchestrator(service.base, keep_alive=True) as orchestrator:
            await report(orchestrator, tmp_path.name)
            await wait_until(lambda: collector.requests)
            for _ in range(600):  # more than the queue holds
                assert (await orchestrator.define(tmp_path.name)).status == 200
        assert await stopped(service) < SILENT_SECONDS / 2
        assert collector.requests == 1
        assert "opentelemetry" not in service.log.read_text()


async def test_a_replay_belongs_to_the_trace_of_its_dead_letter(
    tmp_path: Path, redis_url: str, kafka_bootstrap_servers: str, collector: Collector, platform: Platform
) -> None:
    batch = f"{tmp_path.name}-replayed"
    with traced(tmp_path, redis_url, kafka_bootstrap_servers, collector) as service:
        await service.answers()
        junk = Event(topics.SPELLCHECK_COMPLETED, batch.encode(), spellchecked(batch, "1", status="unknown").value)
        await platform.send(junk, headers=[("traceparent", PARENT.encode())])
        publish = await collector.wait_for(f"publish {topics.SPELLCHECK_COMPLETED}.DLQ")
        ran = await bcs(
            "dlq",
            "replay",
            "--batch",
            batch,
            **{**service.environment, **collector.environment, "BCS_INSTANCE_NAME": "the command"},
        )
        assert ran.exit_code == 0, ran
        replay = await collector.wait_for(f"replay {topics.SPELLCHECK_COMPLETED}")
        assert (replay.trace_id, replay.parent_id) == (TRACE_ID, publish.span_id)
        assert replay.instance == "the command"
        assert replay.attributes["bcs.dead_letter.reason"] == "invalid_event"

        async def replayed() -> dict[str, bytes] | None:
            records = await platform.messages(topics.SPELLCHECK_COMPLETED, batch)
            return dict(records[1].headers) if len(records) > 1 else None

        headers = await wait_until(replayed)
        assert headers is not None
        assert headers["traceparent"] == PARENT.encode()  # the original's own
        assert replay.span_id in headers["dlt-traceparent"].decode()
        # It fails again, and still belongs to the trace.
        await wait_until(lambda: len(collector.named(f"publish {topics.SPELLCHECK_COMPLETED}.DLQ")) == 2)
        again = collector.named(f"publish {topics.SPELLCHECK_COMPLETED}.DLQ")[1]
        assert again.trace_id == TRACE_ID


async def test_missing_packages_are_a_configuration_error(tmp_path: Path, redis_url: str) -> None:
    without = "import sys; sys.modules['opentelemetry'] = None; from bcs.__main__ import main; main()"
    with BcsProcess(
        tmp_path, "serve", command=[sys.executable, "-c", without], BCS_TRACING="true", BCS_REDIS_URL=redis_url
    ) as service:
        assert await service.ended() == 2
        assert "BCS_TRACING needs the extra `tracing`: pip install" in service.log.read_text()
