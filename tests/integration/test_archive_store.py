"""The archive on a real PostgreSQL: refusals, repeated writes, and retention."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from bcs.domain.facts import (
    EssayPhaseEnded,
    EssaysRegistered,
    Fact,
    Outcome,
    PhaseInvalidated,
    PhaseOutcome,
    PhaseReported,
    RecordedUnder,
)
from bcs.domain.history import HistoryEntry, Position
from bcs.domain.state import BatchState, delta_of
from bcs.errors import StoreRefused, StoreUnavailable
from bcs.storage.ports import Waiting
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.postgres.rows import merge_arguments
from bcs.wire.published import OutboundMessage, phases_skipped
from tests.support.databases import archive_in
from tests.support.history_entries import AT_US, answered, consumed, spellchecked
from tests.support.pgbouncer import behind

pytestmark = pytest.mark.anyio

DAY_US = 86_400_000_000


@pytest.fixture(params=["direct", "pooled"])
async def archive(request: pytest.FixtureRequest, module_database_url: str) -> AsyncIterator[PostgresArchive]:
    """The archive in the module's database, directly and through PgBouncer in transaction mode."""
    url = module_database_url
    if request.param == "pooled":
        url = behind(request.getfixturevalue("pooler"), url)
    async with archive_in(url) as archive:
        yield archive


async def kept(archive: PostgresArchive, batch: str) -> list[HistoryEntry]:
    return [
        one.entry for one in reversed(await archive.history(batch, limit=100)) if isinstance(one.entry, HistoryEntry)
    ]


async def test_a_repeated_entry_is_stored_once(archive: PostgresArchive, batch: str) -> None:
    entry, resolved = consumed(batch), answered(batch)
    await archive.write([entry, resolved, entry])
    await archive.write([replace(entry, at_us=entry.at_us + 1), resolved])
    assert await kept(archive, batch) == [entry, resolved]
    assert await archive.state(batch) == delta_of(entry.facts)


@pytest.mark.parametrize("order", [1, -1], ids=["older facts first", "newer facts first"])
async def test_the_archive_merges_like_the_model(archive: PostgresArchive, batch: str, order: int) -> None:
    completed, failed = Outcome.COMPLETED, Outcome.FAILED
    facts: list[Fact] = [
        EssaysRegistered(("a", "b"), 2, AT_US),
        EssaysRegistered(("a",), 1, AT_US + 1),
    ]
    # Of two outcomes the newer one wins, and at the same instant the failed one.
    for first, second, later_us in ((completed, failed, 1), (failed, completed, 1), (completed, failed, 0)):
        phase = f"{first}{second}{later_us}"
        for outcome, at_us in ((first, AT_US), (second, AT_US + later_us)):
            facts += [EssayPhaseEnded(phase, "a", outcome, at_us), PhaseReported(phase, outcome, at_us)]
    told = facts[::order]
    for fact in told:
        await archive.add_states({batch: delta_of([fact])})
    assert await archive.state(batch) == delta_of(told)


async def test_two_batches_may_have_entries_with_the_same_id(archive: PostgresArchive, batch: str) -> None:
    entry = consumed(batch)
    other = replace(entry, batch_id=f"{batch}-2")
    await archive.write([entry, other])
    assert (await kept(archive, batch), await kept(archive, other.batch_id)) == ([entry], [other])


async def test_an_impossible_entry_makes_the_whole_write_fail(archive: PostgresArchive, batch: str) -> None:
    entry = consumed(batch)
    impossible = replace(entry, entry_id=uuid.uuid4(), position=Position("t", 2**31, 1))
    with pytest.raises(StoreRefused):
        await archive.write([entry, impossible])
    assert archive.reachable
    assert await kept(archive, batch) == []
    assert (await archive.state(batch)).empty


