"""The story that `bcs dev --demo` plays: a batch of three essays, and how the answer changes as events come in."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import aiohttp
import anyio
import typer
from aiokafka import AIOKafkaProducer

from bcs.contracts import topics

_PATIENCE_SECONDS = 30.0
_PHASE = "spellcheck"
_PIPELINE = "ai_feedback"


async def play(base: str, bootstrap_servers: str) -> None:
    """Play the story once.

    :param base: where the service listens.
    """
    batch_id = f"demo-{uuid.uuid4().hex[:8]}"
    essays = ("anna", "ben", "chloe")
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers)
    await producer.start()
    try:
        async with aiohttp.ClientSession(base) as client:
            typer.echo(f"1. Batch {batch_id} is registered with {len(essays)} essays.")
            await _publish(producer, topics.ESSAYS_REGISTERED, batch_id, _registration(batch_id, essays))
            answer = await _define_until(client, batch_id, (_PHASE, _PIPELINE))
            _show(answer)
            typer.echo("2. Two of them are spellchecked: that completes nothing.")
            for essay in essays[:2]:
                await _publish(producer, topics.SPELLCHECK_COMPLETED, essay, _spellchecked(batch_id, essay))
            _show(await _define_until(client, batch_id, (_PHASE, _PIPELINE), f"2 of {len(essays)}"))
            typer.echo("3. So is the third, and the phase is pruned.")
            await _publish(producer, topics.SPELLCHECK_COMPLETED, essays[2], _spellchecked(batch_id, essays[2]))
            _show(await _define_until(client, batch_id, (_PIPELINE,)))
            typer.echo(f"   The pruning is announced on {topics.PHASE_SKIPPED}. That was the story; BCS keeps running.")
    finally:
        with anyio.CancelScope(shield=True):
            await producer.stop()


async def _define_until(
    client: aiohttp.ClientSession, batch_id: str, expected: Sequence[str], saying: str = ""
) -> dict[str, Any]:
    """Ask until the events have arrived: they take a moment from Kafka to Redis."""
    body = {"batch_id": batch_id, "requested_pipeline": _PIPELINE, "correlation_id": str(uuid.uuid4())}
    with anyio.fail_after(_PATIENCE_SECONDS):
        while True:
            async with client.post("/internal/v1/pipelines/define", json=body) as response:
                answer: dict[str, Any] = await response.json()
            if answer["final_pipeline"] == list(expected) and saying in answer["analysis_summary"]:
                return answer
            await anyio.sleep(0.1)


def _show(answer: dict[str, Any]) -> None:
    typer.echo(f"   final_pipeline: {json.dumps(answer['final_pipeline'])}\n   {answer['analysis_summary']}\n")


async def _publish(producer: AIOKafkaProducer, topic: str, key: str, data: dict[str, Any]) -> None:
    envelope = {
        "event_id": str(uuid.uuid4()),
        "event_type": topic,
        "event_timestamp": _now(),
        "source_service": "bcs-demo",
        "schema_version": 1,
        "correlation_id": str(uuid.uuid4()),
        "data": data,
    }
    await producer.send_and_wait(topic, json.dumps(envelope).encode(), key.encode())


def _registration(batch_id: str, essays: Sequence[str]) -> dict[str, Any]:
    return {"entity_id": batch_id, "expected_essay_count": len(essays), "essay_ids": list(essays)}


def _spellchecked(batch_id: str, essay: str) -> dict[str, Any]:
    return {
        "entity_id": essay,
        "batch_id": batch_id,
        "correlation_id": str(uuid.uuid4()),
        "status": "completed",
        "corrected_text_storage_id": f"text-{essay}",
        "error_code": None,
        "processing_duration_ms": 120,
        "timestamp": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat()
