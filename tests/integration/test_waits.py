"""An actor's wait is in `/healthz` with its start, and once in the log."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from tests.support.service import DEFINE, Orchestrator, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

NOWHERE = "127.0.0.1:1"
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def waits_of(orchestrator: Orchestrator, actor: str) -> dict[str, str]:
    """The waits of an actor with their causes."""
    health = (await orchestrator.get("/healthz")).json
    waits = health["waits"][actor]
    if waits:
        assert health["status"] == "degraded"
        assert f"{actor} waits" in health["message"]
    for wait in waits:
        assert datetime.fromisoformat(wait["since"]) <= datetime.now(UTC)
    return {wait["operation"]: wait["cause"] for wait in waits}


async def test_health_names_the_waits_of_publisher_intake_and_archive(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        running_service(
            redis_url=redis_url,
            kafka_bootstrap_servers=NOWHERE,
            database_url=f"postgresql://bob:a-secret@{NOWHERE}/bcs",
            retry_maximum_seconds=0.01,
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        for actor, doing, setting in (
            ("publisher", "connect the producer", "BCS_KAFKA_BOOTSTRAP_SERVERS"),
            ("intake", "read from Kafka", "BCS_KAFKA_BOOTSTRAP_SERVERS"),
            ("archive", "connect to PostgreSQL", "BCS_DATABASE_URL"),
        ):

            async def cause(actor: str = actor, doing: str = doing) -> str:
                return (await waits_of(orchestrator, actor)).get(doing, "")

            named = await wait_until(cause)
            assert NOWHERE in named
            assert setting in named
            assert "connection refused" in named.lower()
            assert "a-secret" not in named
        said = [vars(record) for record in caplog.records if record.msg == "waiting_for_dependency"]
        assert [(one["levelname"], one["actor"]) for one in said] == [("WARNING", "publisher")]


async def test_health_names_a_broker_that_refuses_the_idempotent_producer(kafka_bootstrap_servers: str) -> None:
    async with (
        running_service(
            use_mock_repository=True, kafka_bootstrap_servers=kafka_bootstrap_servers, kafka_enable_idempotence=True
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):

        async def is_named() -> bool:
            waits = await waits_of(orchestrator, "publisher")
            return "BCS_KAFKA_ENABLE_IDEMPOTENCE=false" in waits.get("connect the producer", "")

        async def is_named_of_kafka() -> bool:
            health = await orchestrator.get("/healthz")
            assert health.status == 200
            return "BCS_KAFKA_ENABLE_IDEMPOTENCE" in health.json["dependencies"]["kafka"]["message"]

        await wait_until(is_named)
        await wait_until(is_named_of_kafka)


async def test_announcements_have_the_correlation_and_trace_of_the_headers(batch: str) -> None:
    async with (
        running_service(use_mock_repository=True, kafka_bootstrap_servers=NOWHERE) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        await orchestrator.complete(batch, "spellcheck")
        headers = {"X-Correlation-ID": "from-the-header", "traceparent": PARENT, "tracestate": "a=b"}
        body = {"batch_id": batch, "requested_pipeline": "ai_feedback", "batch_metadata": {"promt_attached": True}}
        answer = await orchestrator.request("POST", DEFINE, json=body, headers=headers)
        assert answer.status == 200, answer.body
        assert answer.headers["X-Correlation-ID"] == "from-the-header"
        assert answer.json["warnings"] == [
            "batch_metadata.promt_attached is not read; did you mean batch_metadata.prompt_attached?"
        ]
        [leased] = service.run(service.service.outbox.lease, 10)
        assert json.loads(leased.message.value)["metadata"] == {
            "partition_key": batch,
            "traceparent": PARENT,
            "tracestate": "a=b",
        }
        same = await orchestrator.request(
            "POST", DEFINE, json={**body, "correlation_id": "of-the-body"}, headers=headers
        )
        assert same.headers["X-Correlation-ID"] == "of-the-body"
        assert "warnings" not in (await orchestrator.define(batch)).json