@pytest.fixture
def merged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many facts each statement merges, where a statement merges ten at most."""
    merged: list[int] = []

    def counted(deltas: Mapping[str, BatchState], entries: Sequence[HistoryEntry]) -> tuple[list[Any], ...]:
        merged.append(sum(delta.size for delta in deltas.values()))
        return merge_arguments(deltas, entries)

    monkeypatch.setattr("bcs.storage.postgres.archive._FACTS_PER_STATEMENT", 10)
    monkeypatch.setattr("bcs.storage.postgres.archive.merge_arguments", counted)
    return merged


def of_many_essays() -> tuple[Fact, ...]:
    essays = tuple(f"e{number}" for number in range(50))
    return (
        EssaysRegistered(essays, 50, AT_US),
        PhaseOutcome(
            "nlp",
            "completed_with_failures",
            completed=essays[:30],
            failed=essays[20:],
            speaks_for_all=False,
            at_us=AT_US,
            repeat_key="key",
        ),
        PhaseOutcome(
            "cj_assessment", "completed_successfully", completed=essays, failed=(), speaks_for_all=False, at_us=AT_US
        ),
    )


async def test_a_large_entry_is_written_by_many_statements_atomically(
    archive: PostgresArchive, batch: str, merged: list[int]
) -> None:
    large, small = consumed(batch, *of_many_essays()), consumed(f"{batch}-0")
    impossible = replace(small, position=Position("t", 2**31, 1))
    with pytest.raises(StoreRefused):
        await archive.write([large, impossible])
    assert (await archive.state(batch)).empty
    assert await kept(archive, batch) == []
    merged.clear()
    await archive.write([large, small])
    assert len(merged) >= 17
    assert max(merged) <= 20  # an essay is registered by its first fact, too
    assert await archive.state(batch) == delta_of(large.facts)
    assert await kept(archive, batch) == [large]
    assert await kept(archive, small.batch_id) == [small]


async def test_a_large_state_is_added_by_many_statements(
    archive: PostgresArchive, batch: str, merged: list[int]
) -> None:
    large, small = delta_of(of_many_essays()), delta_of([spellchecked()])
    await archive.add_states({batch: large, f"{batch}-0": small})
    assert len(merged) >= 17
    assert max(merged) <= 10
    assert await archive.state(batch) == large
    assert await archive.state(f"{batch}-0") == small


async def test_an_announcement_stays_stored_until_the_outbox_has_it(archive: PostgresArchive, batch: str) -> None:
    resolved = answered(batch)
    announced, now = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
    messages = phases_skipped(batch, ["spellcheck", "nlp"], "c", announced)
    await archive.store_announcements(messages, resolved)
    assert await archive.announcements(now) == Waiting(2, 60.0)
    taken: list[OutboundMessage] = []

    async def away(_: list[OutboundMessage]) -> None:
        raise StoreUnavailable("redis", "the test says so")

    async def take(announcements: list[OutboundMessage]) -> None:
        taken.extend(announcements)

    with pytest.raises(StoreUnavailable):
        await archive.deliver_announcements(away, limit=1, deadline_seconds=5)
    assert archive.reachable
    for expected in (1, 1, 0):
        assert await archive.deliver_announcements(take, limit=1, deadline_seconds=5) == expected
    assert taken == list(messages)
    assert {message.waits_since_ms for message in taken} == {int(announced.timestamp() * 1000)}
    assert await archive.announcements(now) == Waiting(0, 0.0)
    assert await kept(archive, batch) == [resolved]


async def test_retention_deletes_only_expired_entries_in_steps(
    archive: PostgresArchive, module_database_url: str, batch: str
) -> None:
    old, untouched = f"{batch}-old", f"{batch}-untouched"
    entries = [replace(consumed(old), at_us=AT_US - day * DAY_US) for day in range(5)]
    await archive.write(entries)
    facts = (
        spellchecked(),
        PhaseOutcome(
            "nlp", "cancelled", completed=("e",), failed=(), speaks_for_all=False, at_us=AT_US, repeat_key="key"
        ),
        PhaseReported("nlp", Outcome.COMPLETED, AT_US),
        PhaseInvalidated("nlp", None, AT_US),
        RecordedUnder("nlp", "definition", AT_US),
        EssaysRegistered(("e",), 1, AT_US),
    )
    await archive.write([consumed(untouched, *facts)])
    assert await archive.state(untouched) == delta_of(facts)
    tables = ("essays", "marks", "outcomes", "phase_reports", "invalidations", "phase_definitions", "history")
    connection = await asyncpg.connect(module_database_url)
    try:
        await connection.execute("UPDATE batches SET touched_on = touched_on - 10 * 365 WHERE batch_id = $1", untouched)
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=AT_US - 2 * DAY_US)
        steps = 0
        # Somebody reads all the while, and has a lock on every table that any reader has.
        async with connection.transaction():
            names = ", ".join(("batches", *tables))
            await connection.execute(f"LOCK TABLE {names} IN ROW EXCLUSIVE MODE")
            while forgotten := await archive.delete_expired(moment, 1, 5):
                steps += 1
                assert forgotten <= 2
        assert steps >= 2
        left = [
            await connection.fetchval(
                f"SELECT count(*) FROM {table} LEFT JOIN batches USING (batch_key) WHERE batch_id IS NULL"  # noqa: S608
            )
            for table in tables
        ]
        assert left == [0] * len(tables)
    finally:
        await connection.close()
    assert await kept(archive, old) == entries[:3]
    assert not (await archive.state(old)).empty
    assert await archive.state(untouched) == BatchState()
    assert await kept(archive, untouched) == []
