"""Messages in the producer: none delays other partitions, and each is reported."""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka.errors import KafkaTimeoutError

from bcs.actors.publishing import publish_all
from bcs.storage.ports import Leased, LeasedMessage
from bcs.wire import topics
from bcs.wire.published import OutboundMessage
from tests.support.kafka import PARTITIONS, Platform

pytestmark = pytest.mark.anyio

DEAD = 1
TIMEOUT_SECONDS = 1.0


class Leaderless(AIOKafkaProducer):  # type: ignore[misc] # aiokafka has no types
    """A real producer, one of whose partitions takes nothing: it waits as aiokafka does for a leader."""

    tried: int = 0

    async def send(self, topic: str, value: Any = None, key: Any = None, partition: Any = None, **rest: Any) -> Any:
        if partition == DEAD:
            self.tried += 1
            # As long as aiokafka would wait for a leader.
            await anyio.sleep(TIMEOUT_SECONDS)
            raise KafkaTimeoutError
        return await super().send(topic, value, key, partition, **rest)


def leased(name: str, count: int) -> list[LeasedMessage]:
    """Messages whose keys begin with a unique name."""
    keys = [f"{name}-{number}".encode() for number in range(count)]
    return [
        Leased(str(number), OutboundMessage("phase_skipped", topics.PHASE_SKIPPED, key, b"x"))
        for number, key in enumerate(keys)
    ]


async def messages_of(name: str, kafka_bootstrap_servers: str) -> list[ConsumerRecord]:
    async with Platform(kafka_bootstrap_servers) as platform:
        records = await platform.messages(topics.PHASE_SKIPPED)
    return [record for record in records if record.key.startswith(f"{name}-".encode())]


async def test_a_partition_without_a_leader_does_not_delay_others(kafka_bootstrap_servers: str, batch: str) -> None:
    entries, notes = leased(batch, 100), dict[str, BaseException | None]()
    producer = Leaderless(bootstrap_servers=kafka_bootstrap_servers)
    await producer.start()
    try:
        with anyio.fail_after(TIMEOUT_SECONDS * 3):
            await publish_all(
                producer, entries, TIMEOUT_SECONDS, lambda entry, error: notes.update({entry.entry_id: error})
            )
    finally:
        await producer.stop()
    assert notes.keys() == {entry.entry_id for entry in entries}, "each is told of"
    records = await messages_of(batch, kafka_bootstrap_servers)
    arrived = {record.key for record in records}
    assert {record.partition for record in records} == set(range(PARTITIONS)) - {DEAD}
    delivered = {entry.entry_id for entry in entries if entry.message.key in arrived}
    assert delivered == {entry_id for entry_id, error in notes.items() if error is None}
    failed = Counter(type(error) for error in notes.values() if error is not None)
    assert failed == {KafkaTimeoutError: 1, TimeoutError: 100 - len(delivered) - 1}
    assert producer.tried == 1, "the others would wait as long, one after the other"


async def test_messages_go_to_the_partitions_that_the_producer_would_choose(
    kafka_bootstrap_servers: str, batch: str
) -> None:
    entries = leased(batch, 50)
    plain = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap_servers)
    await plain.start()
    try:
        for entry in entries:
            await plain.send_and_wait(topics.PHASE_SKIPPED, b"plain", entry.message.key)
        await publish_all(plain, entries, 10.0, lambda *_: None)
    finally:
        await plain.stop()
    places: dict[bytes, list[int]] = {}
    for record in await messages_of(batch, kafka_bootstrap_servers):
        places.setdefault(record.key, []).append(record.partition)
    assert places.keys() == {entry.message.key for entry in entries}
    # Each key twice, from the producer itself and from us, and on one partition.
    assert {(len(partitions), len(set(partitions))) for partitions in places.values()} == {(2, 1)}
    assert len({partition for partitions in places.values() for partition in partitions}) > 1
