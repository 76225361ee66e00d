"""The other side of Kafka: what the platform's services produce, and what they get to read."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import anyio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.structs import RecordMetadata

from bcs.devtools.servers import embedded
from bcs.devtools.servers.embedded import create_topics
from bcs.wire import topics
from bcs.wire.published import as_uuid
from tests.support.events import Event
from tests.support.waiting import wait_until

PARTITIONS = 4
# More than BCS reads.
_LARGEST_BYTES = 2 * 1024 * 1024


async def _leave(coordinator: Any) -> None:
    # In the middle of a rebalance the embedded broker would go on taking the one that left for the group's leader.
    if coordinator.generation == 0 and not coordinator._rejoin_needed_fut.done():
        coordinator.generation = 1  # whatever it is: to leave takes the member's id only
    await _leave_of_aiokafka(coordinator)


# Kafka counts the generations of a group from 1, the embedded broker from 0, which aiokafka takes for "no member": it
# does not leave, and an intake that is started again waits until the session of the one before has ended.
_leave_of_aiokafka = GroupCoordinator._maybe_leave_group
GroupCoordinator._maybe_leave_group = _leave


@contextmanager
def platform_broker(directory: Path) -> Iterator[str]:
    """The address of a broker with the platform's topics: an embedded one, unless the environment names one."""
    if servers := os.environ.get("BCS_TEST_KAFKA_BOOTSTRAP_SERVERS"):
        anyio.run(create_platform_topics, servers)
        anyio.run(assert_partitions, servers)
        yield servers
        return
    with embedded.kafka(directory) as server:
        anyio.run(create_platform_topics, server.address)
        yield server.address


async def create_platform_topics(bootstrap_servers: str) -> None:
    """Create all topics that BCS reads and writes, where they are missing."""
    await create_topics(bootstrap_servers, [*topics.CONSUMED, *topics.PUBLISHED], PARTITIONS)


async def assert_partitions(bootstrap_servers: str) -> None:
    """See to it that the platform's topics are as these tests take them to be: they may have been there before."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        described = await admin.describe_topics([*topics.CONSUMED, *topics.PUBLISHED])
    finally:
        await admin.close()
    others = {topic["topic"]: len(topic["partitions"]) for topic in described if len(topic["partitions"]) != PARTITIONS}
    assert not others, f"the tests take topics with {PARTITIONS} partitions, there are: {others}"


@asynccontextmanager
async def configured(bootstrap_servers: str, configs: Mapping[str, Mapping[str, str]]) -> AsyncIterator[None]:
    """Topics of Apache Kafka, configured otherwise until the block ends."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await _configure(admin, configs)
        yield
    finally:
        await _configure(admin, {topic: {"cleanup.policy": "delete"} for topic in configs})  # all else is as it was
        await admin.close()


async def _configure(admin: AIOKafkaAdminClient, configs: Mapping[str, Mapping[str, str]]) -> None:
    # The broker acknowledges a change before its logs obey it. It makes changes known in their order, each after its
    # logs obey the one before: so a second change, without effect, tells when they obey the first.
    for more in ({}, {"file.delete.delay.ms": "60001"}):
        expected = {topic: {**config, **more} for topic, config in configs.items()}
        await admin.alter_configs(_resources(expected))
        await wait_until(partial(_is_known, admin, expected))


async def _is_known(admin: AIOKafkaAdminClient, expected: Mapping[str, Mapping[str, str]]) -> bool:
    described = [
        resource
        for response in await admin.describe_configs(_resources(expected))
        for resource in response.to_object()["resources"]
    ]
    found = {
        resource["resource_name"]: {one["config_names"]: one["config_value"] for one in resource["config_entries"]}
        for resource in described
    }
    return found == expected


def _resources(configs: Mapping[str, Mapping[str, str]]) -> list[ConfigResource]:
    return [ConfigResource(ConfigResourceType.TOPIC, topic, dict(config)) for topic, config in configs.items()]


class Platform:
    """The services around BCS, in one: produces, reads topics from their beginning, and looks at a group's offsets."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._servers = bootstrap_servers
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap_servers, linger_ms=2, max_request_size=_LARGEST_BYTES
        )
        self._readers: dict[str, AIOKafkaConsumer] = {}
        self._read: dict[str, list[ConsumerRecord]] = {}
        self._groups: dict[str, AIOKafkaConsumer] = {}
        self._ends: dict[tuple[str, int], int] = {}

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()
        for consumer in (*self._readers.values(), *self._groups.values()):
            await consumer.stop()

    async def send(self, *events: Event, headers: Sequence[tuple[str, bytes | None]] = ()) -> list[RecordMetadata]:
        """Produce these, and wait until the broker has all of them."""
        return await self.send_raw(*((event.topic, event.key, event.value) for event in events), headers=headers)

    async def send_raw(
        self, *messages: tuple[str, bytes | None, bytes | None], headers: Sequence[tuple[str, bytes | None]] = ()
    ) -> list[RecordMetadata]:
        """The same for topic, key and value as they are."""
        sent = [await self._producer.send(topic, value, key, headers=list(headers)) for topic, key, value in messages]
        taken = list(await asyncio.gather(*sent))
        for where in taken:
            key = (where.topic, where.partition)
            self._ends[key] = max(self._ends.get(key, 0), where.offset + 1)
        return taken

    async def messages(self, topic: str, key: str | None = None) -> list[ConsumerRecord]:
        """Everything that is on a topic now, or that has a certain key."""
        if topic not in self._readers:
            reader = AIOKafkaConsumer(
                bootstrap_servers=self._servers,
                auto_offset_reset="earliest",
                fetch_max_wait_ms=20,
                isolation_level="read_committed",
            )
            self._readers[topic], self._read[topic] = reader, []
            await reader.start()
            reader.assign(_partitions(topic))
        reader, read = self._readers[topic], self._read[topic]
        ends = await reader.end_offsets(_partitions(topic))
        while any([await reader.position(partition) < end for partition, end in ends.items()]):
            for records in (await reader.getmany(timeout_ms=50)).values():
                read += records
        return [record for record in read if key is None or record.key == key.encode()]

    async def uncommitted(self, group: str) -> dict[tuple[str, int], tuple[int | None, int]]:
        """What a group has not committed exactly up to the last message sent from here.

        :returns: topic and partition to the committed offset and the one behind the last message.
        """
        if group not in self._groups:
            # Assigned by hand, it is no member of the group and disturbs nobody in it.
            watcher = AIOKafkaConsumer(bootstrap_servers=self._servers, group_id=group, enable_auto_commit=False)
            self._groups[group] = watcher
            await watcher.start()
            watcher.assign([partition for topic in topics.CONSUMED for partition in _partitions(topic)])
        # The ends are what the broker told when it took the messages: asked later, Tansu counts a whole batch as one.
        return {
            partition: (committed, end)
            for partition, end in list(self._ends.items())  # somebody may send meanwhile
            if (committed := await self._groups[group].committed(TopicPartition(*partition))) != end
        }

    async def caught_up(self, group: str) -> bool:
        """Whether a group has committed exactly up to the last message sent from here, on every partition."""
        return not await self.uncommitted(group)


def _partitions(topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, partition) for partition in range(PARTITIONS)]


def uuids(requests: Iterable[str]) -> set[str]:
    """The UUIDs by which announcements name these requests, whose correlation ids may be any text."""
    return {as_uuid(request) for request in requests}


def values(records: Iterable[ConsumerRecord]) -> list[Any]:
    """The JSON documents in these messages."""
    return [json.loads(record.value) for record in records]
