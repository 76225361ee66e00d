"""However often the intake starts again, no more is under way than the settings allow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer

from bcs.embedded import EmbeddedServer
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform, platform_broker
from tests.support.service import Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

MAX_IN_FLIGHT, MAX_POLL = 200, 100
KILLS = 3
POLLS = 10  # with so many it has read what it can


class CountingConsumer(AIOKafkaConsumer):  # type: ignore[misc] # aiokafka has no types
    """Counts the polls of those that have partitions to read."""

    polls = 0

    async def getmany(self, *partitions: Any, **options: Any) -> Any:
        records = await super().getmany(*partitions, **options)
        CountingConsumer.polls += bool(self.assignment())
        return records


@pytest.fixture
def kafka_bootstrap_servers(tmp_path: Path) -> Iterator[str]:
    with platform_broker(tmp_path / "kafka") as address:
        yield address


async def test_a_new_intake_counts_what_the_old_one_handed_over(
    kafka_bootstrap_servers: str, private_valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bcs.actors.intake.AIOKafkaConsumer", CountingConsumer)
    batches, essays = [f"batch-{number}" for number in range(30)], [f"essay-{number}" for number in range(100)]
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
        Orchestrator(service.base) as bos,
    ):
        await platform.send(*(registered(batch, essays) for batch in batches))
        await wait_until(lambda: platform.caught_up(service.group))
        private_valkey.kill()
        await platform.send(*(spellchecked(batch, essay) for essay in essays for batch in batches))
        await wait_until(lambda: depth(service) >= MAX_IN_FLIGHT)
        for killed in range(1, KILLS + 1):
            assert service.call(service.service.root.kill, "intake")
            await wait_until(lambda number=killed: restarts(service) == number)  # type: ignore[misc]
            CountingConsumer.polls = 0
            await wait_until(lambda: depth_is_bounded(service) and CountingConsumer.polls >= POLLS)
        private_valkey.restart()
        await wait_until(lambda: platform.caught_up(service.group), 30)
        for batch in batches:
            assert await bos.to_run(batch) == ["ai_feedback"]
        assert restarts(service) == KILLS


def depth(service: RunningService) -> int:
    return service.call(lambda: service.service.batches.snapshot().mailbox_depth)


def depth_is_bounded(service: RunningService) -> bool:
    under_way = depth(service)
    assert under_way <= MAX_IN_FLIGHT + MAX_POLL
    return True


def restarts(service: RunningService) -> int:
    return next(child.restarts for child in service.snapshot().children if child.name == "intake")
