"""Facts that only Redis has are added to the archive, together with what makes them complete."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import pytest

from bcs.domain.facts import EssaysRegistered, Fact, PhaseOutcome
from bcs.domain.state import BatchState, delta_of
from bcs.errors import StoreUnavailable
from bcs.storage.backfill import ArchiveBackfill

pytestmark = pytest.mark.anyio


class FakeArchive:
    """Has something of the batch, and gets the rest."""

    reachable = True
    identity = "making"

    def __init__(self, facts: list[Fact]) -> None:
        self.known = delta_of(facts)
        self.added: list[Mapping[str, BatchState]] = []

    async def state(self, batch_id: str) -> BatchState:
        return self.known.copy()

    async def add_states(self, states: Mapping[str, BatchState]) -> None:
        self.added.append(states)


async def nothing_waits(_batch_id: str) -> int:
    return 0


def outcome(*completed: str) -> Fact:
    return PhaseOutcome(
        "nlp", "completed_successfully", completed=completed, failed=(), speaks_for_all=False, at_us=7, repeat_key="key"
    )


async def test_a_missing_list_is_written_to_the_archive_with_its_outcome() -> None:
    archive = FakeArchive([outcome("a")])
    known = delta_of([outcome("a", "b"), EssaysRegistered(("a", "b"), 2, 1)])
    backfilled = await ArchiveBackfill(archive, nothing_waits).backfill("batch", known, "redis")
    assert backfilled is not None
    assert backfilled.state == archive.known
    [[missing]] = [list(states.values()) for states in archive.added]
    assert missing == delta_of([outcome("b"), EssaysRegistered(("a", "b"), 2, 1)])


async def test_the_archive_gets_no_fact_that_it_has() -> None:
    archive = FakeArchive([outcome("a", "b")])
    await ArchiveBackfill(archive, nothing_waits).backfill("batch", delta_of([outcome("b")]), "redis")
    assert archive.added == []


async def redis_fails(_batch_id: str) -> int:
    raise StoreUnavailable("redis", "the test says so")


async def test_without_the_number_of_waiting_entries_a_copy_is_backfilled_and_gets_no_stamp() -> None:
    backfill = ArchiveBackfill(FakeArchive([outcome("a", "b")]), redis_fails)
    for stamp in (None, "redis/an older one"):
        known = delta_of([outcome("a"), EssaysRegistered(("a", "b"), 2, 1)])
        _, new_stamp = await backfill.complete("batch", known, stamp, "redis")
        assert new_stamp is None
        assert known == delta_of([outcome("a", "b"), EssaysRegistered(("a", "b"), 2, 1)])


async def test_without_the_number_of_waiting_entries_a_copy_of_another_redis_is_no_answer() -> None:
    backfill = ArchiveBackfill(FakeArchive([outcome("a", "b")]), redis_fails)
    with pytest.raises(StoreUnavailable, match="may have lost them") as refusal:
        await backfill.complete("batch", delta_of([outcome("a")]), "another/making", "redis")
    assert refusal.value.store == "redis"


@pytest.mark.parametrize(
    ("waited_seconds", "read_before_seconds", "refused"),
    [(0.0, 0.0, False), (5.0, 0.0, True), (5.0, 4.0, True), (5.0, 6.0, False)],
)
async def test_a_copy_of_another_redis_is_no_answer_while_facts_wait_that_are_older_than_this_one(
    waited_seconds: float, read_before_seconds: float, refused: bool
) -> None:
    now = 100.0

    async def oldest_seconds(batch_id: str) -> float:
        return waited_seconds if batch_id == "batch" else 0.0

    async def one_waits(_batch_id: str) -> int:
        return 1

    backfill = ArchiveBackfill(
        FakeArchive([outcome("a", "b")]), one_waits, oldest_seconds=oldest_seconds, clock=lambda: now
    )
    copy = delta_of([outcome("a"), EssaysRegistered(("a", "b"), 2, 1)])
    await backfill.complete("another batch", copy.copy(), "another/making", "redis")
    now += read_before_seconds
    with pytest.raises(StoreUnavailable, match="that this Redis may lack") if refused else nullcontext():
        await backfill.complete("batch", copy, "another/making", "redis")
    # Without a stamp, or with one of this Redis, the copy was not lost in a failover.
    for stamp in (None, "redis/another archive"):
        await backfill.complete("batch", copy, stamp, "redis")
