"""A Kafka client whose actor is killed is gone for certain, whatever it was doing: it leaves no ghost in its group."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from bcs.actors.ingest.session import PollSession
from bcs.kafka.status import close
from bcs.observability.failpoints import FailPoint
from bcs.wire import topics
from tests.support.events import spellchecked
from tests.support.kafka import PARTITIONS, Platform
from tests.support.service import RunningService, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def another_member(kafka: str, group: str) -> AsyncIterator[AIOKafkaConsumer]:
    """A member of the group that only heartbeats and takes its share of the partitions."""
    consumer = AIOKafkaConsumer(
        *topics.CONSUMED,
        bootstrap_servers=kafka,
        group_id=group,
        enable_auto_commit=False,
        session_timeout_ms=2000,
        heartbeat_interval_ms=200,
        rebalance_timeout_ms=30_000,
        request_timeout_ms=35_000,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.start)  # returns only when the rebalance is over
        try:
            yield consumer
        finally:
            tasks.cancel_scope.cancel()
            await close(consumer, 1.0)


def shared(service: RunningService, other: AIOKafkaConsumer) -> bool:
    """Whether each has some of the partitions, and there is none that neither has."""
    ours, theirs = {TopicPartition(*key) for key in service.service.kafka.assigned}, other.assignment()
    everything = {TopicPartition(topic, number) for topic in topics.CONSUMED for number in range(PARTITIONS)}
    return bool(ours and theirs and not ours & theirs and ours | theirs == everything)


@pytest.mark.release
async def test_an_intake_killed_while_it_hands_partitions_over_leaves_no_ghost(
    kafka_bootstrap_servers: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, revoking = threading.Event(), threading.Event()
    let_go: list[anyio.Event] = []

    async def hold(point: FailPoint, subject: str) -> None:
        if point is FailPoint.BATCH_RECEIVED and subject == "held" and not held.is_set():
            let_go.append(anyio.Event())
            held.set()
            await let_go[0].wait()

    revoke = PollSession.on_partitions_revoked

    async def noticed(self: PollSession, revoked: Iterable[TopicPartition]) -> None:
        partitions = list(revoked)
        if partitions:
            revoking.set()
        await revoke(self, partitions)

    monkeypatch.setattr(PollSession, "on_partitions_revoked", noticed)
    async with (
        Platform(kafka_bootstrap_servers) as platform,
        running_service(
            hold,
            redis_url=redis_url,
            kafka_bootstrap_servers=kafka_bootstrap_servers,
            # The broker waits so long for the one that died, which did not leave in order.
            kafka_session_timeout_seconds=1.0,
        ) as service,
    ):
        await platform.send(spellchecked("held", "essay"))
        await wait_until(held.is_set)
        try:
            async with another_member(kafka_bootstrap_servers, service.group) as other:
                # What is held must be finished before partitions are handed over: in the middle of that it is killed.
                await wait_until(revoking.is_set)
                assert service.call(service.service.root.kill, "intake")
                await wait_until(partial(shared, service, other))
        finally:
            service.call(let_go[0].set)
        await wait_until(partial(platform.caught_up, service.group))


async def test_a_client_that_fails_during_its_stop_is_closed_anyway(
    kafka_bootstrap_servers: str, unique_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = AIOKafkaConsumer(
        *topics.CONSUMED,
        bootstrap_servers=kafka_bootstrap_servers,
        group_id=unique_name("group"),
        session_timeout_ms=1000,
        heartbeat_interval_ms=200,
    )
    await consumer.start()

    async def fail() -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(consumer._fetcher, "close", fail)
    connections = list(consumer._client._conns.values())
    assert any(connection.connected() for connection in connections)
    await close(consumer, 1.0)
    assert not any(connection.connected() for connection in connections)
    monkeypatch.undo()
    await consumer._fetcher.close()
