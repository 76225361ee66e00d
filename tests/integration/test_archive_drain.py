"""Entries that wait in Redis reach a slow PostgreSQL, also large ones."""

from __future__ import annotations

import gc
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import asyncpg
import pytest

from bcs.domain.facts import PhaseOutcome
from bcs.domain.history import FactsRecorded
from bcs.storage.archive import Archive
from tests.integration.service_with_archive import ServiceWithArchive
from tests.support.history_entries import AT_US, consumed
from tests.support.redis_queues import queue_keys
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

DEADLINE_SECONDS = 0.2
SLOW = "slow"
# PostgreSQL takes so long for each entry.
TAKE_TIME = """
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(CASE WHEN NEW.event_id = '{slow}' THEN {slow_seconds} ELSE {seconds} END);
    RETURN NEW;
END $$;
CREATE TRIGGER take_time BEFORE INSERT ON history FOR EACH ROW EXECUTE FUNCTION take_time()
"""


@asynccontextmanager
async def slow_archive(
    directory: Path, database_url: str, seconds: float, slow_seconds: float = 0.0
) -> AsyncIterator[tuple[ServiceWithArchive, Archive]]:
    """A service whose PostgreSQL is away for now, and slow as soon as it is back."""
    async with ServiceWithArchive(
        directory, database_url, database_probe_interval_seconds=0.05, archive_drain_deadline_seconds=DEADLINE_SECONDS
    ) as setup:
        connection = await asyncpg.connect(database_url)
        try:
            await connection.execute(TAKE_TIME.format(slow=SLOW, seconds=seconds, slow_seconds=slow_seconds))
        finally:
            await connection.close()
        setup.database_proxy.refuse()
        await setup.database_proxy.cut()
        archive = setup.running.service.persistence.archive
        assert archive is not None
        yield setup, archive


async def queue(setup: ServiceWithArchive, archive: Archive, entries: Sequence[FactsRecorded]) -> None:
    await anyio.to_thread.run_sync(setup.running.run, lambda: archive.backlog.append(entries))


async def test_a_backlog_too_large_for_one_statement_is_drained_in_parts(
    tmp_path: Path, database_url: str, batch: str
) -> None:
    entries = [consumed(f"{batch}-{number}") for number in range(8)]
    async with slow_archive(tmp_path, database_url, DEADLINE_SECONDS / 5) as (setup, archive):
        await queue(setup, archive, entries)
        setup.database_proxy.accept()
        await setup.wait_for_archive()
        for entry in entries:
            assert await setup.history_facts(entry.batch_id) == [entry.facts]


@pytest.mark.release
async def test_an_entry_that_is_always_late_does_not_block_others(
    tmp_path: Path, database_url: str, batch: str
) -> None:
    slow, *others = (consumed(f"{batch}-{number}", event_id=SLOW if number == 0 else None) for number in range(4))
    async with slow_archive(tmp_path, database_url, 0.0, slow_seconds=DEADLINE_SECONDS * 100) as (setup, archive):
        await queue(setup, archive, [slow, *others])
        setup.database_proxy.accept()

        async def parked_beside_others() -> bool:
            # An entry is parked only while PostgreSQL takes others.
            await queue(setup, archive, [consumed(f"{batch}-{uuid.uuid4().hex}")])
            return await setup.orchestrator.metric("bcs_archive_entries_parked_total") == 1

        await wait_until(parked_beside_others)
        await setup.wait_for_archive()
        for entry in others:
            assert await setup.history_facts(entry.batch_id) == [entry.facts]
        assert await setup.history_facts(slow.batch_id) == []
        [key] = [key for key in queue_keys("bcs:", ":archive:parked") if await setup.redis.exists(key)]
        parked: Any = await setup.redis.xrange(key)
        assert [entry[b"problem"] for _, entry in parked] == [
            b"postgresql does not accept this write: the entry missed the deadline 3 times"
        ]
        assert await setup.orchestrator.metric("bcs_archive_entries_parked_total") == 1


@pytest.mark.release
@pytest.mark.serial
async def test_large_entries_are_drained_without_blocking_the_loop(
    tmp_path: Path, database_url: str, batch: str
) -> None:
    async with ServiceWithArchive(tmp_path, database_url, database_probe_interval_seconds=0.05) as setup:
        setup.database_proxy.refuse()
        await setup.database_proxy.cut()
        archive = setup.running.service.persistence.archive
        assert archive is not None
        names = [f"{batch}-{number}" for number in range(20)]
        for name in names:
            essays = tuple(f"{name}-{number}" for number in range(20_000))
            outcome = PhaseOutcome(
                "nlp",
                "completed_successfully",
                completed=essays,
                failed=(),
                speaks_for_all=False,
                at_us=AT_US,
                repeat_key="key",
            )
            await queue(setup, archive, [consumed(name, outcome)])
        # To look through all that a run of the suite holds takes the garbage collector 0.1 s.
        gc.collect()
        gc.freeze()
        turns: list[float] = []
        drained = anyio.Event()

        async def watch() -> None:
            while not drained.is_set():
                # What others on this machine do is no fault of the loop's, so its own time counts.
                before = time.thread_time()
                # The measure itself: what the loop does between two turns of this.
                await anyio.sleep(0.005)
                turns.append(time.thread_time() - before)

        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, setup.running.run, watch)
            await wait_until(lambda: turns)
            setup.database_proxy.accept()
            await wait_until(lambda: archive.backlog.last_known == 0, timeout_seconds=120)
            setup.running.call(drained.set)
        gc.unfreeze()
        assert max(turns) < 0.1
        for name in names:
            assert len((await setup.archive.state(name)).first_seen_us) == 20_000
