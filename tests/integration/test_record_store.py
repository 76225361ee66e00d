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
)
from bcs.domain.history import HistoryEntry, Position
from bcs.domain.state import BatchState, delta_of
from bcs.errors import StoreRefused, StoreUnavailable
from bcs.storage.ports import Waiting
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.postgres.rows import merge_arguments
from bcs.wire.published import OutboundMessage, phases_skipped
from tests.support.databases import record_in
from tests.support.past import AT_US, answered, consumed, spellchecked
from tests.support.pgbouncer import behind

pytestmark = pytest.mark.anyio

DAY_US = 86_400_000_000


@pytest.fixture(params=["direct", "pooled"])
async def record(request: pytest.FixtureRequest, module_database_url: str) -> AsyncIterator[PostgresArchive]:
    """The archive in the module's database, directly and through PgBouncer in transaction mode."""
    url = module_database_url
    if request.param == "pooled":
        url = behind(request.getfixturevalue("pooler"), url)
    async with record_in(url) as record:
        yield record


async def kept(record: PostgresArchive, batch: str) -> list[HistoryEntry]:
    return [one.entry for one in reversed(await record.history(batch, limit=100))]


async def test_an_entry_that_comes_again_is_kept_once(record: PostgresArchive, batch: str) -> None:
    entry, resolved = consumed(batch), answered(batch)
    await record.write([entry, resolved, entry])
    await record.write([replace(entry, at_us=entry.at_us + 1), resolved])
    assert await kept(record, batch) == [entry, resolved]
    assert await record.state(batch) == delta_of(entry.facts)


@pytest.mark.parametrize("order", [1, -1], ids=["older facts first", "newer facts first"])
async def test_the_record_merges_as_the_model_does(record: PostgresArchive, batch: str, order: int) -> None:
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
        await record.add_states({batch: delta_of([fact])})
    assert await record.state(batch) == delta_of(told)


async def test_entries_of_the_same_name_in_two_batches_are_two(record: PostgresArchive, batch: str) -> None:
    entry = consumed(batch)
    other = replace(entry, batch_id=f"{batch}-2")
    await record.write([entry, other])
    assert (await kept(record, batch), await kept(record, other.batch_id)) == ([entry], [other])


async def test_what_can_not_be_stored_is_refused_with_all_that_comes_with_it(
    record: PostgresArchive, batch: str
) -> None:
    entry = consumed(batch)
    impossible = replace(entry, entry_id=uuid.uuid4(), position=Position("t", 2**31, 1))
    with pytest.raises(StoreRefused):
        await record.write([entry, impossible])
    assert record.reachable
    assert await kept(record, batch) == []
    assert (await record.state(batch)).empty


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


async def test_a_large_entry_is_written_by_many_statements_all_or_none(
    record: PostgresArchive, batch: str, merged: list[int]
) -> None:
    large, small = consumed(batch, *of_many_essays()), consumed(f"{batch}-0")
    impossible = replace(small, position=Position("t", 2**31, 1))
    with pytest.raises(StoreRefused):
        await record.write([large, impossible])
    assert (await record.state(batch)).empty
    assert await kept(record, batch) == []
    merged.clear()
    await record.write([large, small])
    assert len(merged) >= 17
    assert max(merged) <= 20  # an essay is registered by its first fact, too
    assert await record.state(batch) == delta_of(large.facts)
    assert await kept(record, batch) == [large]
    assert await kept(record, small.batch_id) == [small]


async def test_a_large_batch_is_adopted_by_many_statements(
    record: PostgresArchive, batch: str, merged: list[int]
) -> None:
    large, small = delta_of(of_many_essays()), delta_of([spellchecked()])
    await record.add_states({batch: large, f"{batch}-0": small})
    assert len(merged) >= 17
    assert max(merged) <= 10
    assert await record.state(batch) == large
    assert await record.state(f"{batch}-0") == small


async def test_an_announcement_is_kept_until_the_outbox_has_it(record: PostgresArchive, batch: str) -> None:
    resolved = answered(batch)
    announced, now = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
    messages = phases_skipped(batch, ["spellcheck", "nlp"], "c", announced)
    await record.store_announcements(messages, resolved)
    assert await record.announcements(now) == Waiting(2, 60.0)
    taken: list[OutboundMessage] = []

    async def away(_: list[OutboundMessage]) -> None:
        raise StoreUnavailable("redis", "the test says so")

    async def take(announcements: list[OutboundMessage]) -> None:
        taken.extend(announcements)

    with pytest.raises(StoreUnavailable):
        await record.deliver_announcements(away, limit=1, deadline_seconds=5)
    assert record.reachable
    for expected in (1, 1, 0):
        assert await record.deliver_announcements(take, limit=1, deadline_seconds=5) == expected
    assert taken == list(messages)
    assert {message.waits_since_ms for message in taken} == {int(announced.timestamp() * 1000)}
    assert await record.announcements(now) == Waiting(0, 0.0)
    assert await kept(record, batch) == [resolved]


async def test_retention_takes_what_is_older_in_steps_and_nothing_else(
    record: PostgresArchive, module_database_url: str, batch: str
) -> None:
    old, untouched = f"{batch}-old", f"{batch}-untouched"
    entries = [replace(consumed(old), at_us=AT_US - day * DAY_US) for day in range(5)]
    await record.write(entries)
    facts = (
        spellchecked(),
        PhaseOutcome(
            "nlp", "cancelled", completed=("e",), failed=(), speaks_for_all=False, at_us=AT_US, repeat_key="key"
        ),
        PhaseReported("nlp", Outcome.COMPLETED, AT_US),
        PhaseInvalidated("nlp", None, AT_US),
        EssaysRegistered(("e",), 1, AT_US),
    )
    await record.write([consumed(untouched, *facts)])
    assert await record.state(untouched) == delta_of(facts)
    tables = ("essays", "marks", "outcomes", "phase_reports", "invalidations", "history")
    connection = await asyncpg.connect(module_database_url)
    try:
        await connection.execute("UPDATE batches SET touched_on = touched_on - 10 * 365 WHERE batch_id = $1", untouched)
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=AT_US - 2 * DAY_US)
        steps = 0
        # Somebody reads all the while, and has a lock on every table that any reader has.
        async with connection.transaction():
            names = ", ".join(("batches", *tables))
            await connection.execute(f"LOCK TABLE {names} IN ROW EXCLUSIVE MODE")
            while forgotten := await record.forget(moment, 1, 5):
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
    assert await kept(record, old) == entries[:3]
    assert not (await record.state(old)).empty
    assert await record.state(untouched) == BatchState()
    assert await kept(record, untouched) == []
