"""No batch that is wanted all the time is left out by the pages, however batches come, change and go meanwhile."""

from __future__ import annotations

import anyio
from hypothesis import given
from hypothesis import strategies as st

from bcs.domain.finding import Condition, Criteria, conditions_of
from bcs.domain.law import CompleteWhen, CompletionLaw
from bcs.domain.progress import BatchSummary, PhaseProgress
from bcs.http.found_batches import cursor_in, encode_cursor
from bcs.http.parameters import BatchesQuery
from bcs.storage.memory import MemoryBatchIndex
from bcs.usecases.find_batches import BatchFinder, FoundBatches

LAW = CompletionLaw({"nlp": ()})
SETTLED = CompletionLaw({"nlp": ()}, {"nlp": CompleteWhen.EVERY_ESSAY_SETTLED})
ANY = Criteria(condition=None, phases=None, since_us=None, until_us=None, stale_us=1)
SOME = BatchSummary(1, 1, 1, {})
names = st.integers(0, 30).map(str)
START_US = 1_764_000_000_000_000


class Batches:
    """Batches that come, change and go, each at a time of its own."""

    def __init__(self) -> None:
        self.now_us = START_US
        self.there: set[str] = set()
        self.index = MemoryBatchIndex(1_000_000, lambda: self.now_us)

    def change(self, batch_id: str, seconds: int) -> None:
        self.now_us += seconds * 1_000_000 + 1
        self.there.add(batch_id)
        self.index.note(batch_id)

    async def summary(self, batch_id: str) -> BatchSummary:
        return SOME if batch_id in self.there else BatchSummary()

    def page(self, criteria: Criteria, limit: int, cursor: str | None) -> FoundBatches:
        finder = BatchFinder(
            index=self.index, source="memory", summary=self.summary, law=LAW, seconds=60.0, page_bytes=1_000_000
        )
        given_cursor = cursor_in(BatchesQuery(cursor=cursor))

        async def read() -> FoundBatches:
            return await finder.find(criteria, limit=limit, cursor=given_cursor)

        return anyio.run(read)


changes = st.lists(st.tuples(names, st.integers(0, 20), st.booleans()), max_size=5)


@given(st.lists(st.tuples(names, st.integers(0, 20)), max_size=30), st.lists(changes, max_size=6), st.integers(1, 5))
def test_each_batch_that_stays_is_on_a_page(
    first: list[tuple[str, int]], meanwhile: list[list[tuple[str, int, bool]]], limit: int
) -> None:
    batches = Batches()
    for name, seconds in first:
        batches.change(name, seconds)
    batches.now_us += 60_000_000
    stay, seen, cursor, changed = set(batches.there), list[str](), None, iter(meanwhile)
    while True:
        page = batches.page(ANY, limit, cursor)
        assert len(page.batches) <= limit
        seen += [found.batch_id for found in page.batches]
        if page.following is None:
            break
        cursor = encode_cursor(page.following)
        for name, seconds, goes in next(changed, ()):
            if goes:
                batches.there.discard(name)
                stay.discard(name)
            else:
                batches.change(name, seconds)
    assert set(seen) >= stay
    assert any(meanwhile) or sorted(seen) == sorted(batches.there)


@given(
    st.lists(st.tuples(names, st.integers(0, 20)), min_size=1, max_size=30, unique_by=lambda pair: pair[0]),
    st.integers(0, 300),
    st.integers(0, 300),
)
def test_the_time_of_the_last_change_decides(first: list[tuple[str, int]], since: int, until: int) -> None:
    batches = Batches()
    changed: dict[str, int] = {}
    for name, seconds in first:
        batches.change(name, seconds)
        changed[name] = batches.now_us
    since_us, until_us = (START_US + seconds * 1_000_000 for seconds in (since, until))
    criteria = Criteria(condition=None, phases=None, since_us=since_us, until_us=until_us, stale_us=1)
    found = {one.batch_id for one in batches.page(criteria, 500, None).batches}
    assert found == {name for name, at_us in changed.items() if since_us <= at_us <= until_us}


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.booleans(), st.sampled_from([LAW, SETTLED]))
def test_a_batch_is_never_both_complete_and_incomplete(
    completed: int, failed: int, left_out: int, complete: bool, law: CompletionLaw
) -> None:
    progress = PhaseProgress(complete, completed, failed, left_out=left_out)
    summary = BatchSummary(1, completed + failed + left_out, None, {"nlp": progress})
    conditions = conditions_of(summary, law, ANY, changed_at_us=0, now_us=10)
    assert (Condition.COMPLETE in conditions) is complete
    assert (Condition.INCOMPLETE in conditions) is not complete
    assert (Condition.STALE in conditions) is not complete
    assert not (complete and Condition.BLOCKED in conditions)
    if not complete and failed and law is LAW:
        assert Condition.BLOCKED in conditions
    if completed and law is SETTLED:
        assert Condition.BLOCKED not in conditions
