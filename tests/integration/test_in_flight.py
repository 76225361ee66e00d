"""The intake's memory is limited: messages in flight, over all restarts, and finished offsets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import anyio
import pytest

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.kafka.isolation import IsolatingConsumer
from bcs.observability.failpoints import FailPoint
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

MAX_IN_FLIGHT, MAX_POLL = 200, 100
KILLS = 2
POLLS = 4  # each may give MAX_POLL: with so many it has read what it can


class CountingConsumer(IsolatingConsumer):
    """Counts the polls of those that have partitions to read, and the messages that they give by their keys."""

    polls = 0
    messages: ClassVar[Counter[bytes | None]] = Counter()

    async def getmany(self, *partitions: Any, **options: Any) -> Any:
        records = await super().getmany(*partitions, **options)
        CountingConsumer.polls += bool(self.assignment())
        CountingConsumer.messages.update(record.key for found in records.values() for record in found)
        return records


@pytest.mark.release
async def test_a_new_intake_counts_the_messages_of_the_old_intake(
    kafka_bootstrap_servers: str,
    private_valkey: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bcs.actors.ingest.intake.IsolatingConsumer", CountingConsumer)
    batches, essays = [f"batch-{number}" for number in range(30)], [f"essay-{number}" for number in range(30)]
    async with (
        Platform(kafka_bootstrap_servers) as platform,
        running_service(
            redis_url=f"redis://{private_valkey.address}",
            redis_deadline_seconds=0.4,
            redis_breaker_open_seconds=0.3,
            kafka_bootstrap_servers=kafka_bootstrap_servers,
            kafka_max_poll_records=MAX_POLL,
            intake_max_in_flight=MAX_IN_FLIGHT,
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        await platform.send(*(registered(batch, essays) for batch in batches))
        await wait_until(lambda: platform.caught_up(service.group))
        private_valkey.kill()
        await platform.send(*(spellchecked(batch, essay) for essay in essays for batch in batches))
        await wait_until(lambda: depth(service) >= MAX_IN_FLIGHT)
        for killed in range(1, KILLS + 1):
            assert service.call(service.service.root.kill, "intake")
            await wait_until(lambda number=killed: service.restarts()["intake"] == number)  # type: ignore[misc]
            CountingConsumer.polls = 0
            await wait_until(lambda: depth_is_bounded(service) and CountingConsumer.polls >= POLLS)
        private_valkey.restart()
        await wait_until(lambda: platform.caught_up(service.group))
        for batch in batches:
            assert await orchestrator.to_run(batch) == ["ai_feedback"]
        assert service.restarts()["intake"] == KILLS


async def test_reading_pauses_while_too_many_messages_are_in_flight(
    kafka_bootstrap_servers: str, unique_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bcs.actors.ingest.intake.IsolatingConsumer", CountingConsumer)
    at_a_time, in_flight, count = 10, 20, 100
    batches = [unique_name("batch") for _ in range(count)]
    unstuck = anyio.Event()

    async def get_stuck(point: FailPoint, _: str) -> None:
        if point is FailPoint.BATCH_RECEIVED:
            await unstuck.wait()

    async with (
        Platform(kafka_bootstrap_servers) as platform,
        running_service(
            get_stuck,
            use_mock_repository=True,
            kafka_bootstrap_servers=kafka_bootstrap_servers,
            kafka_max_poll_records=at_a_time,
            intake_max_in_flight=in_flight,
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        await platform.send(*(spellchecked(batch, "essay") for batch in batches))
        try:
            await wait_until(lambda: depth(service) >= in_flight)
            CountingConsumer.polls = 0
            await wait_until(lambda: CountingConsumer.polls >= POLLS)
            assert depth(service) < in_flight + at_a_time
            # No message counts as finished for having been handed over.
            assert {committed for committed, _ in (await platform.uncommitted(service.group)).values()} == {None}
        finally:
            service.call(unstuck.set)
        await wait_until(lambda: platform.caught_up(service.group))
        for batch in batches[::20]:
            assert await orchestrator.to_run(batch) == ["ai_feedback"]


async def test_finished_offsets_behind_a_stuck_message_are_limited(
    kafka_bootstrap_servers: str, unique_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bcs.actors.ingest.intake.IsolatingConsumer", CountingConsumer)
    key = unique_name("key").encode()
    at_a_time, in_flight, remembered, count = 5, 10, 200, 400
    unstuck = anyio.Event()

    async def get_stuck(point: FailPoint, subject: str) -> None:
        if point is FailPoint.BATCH_RECEIVED and subject == "stuck":
            await unstuck.wait()

    async with (
        Platform(kafka_bootstrap_servers) as platform,
        running_service(
            get_stuck,
            use_mock_repository=True,
            kafka_bootstrap_servers=kafka_bootstrap_servers,
            kafka_max_poll_records=at_a_time,
            intake_max_in_flight=in_flight,
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        batches = ["stuck", *(f"behind-{number}" for number in range(count))]
        events = [spellchecked(batch, "essay") for batch in batches]
        # One key: one partition, on which nothing can be committed past the stuck one.
        await platform.send_raw(*((event.topic, key, event.value) for event in events))
        try:
            await wait_until(lambda: CountingConsumer.messages[key] >= remembered)
            CountingConsumer.polls = 0
            await wait_until(lambda: CountingConsumer.polls >= POLLS)
            assert CountingConsumer.messages[key] < remembered + at_a_time
            await wait_until(lambda: depth(service) == 1, description="one is under way: for its sake it could go on")
        finally:
            service.call(unstuck.set)
        await wait_until(lambda: platform.caught_up(service.group))
        for batch in batches[::100]:  # the stuck one and the last one are among them
            assert await orchestrator.to_run(batch) == ["ai_feedback"]
        assert service.restarts()["intake"] == 0


def depth(service: RunningService) -> int:
    return service.call(lambda: service.service.batches.snapshot().mailbox_depth)


def depth_is_bounded(service: RunningService) -> bool:
    under_way = depth(service)
    assert under_way <= MAX_IN_FLIGHT + MAX_POLL
    return True
