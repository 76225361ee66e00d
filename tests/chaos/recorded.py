"""A scene whose service keeps a permanent record, and a view of that record from outside."""

import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncpg

from bcs.devtools.servers.embedded import HOST
from bcs.devtools.servers.postgres import PostgresServer
from bcs.domain.history import REPORTED, FactsRecorded, HistoryEntry, PipelineResolved, Position
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.postgres.gateway import ArchiveGateway
from tests.chaos.ground import Ground, prepared
from tests.chaos.load import assert_kept
from tests.chaos.scene import CHUNK, DEADLINE_SECONDS, EVENTS_A_SECOND, Scene
from tests.support.events import Event, registered
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_queues import queue_keys
from tests.support.service import BcsProcess
from tests.support.waiting import wait_until

DRAINED_SECONDS = 30
_PAGE = 1000


class RecordedScene(Scene):
    """A service with a record, under load.

    :param store_line: where Redis can be cut off, if it is cuttable.
    :param positions: of every event that was told, by batch.
    """

    def __init__(
        self, ground: Ground, process: BcsProcess, events: int, postgres: PostgresServer, store_line: FaultProxy
    ) -> None:
        super().__init__(ground, process, events)
        self.postgres, self.store_line = postgres, store_line
        self.positions: dict[str, list[Position]] = {}
        self.record = PostgresArchive(
            ArchiveGateway(postgres.url, max_connections=2, deadline_seconds=20), page_bytes=2**20
        )
        self.redis = ground.redis.nodes()

    async def tell(self) -> None:
        """Tell all events, evenly, and note where each came to lie."""
        told = self.history.told
        for start in range(0, len(told), CHUNK):
            chunk = told[start : start + CHUNK]
            async with self.telling:
                await self.send(*((one.batch, one.event) for one in chunk))
            # Evenly, at this rate.
            await anyio.sleep(CHUNK / EVENTS_A_SECOND)

    async def send(self, *events: tuple[str, Event]) -> None:
        """Send events, each with the batch that it is about."""
        places = await self.ground.platform.send(*(event for _, event in events))
        for (batch, _), where in zip(events, places, strict=True):
            self.positions.setdefault(batch, []).append(Position(where.topic, where.partition, where.offset))

    async def register(self) -> None:
        """Register the batches that are asked about, and be sure that it is known."""
        for batch in (self.callers.done, self.callers.undone):
            await self.send((batch, registered(batch, ["essay"])))
        await wait_until(lambda: self.knows(self.callers.undone))
        await wait_until(lambda: self.knows(self.callers.done))

    async def up(self) -> bool:
        """Whether the service has the record."""
        return await self.orchestrator.metric("bcs_archive_up", store="postgresql") == 1.0

    async def in_order(self) -> bool:
        """Whether the record has all that was told, and the service knows that nothing waits for it."""
        # On a busy machine the service starts before it has found PostgreSQL, and what it is told then waits in Redis.
        # The queue first: only then is the figure newer than the last entry in it.
        return await self.up() and await self.queued() == 0 == await self.orchestrator.metric("bcs_archive_backlog")

    async def assert_recorded(self, *, explained: bool = True) -> int:
        """All that was told and answered is kept: in Redis, and in the record, each entry once.

        :param explained: whether there was always room for what explains a pruning.
        :returns: how many entries the history has of facts.
        """
        tally = self.load.tally
        await assert_kept(tally, self.callers, self.history, self.ground)
        await wait_until(self._drained, DRAINED_SECONDS, description="what waited for the record is drained")
        await self.record.probe_unchanged(20)
        entries = 0
        for batch in [*self.history.batches, self.callers.done, self.callers.undone]:
            assert await self.record.state(batch) == await self.ground.store.state(batch), batch
            kept = await self._facts(batch)
            entries += len(kept)
            # What `Callers.prepare` tells has no place noted.
            expected = Counter(self.positions[batch])
            found = Counter(one.position for one in kept if one.position in expected)
            assert found == expected, f"of {batch} the history lacks an event, or has one twice"
            assert len(kept) <= sum(expected.values()) + 1
        for batch in tally.recorded:
            assert await self.record.state(batch) == await self.ground.store.state(batch), batch
            assert [one.event_type for one in await self._facts(batch)] == [REPORTED], batch
            entries += 1
        if explained:
            resolutions = [one for one in await self._entries(self.callers.done) if isinstance(one, PipelineResolved)]
            times = Counter(one.correlation_id for one in resolutions)
            # Each was asked once, on a connection that did not break.
            assert {times[request] for request in tally.pruned} <= {1}, "what was pruned is explained, and once"
        assert await self.queued(":parked") == 0
        return entries

    async def aclose(self) -> None:
        """Let go of the servers."""
        await self.record.aclose()
        await self.redis.aclose()

    async def connections(self) -> int:
        """How many connections the service has to PostgreSQL; for the end, when nobody looks at the record any more."""
        await self.record.aclose()
        connection = await asyncpg.connect(self.postgres.url)
        try:
            count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'batch-conductor-service'"
            found: int = await connection.fetchval(count)
        finally:
            await connection.close()
        return found

    async def queued(self, what: str = "") -> int:
        """How many entries wait for the record, or with ``:parked`` for nothing any more."""
        queues = (":archive", ":record", ":explanations")
        keys = [key for queue in queues for key in queue_keys(f"{self.ground.name}:", queue + what)]
        return sum([sum(await self.redis.at(key).call(("XLEN", key))) for key in keys])

    async def _drained(self) -> bool:
        return await self.queued() == 0

    async def _entries(self, batch: str) -> list[HistoryEntry]:
        entries: list[HistoryEntry] = []
        before = None
        while page := await self.record.history(batch, before=before, limit=_PAGE):
            entries += [kept.entry for kept in page if isinstance(kept.entry, HistoryEntry)]
            before = page[-1].number
        return entries

    async def _facts(self, batch: str) -> list[FactsRecorded]:
        return [entry for entry in await self._entries(batch) if isinstance(entry, FactsRecorded)]


@asynccontextmanager
async def prepared_recorded_scene(
    directory: Path, name: str, events: int, postgres: PostgresServer, *, cuttable: bool = False, **environment: Any
) -> AsyncIterator[RecordedScene]:
    """A scene whose service runs, with batches that are registered; at the end it must stop in order.

    :param cuttable: whether Redis stands behind a line.
    """
    # Its line leads to one server.
    async with (
        prepared(directory, name, on_a_cluster=False) as ground,
        FaultProxy(HOST, ground.redis.servers[0].port) as store_line,
    ):
        settings = {"BCS_REQUEST_DEADLINE_SECONDS": DEADLINE_SECONDS, "BCS_DATABASE_URL": postgres.url, **environment}
        if cuttable:
            settings["BCS_REDIS_URL"] = f"redis://{store_line.address}"
        with ground.serve("process", **settings) as process:
            await process.answers()
            scene = RecordedScene(ground, process, events, postgres, store_line)
            try:
                async with scene.orchestrator:
                    await scene.register()
                    await scene.callers.prepare(ground.platform)
                    await wait_until(scene.in_order)
                    yield scene
            finally:
                await scene.aclose()
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
