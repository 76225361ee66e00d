"""Writers and readers of batches on a Redis Cluster, who note what was acknowledged and what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import anyio

from bcs.domain.state import delta_of
from bcs.errors import StoreUnavailable
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.redis.batch_store import RedisStateStore
from tests.integration.stores import completed
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import wait_until

_BATCHES = [f"batch-{number}" for number in range(200)]
_WRITERS = 3
_PAUSE_SECONDS = 0.01
_PING_SECONDS = 0.2


class ClusterLoad:
    """What several stores do at the same time.

    :param archive: gets each fact before the store; None without an archive.
    :param seed: of the choice of batches.
    :ivar acknowledged: each batch's essays, with the time of the acknowledgement by the clock of the event loop.
    :ivar wrong: the batches of which an answer knew fewer essays than had been acknowledged before.
    """

    def __init__(self, stores: list[RedisStateStore], archive: PostgresArchive | None = None, seed: int = 1) -> None:
        self.acknowledged: dict[str, dict[str, float]] = {batch: {} for batch in _BATCHES}
        self.counts: Counter[str] = Counter()
        self.slowest_seconds = 0.0
        self.wrong: set[str] = set()
        self._stores = stores
        self._archive = archive
        self._random = Random(seed)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write and read during a block, which begins once every store has been used."""
        async with anyio.create_task_group() as group:
            for number, store in enumerate(self._stores):
                group.start_soon(self._ping, store)
                for writer in range(_WRITERS):
                    group.start_soon(self._write_and_read, store, f"{number}.{writer}")
            await wait_until(lambda: self.counts["commits"] > len(_BATCHES))
            yield
            group.cancel_scope.cancel()

    async def until_all_answer(self) -> float:
        """Wait until every batch is answered for by every store.

        :returns: how many seconds that took.
        """
        began = anyio.current_time()
        for store in self._stores:
            for batch in _BATCHES:
                await wait_until(lambda store=store, batch=batch: answers(store, batch), ignoring=(StoreUnavailable,))  # type: ignore[misc]
        return anyio.current_time() - began

    async def lost(self) -> dict[str, set[str]]:
        """The acknowledged essays that a batch does not have."""
        lost = {}
        for batch, essays in self.acknowledged.items():
            if missing := essays.keys() - set((await self._stores[-1].state(batch)).first_seen_us):
                lost[batch] = missing
        return lost

    async def _ping(self, store: RedisStateStore) -> None:
        while True:
            try:
                await store.ping()
            except StoreUnavailable:
                self.counts["failed pings"] += 1
            # As often as the service asks for signs of life.
            await anyio.sleep(_PING_SECONDS)

    async def _write_and_read(self, store: RedisStateStore, writer: str) -> None:
        number = 0
        while True:
            batch, essay = self._random.choice(_BATCHES), f"{writer}.{number}"
            number += 1
            delta = delta_of([completed(essay)])
            if self._archive:
                await self._archive.add_states({batch: delta})
            watch = Stopwatch()
            try:
                await store.commit(batch, delta)
                self.acknowledged[batch][essay] = anyio.current_time()
                self.counts["commits"] += 1
            except StoreUnavailable:
                self.counts["failed commits"] += 1
            self._note_time(watch)
            known, watch = len(self.acknowledged[batch]), Stopwatch()
            try:
                summary = await store.summary(batch)
                self.counts["answers"] += 1
                if summary.known < known:
                    self.wrong.add(batch)
            except StoreUnavailable:
                self.counts["failed answers"] += 1
            self._note_time(watch)
            # Callers who never pause would measure the machine.
            await anyio.sleep(_PAUSE_SECONDS)

    def _note_time(self, watch: Stopwatch) -> None:
        self.slowest_seconds = max(self.slowest_seconds, watch.seconds)


async def answers(store: RedisStateStore, batch: str) -> bool:
    """True once the store answers for a batch."""
    await store.summary(batch)
    return True
