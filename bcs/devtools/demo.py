"""The story of `bcs dev --demo`: a batch of three essays, and how the answer changes as events arrive."""

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
from bcs.supervision.errors import describe
from bcs.wire import topics
from bcs.wire.producing import EventType, Sample, sample_events

_TIMEOUT_SECONDS = 30.0
_CLOSE_SECONDS = 3.0
_PHASE = "spellcheck"
_PIPELINE = "ai_feedback"
_ESSAYS = ("anna", "ben", "chloe")


class _UnexpectedAnswerError(Exception):
    """The service did not answer as the story expects."""


async def play(base: str, bootstrap_servers: str, batch_id: str) -> None:
    """Play the story once; a failure ends the story with one line.

    :param base: the URL of the service.
    :param batch_id: the id of the story's batch.
    """
    try:
        await _play(base, bootstrap_servers, batch_id)
    except (aiohttp.ClientError, KafkaError, TimeoutError, _UnexpectedAnswerError) as error:
        echo(f"The story ends here: {describe(error)}", err=True)


async def _play(base: str, bootstrap_servers: str, batch_id: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers)
    await producer.start()
    try:
        async with aiohttp.ClientSession(base) as client:
            _chapter(f"1. Batch {batch_id} is registered with {len(_ESSAYS)} essays.")
            say("(The first event takes a few seconds.)", indent=3, style="dim")
            await _publish(producer, EventType.ESSAYS_REGISTERED, batch_id, _ESSAYS)
            _show(await _define_until(client, batch_id, (_PHASE, _PIPELINE), f"0 of {len(_ESSAYS)}"))
            _chapter("2. Two of the essays are spellchecked; the phase is not complete yet.")
            await _publish(producer, EventType.SPELLCHECK_COMPLETED, batch_id, _ESSAYS[:2])
            _show(await _define_until(client, batch_id, (_PHASE, _PIPELINE), f"2 of {len(_ESSAYS)}"))
            _chapter("3. The third essay is spellchecked, and the phase is pruned.")
            await _publish(producer, EventType.SPELLCHECK_COMPLETED, batch_id, _ESSAYS[2:])
            _show(
                await _define_until(client, batch_id, (_PIPELINE,)),
                f"The pruning is announced on {topics.PHASE_SKIPPED}.",
            )
            _chapter("4. Why was the phase pruned? The batch's history shows it, newest first:")
            _show_history(await _history_until_pruned(client, batch_id))
    finally:
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await producer.stop()


async def _define_until(
    client: aiohttp.ClientSession, batch_id: str, expected: Sequence[str], summary_part: str = ""
) -> dict[str, Any]:
    """Repeat the request until the events have arrived in Redis, which takes a short time."""
    last_seen = ""
    body = {"batch_id": batch_id, "requested_pipeline": _PIPELINE, "correlation_id": str(uuid.uuid4())}
    with anyio.fail_after(_TIMEOUT_SECONDS):
        while True:
            # Polls with GET, because each resolution would add an entry to the history.
            async with client.get(f"/internal/v1/batches/{batch_id}") as response:
                known, seen = response.status == HTTPStatus.OK, await response.text()
            if known and seen != last_seen:
                last_seen = seen
                async with client.post("/internal/v1/pipelines/define", json=body) as response:
                    answer: dict[str, Any] = await response.json(content_type=None)
                if response.status != HTTPStatus.OK:
                    raise _UnexpectedAnswerError(answer.get("detail", response.status))
                if answer["final_pipeline"] == list(expected) and summary_part in answer["analysis_summary"]:
                    return answer
            await anyio.sleep(0.1)


async def _history_until_pruned(client: aiohttp.ClientSession, batch_id: str) -> list[dict[str, Any]]:
    """Repeat the request until the explanation of the pruning has arrived in PostgreSQL, which takes a short time."""
    with anyio.fail_after(_TIMEOUT_SECONDS):
        while True:
            async with client.get(f"/internal/v1/batches/{batch_id}/history?limit={MOST_ENTRIES}") as response:
                page: dict[str, Any] = await response.json(content_type=None)
            entries: list[dict[str, Any]] = page.get("entries", [])
            if any(_PHASE in entry.get("pruned_phases", ()) for entry in entries):
                return entries
            await anyio.sleep(0.1)


def _show_history(entries: Sequence[dict[str, Any]]) -> None:
    """Print the pruning with its reason, and the events before it."""
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
