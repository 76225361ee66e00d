"""The story that `bcs dev --demo` plays: a batch of three essays, and how the answer changes as events come in."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from textwrap import fill
from typing import Any

import aiohttp
import anyio
import typer
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from bcs.contracts import topics
from bcs.contracts.parameters import MOST_ENTRIES

_PATIENCE_SECONDS = 30.0
_CLOSE_SECONDS = 3.0
_COLUMNS = 80
_PHASE = "spellcheck"
_PIPELINE = "ai_feedback"


class _OtherwiseError(Exception):
    """The service answered otherwise than the story has it."""


async def tell(base: str, bootstrap_servers: str) -> None:
    """Tell the story once, and say so in one line if something comes in between.

    :param base: where the service listens.
    """
    try:
        await _tell(base, bootstrap_servers)
    except (aiohttp.ClientError, KafkaError, TimeoutError, _OtherwiseError) as error:
        echo(f"The story ends here: {type(error).__name__} {error}", err=True)


async def _tell(base: str, bootstrap_servers: str) -> None:
    batch_id = f"demo-{uuid.uuid4().hex[:8]}"
    essays = ("anna", "ben", "chloe")
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers)
    await producer.start()
    try:
        async with aiohttp.ClientSession(base) as client:
            _say(f"1. Batch {batch_id} is registered with {len(essays)} essays. (The first event takes a few seconds.)")
            await _publish(producer, topics.ESSAYS_REGISTERED, batch_id, _registration(batch_id, essays))
            _show(await _define_until(client, batch_id, (_PHASE, _PIPELINE), f"0 of {len(essays)}"))
            _say("2. Two of them are spellchecked: that completes nothing.")
            for essay in essays[:2]:
                await _publish(producer, topics.SPELLCHECK_COMPLETED, essay, _spellchecked(batch_id, essay))
            _show(await _define_until(client, batch_id, (_PHASE, _PIPELINE), f"2 of {len(essays)}"))
            _say("3. So is the third, and the phase is pruned.")
            await _publish(producer, topics.SPELLCHECK_COMPLETED, essays[2], _spellchecked(batch_id, essays[2]))
            _show(await _define_until(client, batch_id, (_PIPELINE,)))
            _say(f"The pruning is announced on {topics.PHASE_SKIPPED}.")
            echo()
            _say("4. Why was it pruned? The batch's history tells, newest first:")
            _recount(await _history_until_pruned(client, batch_id))
            _say("That was the story; BCS keeps running.")
    finally:
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await producer.stop()


async def _define_until(
    client: aiohttp.ClientSession, batch_id: str, expected: Sequence[str], saying: str = ""
) -> dict[str, Any]:
    """Ask until the events have arrived: they take a moment from Kafka to Redis."""
    last_seen = ""
    body = {"batch_id": batch_id, "requested_pipeline": _PIPELINE, "correlation_id": str(uuid.uuid4())}
    with anyio.fail_after(_PATIENCE_SECONDS):
        while True:
            # To look leaves nothing in the history; to ask does, each time.
            async with client.get(f"/internal/v1/batches/{batch_id}") as response:
                known, seen = response.status == HTTPStatus.OK, await response.text()
            if known and seen != last_seen:
                last_seen = seen
                async with client.post("/internal/v1/pipelines/define", json=body) as response:
                    answer: dict[str, Any] = await response.json(content_type=None)
                if response.status != HTTPStatus.OK:
                    raise _OtherwiseError(answer.get("detail", response.status))
                if answer["final_pipeline"] == list(expected) and saying in answer["analysis_summary"]:
                    return answer
            await anyio.sleep(0.1)


async def _history_until_pruned(client: aiohttp.ClientSession, batch_id: str) -> list[dict[str, Any]]:
    """Ask until the explanation of the pruning has arrived: it takes a moment from Redis to PostgreSQL."""
    with anyio.fail_after(_PATIENCE_SECONDS):
        while True:
            async with client.get(f"/internal/v1/batches/{batch_id}/history?limit={MOST_ENTRIES}") as response:
                page: dict[str, Any] = await response.json(content_type=None)
            entries: list[dict[str, Any]] = page.get("entries", [])
            if any(_PHASE in entry.get("pruned_phases", ()) for entry in entries):
                return entries
            await anyio.sleep(0.1)


def _recount(entries: Sequence[dict[str, Any]]) -> None:
    """The pruning with its reason, and the events before it."""
    for entry in entries:
        if entry["kind"] == "facts":
            _say(f"{entry['recorded_at']}  {entry['event_type']}", indent=3)
        elif _PHASE in entry["pruned_phases"]:
            [why] = [decision["because"] for decision in entry["decisions"] if decision["phase"] == _PHASE]
            _say(f"{entry['recorded_at']}  {_PHASE} pruned: {why}", indent=3)
    echo()


def _show(answer: dict[str, Any]) -> None:
    _say(f"final_pipeline: {json.dumps(answer['final_pipeline'])}", indent=3)
    _say(answer["analysis_summary"], indent=3)
    echo()


def _say(text: str, indent: int = 0) -> None:
    echo(fill(text, _COLUMNS, initial_indent=" " * indent, subsequent_indent=" " * max(indent, 3)))


def echo(text: str = "", *, err: bool = False) -> None:
    """Print text; nothing any more once the terminal is closed."""
    try:
        typer.echo(text, err=err)
    except OSError:
        # What is left unwritten Python would try again at its end, and exit with a code of its own.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, (sys.stderr if err else sys.stdout).fileno())
        os.close(nowhere)


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
