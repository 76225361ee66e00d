"""An offset that is committed stands behind work that is durable: looked at all the time, from outside."""

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from bcs.errors import StoreUnavailable
from bcs.storage.ports import StateStore
from bcs.wire import topics
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
        self._told = 0
        # Those that were not found durable behind a committed offset yet; in no order, as acknowledgements have none.
        self._ahead: defaultdict[TopicPartition, dict[int, Told]] = defaultdict(dict)
        self._committed: dict[TopicPartition, int] = {}
        self._watcher = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=group, enable_auto_commit=False)
        self._partitions = [TopicPartition(topic, number) for topic in topics.CONSUMED for number in range(PARTITIONS)]

    def sent(self, told: Told, topic: str, partition: int, offset: int) -> None:
        """An event lies there."""
        self._told += 1
        self._ahead[TopicPartition(topic, partition)][offset] = told

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
            await self._look()
            assert self.behind == self._told, "in the end everything is committed, and was looked at"
        finally:
            await self._watcher.stop()

    async def _look_on(self) -> None:
        while True:
            with suppress(KafkaError, StoreUnavailable, TimeoutError):
                await self._look()
            # Offsets are sampled: nobody tells when they move.
            await anyio.sleep(_PAUSE_SECONDS)

    async def _look(self) -> None:
        # The offsets first: what is durable behind them now was so, or should have been, when they were committed.
        committed = {}
        with anyio.fail_after(_LOOK_SECONDS):
            for partition in self._partitions:
                committed[partition] = await self._watcher.committed(partition) or 0
        await self._assert_durable(committed)
        for partition, offset in committed.items():
            assert offset >= self._committed.get(partition, 0), f"{partition} went backwards"
        self._committed = committed
        self.looks += 1

    async def _assert_durable(self, committed: dict[TopicPartition, int]) -> None:
        # Also those that we are told of only after a commit past them.
        found: defaultdict[str, list[tuple[TopicPartition, int, Told]]] = defaultdict(list)
        for partition, offset in committed.items():
            for number, told in self._ahead[partition].items():
                if number < offset:
                    found[told.batch].append((partition, number, told))
        for batch, events in found.items():
            state = await self._store.state(batch)
            for partition, number, told in events:
                durable = state.merge(told.delta).empty
                assert durable, f"{partition} is committed past {number}, whose effect is not in the store"
                del self._ahead[partition][number]
                self.behind += 1
