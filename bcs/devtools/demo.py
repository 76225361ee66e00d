"""The story that `bcs dev --demo` plays: a batch of three essays, and how the answer changes as events come in."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import aiohttp
import anyio
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from bcs.devtools.output import echo, say
from bcs.http.parameters import MOST_ENTRIES
from bcs.wire import topics
from bcs.wire.producing import EventType, Sample, sample_events

_TIMEOUT_SECONDS = 30.0
_CLOSE_SECONDS = 3.0
_PHASE = "spellcheck"
_PIPELINE = "ai_feedback"
_ESSAYS = ("anna", "ben", "chloe")


class _OtherwiseError(Exception):
    """The service answered otherwise than the story has it."""


async def play(base: str, bootstrap_servers: str, batch_id: str) -> None:
    """Tell the story once, and say so in one line if something comes in between.

    :param base: where the service listens.
    :param batch_id: of the batch that the story is about.
    """
    try:
        await _play(base, bootstrap_servers, batch_id)
    except (aiohttp.ClientError, KafkaError, TimeoutError, _OtherwiseError) as error:
        echo(f"The story ends here: {type(error).__name__} {error}", err=True)


async def _play(base: str, bootstrap_servers: str, batch_id: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers)
    await producer.start()
    try:
        async with aiohttp.ClientSession(base) as client:
            _chapter(f"1. Batch {batch_id} is registered with {len(_ESSAYS)} essays.")
            say("(The first event takes a few seconds.)", indent=3, style="dim")
            await _publish(producer, EventType.ESSAYS_REGISTERED, batch_id, _ESSAYS)
            _show(await _define_until(client, batch_id, (_PHASE, _PIPELINE), f"0 of {len(_ESSAYS)}"))
            _chapter("2. Two of them are spellchecked: that completes nothing.")
            await _publish(producer, EventType.SPELLCHECK_COMPLETED, batch_id, _ESSAYS[:2])
            _show(await _define_until(client, batch_id, (_PHASE, _PIPELINE), f"2 of {len(_ESSAYS)}"))
            _chapter("3. So is the third, and the phase is pruned.")
            await _publish(producer, EventType.SPELLCHECK_COMPLETED, batch_id, _ESSAYS[2:])
            _show(
                await _define_until(client, batch_id, (_PIPELINE,)),
                f"The pruning is announced on {topics.PHASE_SKIPPED}.",
            )
            _chapter("4. Why was it pruned? The batch's history tells, newest first:")
            _recount(await _history_until_pruned(client, batch_id))
    finally:
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await producer.stop()


async def _define_until(
    client: aiohttp.ClientSession, batch_id: str, expected: Sequence[str], saying: str = ""
) -> dict[str, Any]:
    """Ask until the events have arrived: they take a moment from Kafka to Redis."""
    last_seen = ""
    body = {"batch_id": batch_id, "requested_pipeline": _PIPELINE, "correlation_id": str(uuid.uuid4())}
    with anyio.fail_after(_TIMEOUT_SECONDS):
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
    with anyio.fail_after(_TIMEOUT_SECONDS):
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
            say(f"{entry['recorded_at']}  {entry['event_type']}", indent=3)
        elif _PHASE in entry["pruned_phases"]:
            [why] = [decision["reason_text"] for decision in entry["decisions"] if decision["phase"] == _PHASE]
            say(f"{entry['recorded_at']}  {_PHASE} pruned: {why}", indent=3, marked=rf"{_PHASE} pruned")
    echo()


def _chapter(title: str) -> None:
    say(title, style="bold")


def _show(answer: dict[str, Any], *more: str) -> None:
    say(f"final_pipeline: {json.dumps(answer['final_pipeline'])}", indent=3, marked=r'"\w+"')
    for text in (answer["analysis_summary"], *more):
        say(text, indent=3)
    echo()


async def _publish(producer: AIOKafkaProducer, event_type: EventType, batch_id: str, essays: Sequence[str]) -> None:
    about = Sample(batch_id=batch_id, completed=essays)
    for event in sample_events(event_type, about, now=datetime.now(UTC)):
        await producer.send_and_wait(event_type.topic, json.dumps(event).encode(), event_type.key(event))
