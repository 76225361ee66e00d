"""Long calculations run in slices, with the same results as in one piece."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import TypeVar
from uuid import UUID

import anyio
import pytest
from anyio.lowlevel import checkpoint
from pydantic_core import from_json, to_json

from bcs.domain.columns import tallying
from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Outcome, PhaseInvalidated, PhaseOutcome
from bcs.domain.history import ArchivedEntry, FactsRecorded
from bcs.domain.law import CompleteWhen, CompletionLaw
from bcs.domain.progress import Evaluation, summarizing
from bcs.domain.slices import SLICE, Sliced, at_once
from bcs.domain.state import BatchState, delta_of
from bcs.http.documents import (
    BatchPage,
    Extent,
    encoding_history,
    encoding_phase,
    encoding_state,
    history_document,
    phase_document,
    state_document,
)
from bcs.storage.deadlines import Deadline
from bcs.storage.pace import paced
from bcs.storage.redis.batch_codec import BatchKeys, StoredBatch
from bcs.storage.redis.batch_commands import decoding, decoding_state, merging, writing

pytestmark = pytest.mark.anyio

T = TypeVar("T")

TURN_SECONDS = 0.005
MOST_ROUNDS_WITHOUT_A_PAUSE = 5
ESSAYS = tuple(f"essay-{number:05}" for number in range(5 * SLICE))
KEYS = BatchKeys("test:", "batch")
LAW = CompletionLaw(
    {"spellcheck": (), "nlp": ("spellcheck",), "cj_assessment": ("spellcheck",)},
    {"nlp": CompleteWhen.EVERY_ESSAY_SETTLED},
)
# Each of the ways in which a phase can be judged takes its time for each essay.
LARGE = delta_of(
    [
        EssaysRegistered(ESSAYS, len(ESSAYS), 1),
        *(EssayPhaseEnded("spellcheck", essay, Outcome.COMPLETED, 2) for essay in ESSAYS),
        PhaseInvalidated("spellcheck", ESSAYS[7], 3),
        PhaseOutcome(
            "nlp",
            "completed_with_failures",
            completed=ESSAYS[:9],
            failed=(),
            speaks_for_all=False,
            at_us=4,
            repeat_key="one",
        ),
        PhaseOutcome(
            "nlp",
            "completed_with_failures",
            completed=ESSAYS[9:],
            failed=(),
            speaks_for_all=False,
            at_us=5,
            repeat_key="another",
        ),
        PhaseOutcome(
            "cj_assessment",
            "completed_successfully",
            completed=(),
            failed=(),
            speaks_for_all=True,
            at_us=6,
            repeat_key="nobody named",
        ),
    ]
)
EXPLANATION = Evaluation(LARGE, LAW).explain("ai_feedback")
ALL = Extent()


def page_of(state: BatchState, essays: Sequence[str]) -> BatchPage:
    return BatchPage(
        batch_id="batch", state=state, version=None, source="redis", essays=essays, extent=ALL, next_after=str
    )


PAGE_OF_LARGE = page_of(LARGE, ESSAYS)
ENTRIES = tuple(
    ArchivedEntry(
        number,
        FactsRecorded(
            UUID(int=number),
            "batch",
            1,
            facts=(EssaysRegistered(ESSAYS, 3, 1),),
            event_type="type",
            correlation_id="correlation",
            event_id="event",
        ),
    )
    for number in (3, 2)
)


def busy(turns: int, note: Callable[[], None] = lambda: None) -> Sliced[int]:
    """A calculation that takes so many turns."""
    for _ in range(turns):
        note()
        # What holds the loop up: work that lets nobody in.
        time.sleep(TURN_SECONDS)
        yield
    return turns


async def test_all_else_runs_while_a_long_calculation_goes_on() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(others)
        await checkpoint()
        before = turns
        assert await paced(busy(8)) == 8
        assert turns >= before + 7
        group.cancel_scope.cancel()


async def test_a_short_calculation_waits_for_nobody() -> None:
    entered: list[bool] = []

    @contextmanager
    def paused() -> Iterator[None]:
        entered.append(True)
        yield

    def short() -> Sliced[str]:
        yield
        return "done"

    # Nothing gave way, or the cancellation would have come.
    with anyio.CancelScope() as scope:
        scope.cancel()
        assert await paced(short(), paused) == "done"
    assert not entered


async def test_of_many_calculations_one_goes_on_in_a_turn_of_the_loop() -> None:
    turn, over = 0, False
    seen: list[tuple[str, int]] = []

    async def count_turns() -> None:
        nonlocal turn
        while not over:
            turn += 1
            await checkpoint()

    async def calculate(name: str) -> None:
        await paced(busy(6, lambda: seen.append((name, turn))))

    async with anyio.create_task_group() as group:
        group.start_soon(count_turns)
        async with anyio.create_task_group() as calculations:
            for name in "abc":
                calculations.start_soon(calculate, name)
        over = True
    # But for the first turn of each, which most calculations end in.
    later = seen[3:]
    assert len({at for _, at in later}) == len(later)
    # Behind each turn others have time for more than the one round in which the next one could begin.
    rounds = [at - before for (_, before), (_, at) in pairwise(later)]
    assert median(rounds) > MOST_ROUNDS_WITHOUT_A_PAUSE
    assert [name for name, _ in later[:6]] == ["a", "b", "c"] * 2


async def test_a_long_calculation_does_not_count_to_a_deadline() -> None:
    with Deadline(TURN_SECONDS * 3) as deadline:
        await paced(busy(10), deadline.paused)
    assert not deadline.expired
    with Deadline(TURN_SECONDS * 3) as deadline:
        await paced(busy(10), deadline.paused)
        await anyio.sleep_forever()
    assert deadline.expired


def stored(state: BatchState) -> list[list[bytes]]:
    """The replies of Redis for a stored state."""
    commands, _ = run(writing(KEYS, NOTHING, state, state, 1, None))
    fields: list[bytes] = []
    for _, _, *parts in commands:
        assert len(parts) <= 2 * SLICE * 4, "a longer command would be packed in one piece"
        fields += [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return [[], [], fields]


NOTHING = StoredBatch(registers=BatchState())


def run(calculation: Sliced[T]) -> tuple[T, int]:
    """A calculation's result, and its number of slices."""
    slices = 0
    try:
        while True:
            next(calculation)
            slices += 1
    except StopIteration as ended:
        return ended.value, slices


