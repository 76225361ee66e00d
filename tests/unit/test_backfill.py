"""Facts that only Redis has are added to the archive, together with what makes them complete."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from bcs.domain.facts import EssaysRegistered, Fact, PhaseOutcome
from bcs.domain.state import BatchState, delta_of
from bcs.storage.backfill import ArchiveBackfill

pytestmark = pytest.mark.anyio


class Record:
    """Has something of the batch, and gets the rest."""

    reachable = True
    identity = "making"

    def __init__(self, facts: list[Fact]) -> None:
        self.known = delta_of(facts)
        self.adopted: list[Mapping[str, BatchState]] = []

    async def state(self, batch_id: str) -> BatchState:
        return self.known.copy()

    async def add_states(self, states: Mapping[str, BatchState]) -> None:
        self.adopted.append(states)


async def nothing_waits() -> int:
    return 0


def outcome(*completed: str) -> Fact:
    return PhaseOutcome(
        "nlp", "completed_successfully", completed=completed, failed=(), speaks_for_all=False, at_us=7, repeat_key="key"
    )


async def test_an_outcome_goes_to_the_record_together_with_its_list() -> None:
    record = Record([outcome("a")])
    known = delta_of([outcome("a", "b"), EssaysRegistered(("a", "b"), 2, 1)])
    backfilled = await ArchiveBackfill(record, nothing_waits).backfill("batch", known, "redis")
    assert backfilled is not None
    assert backfilled.state == record.known
    [[missing]] = [list(states.values()) for states in record.adopted]
    assert missing == delta_of([outcome("b"), EssaysRegistered(("a", "b"), 2, 1)])


async def test_the_record_gets_nothing_that_it_has() -> None:
    record = Record([outcome("a", "b")])
    await ArchiveBackfill(record, nothing_waits).backfill("batch", delta_of([outcome("b")]), "redis")
    assert record.adopted == []
