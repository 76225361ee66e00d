"""Events and requests without end, until it is enough."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bcs.wire import topics
from tests.kafka.services import IN_TIME_SECONDS
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform, uuids, values
from tests.support.service import Orchestrator
from tests.support.waiting import wait_until

_ASKERS = 2


class Traffic:
    """Events and requests, with their results."""

    def __init__(self, platform: Platform, orchestrator: Orchestrator, name: str) -> None:
        self.batches = [f"{name}-{number}" for number in range(5)]
        self.done = f"{name}-done"
        self.essays = 0  # sent for each batch
        self.pruned: set[str] = set()
        self.recorded: list[str] = []
        self.statuses: Counter[int] = Counter()
        self._platform, self._bos, self._enough = platform, orchestrator, False

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """While in here, it flows; at the end, all of it has been applied, unless something was lost."""
        await self._bos.complete(self.done, "spellcheck")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publish())
            for worker in range(_ASKERS):
                group.create_task(self._ask(worker))
            yield
            self._enough = True
        essays = [f"essay-{number}" for number in range(self.essays)]
        # Registered only now, each batch is complete only if none of its essays' events was lost.
        await self._platform.send(*(registered(batch, essays) for batch in self.batches))

    async def more(self, events: int = 5, requests: int = 20) -> None:
        """Wait until it has gone on for a while."""
        enough = self.essays + events, len(self.pruned) + requests
        await wait_until(lambda: (self.essays >= enough[0]) and len(self.pruned) >= enough[1], IN_TIME_SECONDS)

    async def assert_nothing_lost(self) -> None:
        """Every event counts, and so does every request that was answered with 200."""
        for batch in (*self.batches, *self.recorded):
            assert await self._bos.to_run(batch) == ["ai_feedback"], f"nothing about {batch} is lost"
        await wait_until(self._all_announced, IN_TIME_SECONDS)
        ids: dict[str, set[str]] = {}
        for record in values(await self._platform.messages(topics.PHASE_SKIPPED, self.done)):
            ids.setdefault(record["data"]["correlation_id"], set()).add(record["event_id"])
        assert all(len(copies) == 1 for copies in ids.values()), "every copy carries the same event id"

    async def _all_announced(self) -> bool:
        records = values(await self._platform.messages(topics.PHASE_SKIPPED, self.done))
        return uuids(self.pruned) <= {record["data"]["correlation_id"] for record in records}

    async def _publish(self) -> None:
        while not self._enough:
            essay = f"essay-{self.essays}"
            await self._platform.send(*(spellchecked(batch, essay) for batch in self.batches))
            self.essays += 1

    async def _ask(self, worker: int) -> None:
        asked = 0
        while not self._enough:
            correlation_id, reported = f"{self.done}-{worker}-{asked}", f"{self.done}-reported-{worker}-{asked}"
            asked += 1
            answer = await self._bos.define(self.done, correlation_id=correlation_id)
            self.statuses[answer.status] += 1
            if answer.status == 200:
                assert answer.json["pruned_phases"] == ["spellcheck"]
                self.pruned.add(correlation_id)
            answer = await self._bos.complete(reported, "spellcheck")
            self.statuses[answer.status] += 1
            if answer.status == 200:
                self.recorded.append(reported)