# So many essays that even the quick parts are cut.
MANY = tuple(f"essay-{number:06}" for number in range(30 * SLICE))
COUNTABLE = delta_of(
    [EssaysRegistered(MANY, len(MANY), 1), *(EssayPhaseEnded("nlp", essay, Outcome.COMPLETED, 2) for essay in MANY[1:])]
)
TOLD, _ = run(decoding(KEYS, stored(COUNTABLE), ""))


@pytest.mark.parametrize(
    ("calculate", "least"),
    [
        (lambda: BatchState().merging(LARGE), 3),
        (lambda: summarizing(LARGE, LAW, 1), 3 * 5),
        (lambda: Evaluation(LARGE, LAW).explaining("nlp"), 2 * 5),
        (lambda: decoding(KEYS, stored(LARGE), ""), 5),
        (lambda: decoding_state(KEYS, run(decoding(KEYS, stored(LARGE), ""))[0]), 5),
        (lambda: writing(KEYS, NOTHING, LARGE, LARGE, 1, None), 5),
        (lambda: merging(LARGE, ttl_ms=1, stamp="", max_essays=0), 5),
        (lambda: tallying(TOLD.registers, TOLD.columns, LAW, 1), 3),
        (lambda: encoding_phase(EXPLANATION, ALL), 5),
        (lambda: encoding_state(PAGE_OF_LARGE, ()), 5),
        (lambda: encoding_history("batch", ENTRIES, None), len(ENTRIES)),
    ],
    ids=["merge", "summary", "explanation", "decode", "build", "write", "commit", "count", "phase", "batch", "history"],
)
def test_what_grows_with_the_essays_of_a_batch_is_cut_into_slices(
    calculate: Callable[[], Sliced[object]], least: int
) -> None:
    assert run(calculate())[1] >= least


def test_a_document_in_slices_is_the_same_as_in_one_piece() -> None:
    phase = at_once(encoding_phase(EXPLANATION, ALL))
    assert from_json(phase) == phase_document(EXPLANATION, ALL)
    assert from_json(phase)["blocking_essays"]
    whole = {**state_document(PAGE_OF_LARGE), "phases": [from_json(phase)] * 2}
    assert from_json(at_once(encoding_state(PAGE_OF_LARGE, (phase, phase)))) == whole
    history = history_document("batch", ENTRIES, 7)
    assert from_json(at_once(encoding_history("batch", ENTRIES, 7))) == from_json(to_json(history))


def test_a_document_without_essays_has_empty_lists() -> None:
    nothing = BatchState()
    page = page_of(nothing, ())
    assert from_json(at_once(encoding_state(page, ()))) == {**state_document(page), "phases": []}
    explanation = Evaluation(nothing, LAW).explain("nlp")
    assert from_json(at_once(encoding_phase(explanation, ALL))) == phase_document(explanation, ALL)
    assert from_json(at_once(encoding_history("batch", (), None))) == history_document("batch", (), None)


def test_a_batch_that_was_cut_is_read_as_it_was_written() -> None:
    read, _ = run(decoding(KEYS, stored(LARGE), ""))
    assert run(decoding_state(KEYS, read))[0] == LARGE
