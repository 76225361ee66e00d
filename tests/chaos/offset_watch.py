"""An offset that is committed stands behind work that is durable: looked at all the time, from outside."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from bcs.contracts import topics
from bcs.domain.errors import StoreUnavailable
from bcs.store.base import StateStore
from tests.chaos.history import Told
from tests.support.kafka import PARTITIONS

_LOOK_SECONDS = 5.0
_PAUSE_SECONDS = 0.05


class OffsetWatch:
    """Looks at the committed offsets all the time: none is ever past an event whose effect is not in the store.

    :param looks: how often it has looked.
    :param behind: how many events it has found durable behind a committed offset.
    """

    def __init__(self, kafka: str, group: str, store: StateStore) -> None:
        self.looks = self.behind = 0
        self._store = store
        self._at: dict[tuple[str, int, int], Told] = {}
        self._checked: dict[TopicPartition, int] = {}
        self._watcher = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=group, enable_auto_commit=False)
        self._partitions = [TopicPartition(topic, number) for topic in topics.CONSUMED for number in range(PARTITIONS)]

    def sent(self, told: Told, topic: str, partition: int, offset: int) -> None:
        """An event lies there."""
        self._at[topic, partition, offset] = told

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """While in here, and once more at the end, it looks."""
        await self._watcher.start()
        try:
            self._watcher.assign(self._partitions)  # by hand: it is no member, and disturbs nobody
            async with anyio.create_task_group() as group:
                group.start_soon(self._look_on)
                yield
                group.cancel_scope.cancel()
            assert await self._look() == len(self._at), "in the end everything is committed, and was looked at"
        finally:
            await self._watcher.stop()

    async def _look_on(self) -> None:
        while True:
            with suppress(KafkaError, StoreUnavailable, TimeoutError):
                await self._look()
            await anyio.sleep(_PAUSE_SECONDS)

    async def _look(self) -> int:
        # The offsets first: what is durable behind them now was so, or should have been, when they were committed.
        committed = {}
        with anyio.fail_after(_LOOK_SECONDS):
            for partition in self._partitions:
                committed[partition] = await self._watcher.committed(partition) or 0
        await self._assert_durable(committed)
        for partition, offset in committed.items():
            assert offset >= self._checked.get(partition, 0), f"{partition} went backwards"
            self._checked[partition] = offset
        self.looks += 1
        self.behind = len([where for where in self._at if where[2] < self._checked[TopicPartition(*where[:2])]])
        return self.behind

    async def _assert_durable(self, committed: dict[TopicPartition, int]) -> None:
        newly: dict[str, list[tuple[tuple[str, int, int], Told]]] = {}
        for partition, offset in committed.items():
            for number in range(self._checked.get(partition, 0), offset):
                where = (partition.topic, partition.partition, number)
                if (one := self._at.get(where)) is not None:
                    newly.setdefault(one.batch, []).append((where, one))
        for batch, found in newly.items():
            state = await self._store.state(batch)
            for where, one in found:
                assert state.absorb(one.delta).empty, f"{where} is committed, and its effect is not in the store"
