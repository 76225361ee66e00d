"""The metrics of Kafka and the outbox while the intake is paused and Kafka is frozen."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.observability.failpoints import FailPoint
from bcs.wire import topics
from tests.support.events import spellchecked
from tests.support.kafka import PARTITIONS, Platform, create_platform_topics
from tests.support.service import Orchestrator, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

TOPIC = topics.SPELLCHECK_COMPLETED
LETTERS = topics.dead_letter_topic(TOPIC)
REQUEST_SECONDS = 0.3


class HeldBatch:
    """A batch whose actor stands still until it is let go; its messages stay under way."""

    def __init__(self, batch_id: str) -> None:
        self._batch_id = batch_id
        self.let_go = anyio.Event()

    async def reach(self, point: FailPoint, subject: str) -> None:
        """A `FailPointHook`."""
        if point is FailPoint.BATCH_RECEIVED and subject == self._batch_id:
            await self.let_go.wait()


async def by_partition(orchestrator: Orchestrator, name: str, topic: str = TOPIC) -> dict[int, float]:
    """A metric of a topic's partitions."""
    return {
        int(labels["partition"]): value
        for sample, labels, value in await orchestrator.samples()
        if sample == name and labels["topic"] == topic
    }


async def has_lag(orchestrator: Orchestrator, messages: int) -> bool:
    lag = await by_partition(orchestrator, "bcs_kafka_consumer_lag")
    return sorted(lag) == list(range(PARTITIONS)) and sum(lag.values()) == messages


async def has_read_one(orchestrator: Orchestrator) -> bool:
    return await orchestrator.metric("bcs_intake_in_flight") == 1


async def is_up(orchestrator: Orchestrator, value: int) -> bool:
    return await orchestrator.metric("bcs_kafka_up") == value


async def waits_longer(orchestrator: Orchestrator, seconds: float) -> bool:
    return (await orchestrator.metric("bcs_kafka_intake_lag_seconds") or 0) > seconds > 0


async def test_the_lag_is_told_while_the_intake_is_paused_and_kafka_frozen(
    private_kafka: EmbeddedServer, redis_url: str, batch: str
) -> None:
    held, other = HeldBatch(batch), f"{batch}-other"
    await create_platform_topics(private_kafka.address)
    async with (
        Platform(private_kafka.address) as platform,
        running_service(
            held.reach,
            redis_url=redis_url,
            kafka_bootstrap_servers=private_kafka.address,
            kafka_request_timeout_seconds=REQUEST_SECONDS,
            kafka_probe_interval_seconds=0.05,
            intake_max_in_flight=1,
            kafka_max_poll_records=1,
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        assert (await orchestrator.complete(other, "spellcheck")).status == 200
        for number in range(3):
            # One at a time: of several that came at once, the embedded broker's end offset counts one.
            await platform.send(spellchecked(batch, f"essay-{number}"))
            await wait_until(
                partial(has_lag, orchestrator, number + 1), description="the lag grows while the intake is paused"
            )
        await wait_until(partial(has_read_one, orchestrator))
        assert await by_partition(orchestrator, "bcs_kafka_partition_stalled") == dict.fromkeys(range(PARTITIONS), 0.0)
        assert await has_lag(orchestrator, 3)

        private_kafka.freeze()
        await orchestrator.to_run(other)  # what is pruned is announced
        await wait_until(lambda: is_up(orchestrator, 0))
        assert await has_lag(orchestrator, 3), "the last known lag stands, and bcs_kafka_up says that it is old"
        waited = await orchestrator.metric("bcs_kafka_intake_lag_seconds")
        assert waited is not None
        await wait_until(lambda: waits_longer(orchestrator, waited), description="the events wait on")
        # It is measured at intervals of its own.
        await wait_until(partial(has_backlog, orchestrator, 1))
        oldest = await orchestrator.metric("bcs_outbox_oldest_seconds")
        assert oldest is not None
        await wait_until(lambda: grows_beyond(orchestrator, oldest + 0.1))

        private_kafka.thaw()
        service.call(held.let_go.set)
        await platform.send_raw((TOPIC, batch.encode(), b"junk"))
        await wait_until(lambda: is_up(orchestrator, 1))
        await wait_until(lambda: has_lag(orchestrator, 0))
        assert await orchestrator.metric("bcs_kafka_intake_lag_seconds") == 0
        await wait_until(lambda: orchestrator.metric("bcs_dead_letters_waiting", topic=LETTERS))
        assert await orchestrator.metric("bcs_dead_letters_waiting", topic=LETTERS) == 1
        await wait_until(lambda: outbox_is_empty(orchestrator))


async def grows_beyond(orchestrator: Orchestrator, seconds: float) -> bool:
    return (await orchestrator.metric("bcs_outbox_oldest_seconds") or 0) > seconds


async def has_backlog(orchestrator: Orchestrator, count: int) -> bool:
    return await orchestrator.metric("bcs_outbox_backlog") == count


async def outbox_is_empty(orchestrator: Orchestrator) -> bool:
    return (
        await orchestrator.metric("bcs_outbox_backlog") == 0
        and await orchestrator.metric("bcs_outbox_oldest_seconds") == 0
    )
