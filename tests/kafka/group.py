"""A consumer group as Apache Kafka sees it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from bcs.wire import topics
from tests.kafka.services import IN_TIME_SECONDS
from tests.support.kafka import PARTITIONS
from tests.support.waiting import wait_until


class Group:
    """Its members and its offsets.

    :param history: for each partition, the committed offset at each look.
    """

    def __init__(self, kafka: str, name: str) -> None:
        self.name, self.history = name, dict[TopicPartition, list[int]]()
        self._admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        self._watcher = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=name, enable_auto_commit=False)
        self._partitions = [TopicPartition(topic, number) for topic in topics.CONSUMED for number in range(PARTITIONS)]

    async def __aenter__(self) -> Self:
        await self._admin.start()
        await self._watcher.start()
        self._watcher.assign(self._partitions)  # by hand: no member, and disturbs nobody
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._watcher.stop()
        await self._admin.close()

    async def is_stable_with(self, members: int) -> bool:
        """True if the group has so many members, and each has its partitions."""
        [response] = await self._admin.describe_consumer_groups([self.name])
        [(_, _, state, _, _, present, *_)] = response.groups
        return bool(state == ("Stable" if members else "Empty") and len(present) == members)

    async def stable_with(self, members: int) -> None:
        """Wait for that."""
        # A broker that has just started has no coordinator yet.
        missing = (GroupCoordinatorNotAvailableError,)
        await wait_until(partial(self.is_stable_with, members), IN_TIME_SECONDS, ignoring=missing)

    async def committed(self) -> dict[TopicPartition, int]:
        """The committed offsets; each result is kept in ``history``."""
        found = {}
        for partition in self._partitions:
            offset = await self._watcher.committed(partition)
            found[partition] = offset or 0
            self.history.setdefault(partition, []).append(offset or 0)
        return found

    async def behind(self) -> set[TopicPartition]:
        """The partitions that have something that is not committed."""
        ends = await self._watcher.end_offsets(self._partitions)
        starts = await self._watcher.beginning_offsets(self._partitions)
        committed = await self.committed()
        # Where all that there was has expired, there is nothing to commit.
        return {key for key in self._partitions if max(committed[key], starts[key]) != ends[key]}

    async def at_the_end(self) -> bool:
        """Whether everything that is on the topics now is committed."""
        return not await self.behind()

    async def caught_up(self) -> None:
        """Wait for that."""
        await wait_until(self.at_the_end, IN_TIME_SECONDS, description="all that was sent is committed")

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Look all the time; at the end, no offset ever went backwards."""

        async def look() -> None:
            while True:
                await self.committed()

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.wait([looking])
        steps = {partition: list(pairwise(offsets)) for partition, offsets in self.history.items()}
        backwards = {partition: [step for step in steps[partition] if step[0] > step[1]] for partition in steps}
        assert {partition: down for partition, down in backwards.items() if down} == {}
