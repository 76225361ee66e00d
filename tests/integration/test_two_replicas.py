"""Replicas share the work and the state, and one that comes and goes takes nothing with it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import anyio
import pytest

from bcs.domain.facts import Outcome
from bcs.domain.state import Mark
from tests.support.events import Event, registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until

# At every commit: tests/kafka/test_groups.py on Apache Kafka.
pytestmark = [pytest.mark.anyio, pytest.mark.release]

BATCHES = [f"batch-{number}" for number in range(20)]
ESSAYS = [f"essay-{number}" for number in range(20)]
EVENTS, CHUNK, VISITS = 1200, 25, 1
START = datetime(2025, 1, 1, tzinfo=UTC)
Model = dict[str, dict[str, Mark]]  # batch to essay to what is said last of it, by the time in the event


def history(seed: int) -> tuple[list[Event], Model]:
    """Events in another order than that of their times; in every second batch each essay succeeds in the end."""
    chance = random.Random(seed)
    events: list[Event] = []
    model: Model = {batch: {} for batch in BATCHES}
    of_each_essay = EVENTS // len(BATCHES) // len(ESSAYS)
    for number, batch in enumerate(BATCHES):
        for essay in ESSAYS:
            for step in range(of_each_essay):
                last = step == of_each_essay - 1
                completed = (number % 2 == 0) if last else chance.random() < 0.5
                after_us = (step * 1_000 + chance.randrange(1_000)) * 1_000
                at = START + timedelta(microseconds=after_us)
                events.append(spellchecked(batch, essay, "completed" if completed else "failed", at.isoformat()))
                at_us = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
                model[batch][essay] = Mark(Outcome.COMPLETED if completed else Outcome.FAILED, at_us)
    chance.shuffle(events)
    return events, model


async def test_a_replica_that_comes_and_goes_takes_nothing_with_it(
    kafka_bootstrap_servers: str, redis_url: str, redis_key_prefix: str
) -> None:
    events, model = history(7)

    @asynccontextmanager
    async def replica(name: str) -> AsyncIterator[RunningService]:
        async with running_service(
            redis_url=redis_url,
            redis_key_prefix=redis_key_prefix,
            kafka_bootstrap_servers=kafka_bootstrap_servers,
            kafka_consumer_group_id=redis_key_prefix,
            instance_name=name,
        ) as service:
            yield service

    async with Platform(kafka_bootstrap_servers) as platform, replica("first") as first, replica("second") as second:
        await platform.send(*(registered(batch, ESSAYS) for batch in BATCHES))
        await wait_until(lambda: has_partitions(first) and has_partitions(second))
        over = anyio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publish(platform, redis_key_prefix, events, over))
            for _ in range(VISITS):
                async with replica("third") as third, Orchestrator(third.base) as orchestrator:
                    await wait_until(partial(applied, orchestrator), description="it has got to work")
            over.set()
        await wait_until(lambda: platform.caught_up(redis_key_prefix))
        for service in (first, second):
            async with Orchestrator(service.base) as orchestrator:
                assert await applied(orchestrator) > 0
                for batch, marks in model.items():
                    done = all(mark.outcome is Outcome.COMPLETED for mark in marks.values())
                    assert await orchestrator.to_run(batch) == [*([] if done else ["spellcheck"]), "ai_feedback"]
                assert service.restarted() == []
                assert not await orchestrator.metric("bcs_actor_restarts_total", actor="batches/*")
        for batch, marks in model.items():
            state = await asyncio.to_thread(first.run, first.service.store.state, batch)
            assert state.essay_marks == {"spellcheck": marks}


async def publish(platform: Platform, group: str, events: list[Event], over: anyio.Event) -> None:
    """As fast as the replicas take it, and all that is left once the visits are over."""

    async def next_one() -> bool:
        return over.is_set() or await platform.caught_up(group)

    for start in range(0, len(events), CHUNK):
        await platform.send(*events[start : start + CHUNK])
        await wait_until(next_one)


def has_partitions(service: RunningService) -> bool:
    return bool(service.service.kafka.assigned)


async def applied(orchestrator: Orchestrator) -> float:
    return sum(
        value
        for name, labels, value in await orchestrator.samples()
        if name == "bcs_events_processed_total" and labels["outcome"] == "applied"
    )
