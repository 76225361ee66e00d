"""One merge law in Python, in memory, in Redis by script and by transaction, and in SQL.

`RULES` says the law in cases, and so holds the Python model itself. What is made up from many facts at once is held to
the model: whatever their order, however often they come, and in whatever groups.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
from bcs.domain.invalidation import invalidating
from bcs.domain.progress import BatchSummary
from bcs.domain.slices import at_once
from bcs.domain.state import BatchState, Ending, Expected, Mark, delta_of
from bcs.domain.times import LATEST_US
from bcs.storage.memory import MemoryStateStore
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from tests.integration.stores import ByTransaction, MakeStore, completed, failed, same_but_for_the_version
from tests.support.laws import LAW
from tests.support.tiers import examples

pytestmark = pytest.mark.anyio

C, F = Outcome.COMPLETED, Outcome.FAILED
# Ties, neighbours, other lengths, bytes with the highest bit, numbers that Lua's doubles can't tell apart.
TIMES = [0, 1, 9, 10, 99, 100, 127, 128, 255, 256, 2**53, 2**53 + 1, LATEST_US]
COUNTS = [0, 1, 9, 10, 2**53, 2**53 + 1, 10**20]
# As long as the other's beginning, of more than one byte, and with what stands between the parts of a field's name.
STATUSES = ["cancelled", "completed", "completed_successfully", "completed_with_failures", "ä", "z:1:😀"]
ESSAYS = [
    "a",
    "b",
    "c 1",
    "f:0",
    "\0\n",
    "\\0",
    "\\\0",
    "😀",
    "-1",
    "expected",
    "version",
    "slot:nlp",
    "slots",
    "complete",
    "essays",
    "report:nlp",
    "00000001-6f2c-4d3a-9b1e-5c7d8e9f0a1b",
    "00000001-6F2C-4D3A-9B1E-5C7D8E9F0A1B",
    "000000016f2c4d3a9b1e5c7d8e9f0a1b----",
    "",
]
PHASES = ["nlp", "cj_assessment"]
DEFINITIONS = ["0123456789abcdef", "fedcba9876543210"]
KEYS = ["", "0123456789abcdef", "fedcba9876543210"]

times, phases, essays = st.sampled_from(TIMES), st.sampled_from(PHASES), st.sampled_from(ESSAYS)
outcomes, statuses = st.sampled_from(Outcome), st.sampled_from(STATUSES)
lists = st.lists(essays, max_size=3).map(tuple)
facts: st.SearchStrategy[Fact] = st.one_of(
    st.builds(EssayPhaseEnded, phases, essays, outcomes, times),
    st.builds(
        PhaseOutcome,
        phases,
        st.sampled_from(STATUSES),
        completed=lists,
        failed=lists,
        speaks_for_all=st.booleans(),
        at_us=times,
        repeat_key=st.sampled_from(KEYS),
    ),
    st.builds(PhaseReported, phases, outcomes, times),
    st.builds(PhaseInvalidated, phases, st.none() | essays, times),
    st.builds(RecordedUnder, phases, st.sampled_from(DEFINITIONS), times),
    st.builds(EssaysRegistered, lists, st.sampled_from(COUNTS), times),
)
against_servers = settings(
    deadline=None,
    max_examples=examples(25),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Storage:
    """Where states are merged.

    :param commits: ways to merge a delta into a batch; each commit takes the next one.
    :param summary: where it makes one.
    """

    commits: Sequence[Callable[[str, BatchState], Awaitable[object]]]
    read: Callable[[str], Awaitable[BatchState]]
    summary: Callable[[str], Awaitable[BatchSummary]] | None = None

    async def merged(self, deltas: Sequence[BatchState]) -> BatchState:
        """A new batch's state, after these."""
        batch_id = uuid.uuid4().hex
        for number, delta in enumerate(deltas):
            await self.commits[number % len(self.commits)](batch_id, delta.copy())
        state = await self.read(batch_id)
        if self.summary:
            assert same_but_for_the_version(await self.summary(batch_id), state)
        return state


def in_python() -> Storage:
    states: dict[str, BatchState] = {}

    async def commit(batch_id: str, delta: BatchState) -> None:
        states.setdefault(batch_id, BatchState()).merge(delta)

    async def read(batch_id: str) -> BatchState:
        return states.get(batch_id, BatchState())

    return Storage([commit], read)


def in_memory() -> Storage:
    store = MemoryStateStore(law=LAW, ttl_seconds=60, clock=lambda: 0.0)
    return Storage([store.commit], store.state, store.summary)


def in_sql(archive: PostgresArchive) -> Storage:
    async def add_states(batch_id: str, delta: BatchState) -> None:
        await archive.add_states({batch_id: delta})

    return Storage([add_states], archive.state)


@pytest.fixture(params=["python", "memory", "script", "transaction", "both", "sql"])
def storage(request: pytest.FixtureRequest) -> Storage:
    if request.param == "python":
        return in_python()
    if request.param == "memory":
        return in_memory()
    if request.param == "sql":
        return in_sql(request.getfixturevalue("archive"))
    gateway, make = request.getfixturevalue("gateway"), request.getfixturevalue("in_redis")
    by_script, by_transaction = make(gateway), make(gateway, kind=ByTransaction)
    commits = {"script": [by_script.commit], "transaction": [by_transaction.commit]}
    return Storage(
        commits.get(request.param, [by_script.commit, by_transaction.commit]), by_script.state, by_script.summary
    )


def mark(outcome: Outcome, at_us: int) -> BatchState:
    return BatchState(essay_marks={"nlp": {"a": Mark(outcome, at_us)}}, first_seen_us={"a": 0})


def listed(outcome: Outcome) -> BatchState:
    ending = Ending("s", False, 5)
    return BatchState(
        outcome_marks={"nlp": {"k": {"a": outcome}}}, outcomes={"nlp": {"k": ending}}, first_seen_us={"a": 0}
    )


def ending(key: str, status: str, speaks_for_all: bool, at_us: int) -> BatchState:
    return BatchState(outcomes={"nlp": {key: Ending(status, speaks_for_all, at_us)}})


def report(outcome: Outcome, at_us: int) -> BatchState:
    return BatchState(reports={"nlp": Mark(outcome, at_us)})


def invalid(essay_id: str | None, at_us: int) -> BatchState:
    return BatchState(invalidations={"nlp": {essay_id: at_us}})


def under(definition: str, at_us: int) -> BatchState:
    return BatchState(definitions={"nlp": {definition: at_us}})


def seen(at_us: int) -> BatchState:
    return BatchState(first_seen_us={"a": at_us})


def expected(count: int, at_us: int) -> BatchState:
    return BatchState(expected=Expected(count, at_us))


# Which of two values a register keeps, whichever comes first: the first one here.
RULES: dict[str, tuple[BatchState, BatchState]] = {
    "the newer of an essay's marks": (mark(C, 256), mark(F, 255)),
    "the newer of an essay's marks, of more digits": (mark(F, 2**53 + 1), mark(C, 2**53)),
    "of an essay's marks of one instant the one that failed": (mark(F, 7), mark(C, 7)),
    "failed on one outcome's list": (listed(F), listed(C)),
    "the newest outcome that has a time": (ending("", "a", True, 10), ending("", "b", False, 9)),
    "of outcomes of one instant the one that speaks for nobody": (ending("", "a", False, 5), ending("", "b", True, 5)),
    "of outcomes of one instant the greater status": (ending("", "a_b", False, 5), ending("", "a", False, 5)),
    "the earliest of an outcome's copies": (ending("k", "a", True, 9), ending("k", "b", False, 10)),
    "of copies of one instant the one that speaks for nobody": (ending("k", "a", False, 5), ending("k", "b", True, 5)),
    "of copies of one instant the greater status": (ending("k", "ä", True, 5), ending("k", "z", True, 5)),
    "the newer report": (report(C, 100), report(F, 99)),
    "of reports of one instant the failure": (report(F, 3), report(C, 3)),
    "the latest invalidation of all": (invalid(None, 2**53 + 1), invalid(None, 2**53)),
    "the latest invalidation of an essay": (invalid("a", 10), invalid("a", 9)),
    "the newest fact under a definition": (under("d1", 2**53 + 1), under("d1", 2**53)),
    "the earliest time at which an essay was seen": (seen(255), seen(256)),
    "the newest expected count": (expected(1, 10), expected(2, 9)),
    "of expected counts of one instant the larger": (expected(10, 1), expected(9, 1)),
}


async def test_every_register_keeps_what_the_law_says(storage: Storage) -> None:
    for rule, (kept, other) in RULES.items():
        for deltas in ([kept, other], [other, kept], [kept, other, kept], [other, kept, other]):
            assert await storage.merged(deltas) == kept, rule


async def test_registers_are_kept_apart(storage: Storage) -> None:
    told: list[Fact] = [completed("a", 5, "nlp"), PhaseInvalidated("nlp", "", 1), PhaseInvalidated("nlp", None, 2)]
    told += [
        PhaseOutcome("nlp", "s", completed=("a",), failed=("b",), speaks_for_all=False, at_us=number, repeat_key=key)
        for number, key in enumerate(KEYS, 8)
    ]
    told += [
        PhaseOutcome("cj", "s", completed=(), failed=(), speaks_for_all=True, at_us=9, repeat_key="k"),
        PhaseReported("nlp", F, 3),
        PhaseReported("cj", C, 4),
        RecordedUnder("nlp", "d1", 5),
        RecordedUnder("nlp", "d2", 3),
        RecordedUnder("cj", "d1", 4),
    ]
    state = await storage.merged([delta_of(told)])
    assert state.essay_marks == {"nlp": {"a": Mark(C, 8), "b": Mark(F, 8)}}
    assert state.outcome_marks == {"nlp": {key: {"a": C, "b": F} for key in KEYS[1:]}}
    endings = {key: Ending("s", False, number) for number, key in enumerate(KEYS, 8)}
    assert state.outcomes == {"nlp": endings, "cj": {"k": Ending("s", True, 9)}}
    assert state.reports == {"nlp": Mark(F, 3), "cj": Mark(C, 4)}
    assert state.invalidations == {"nlp": {"": 1, None: 2}}
    assert state.definitions == {"nlp": {"d1": 5, "d2": 3}, "cj": {"d1": 4}}
    assert state.first_seen_us == {"a": 5, "b": 8}


@st.composite
def told_in_commits(draw: st.DrawFn) -> tuple[list[Fact], list[list[Fact]]]:
    """Facts; and the same in any order, with repetitions, in any number of commits."""
    told = draw(st.lists(facts, max_size=8))
    repeated = draw(st.lists(st.sampled_from(told), max_size=4)) if told else []
    again = draw(st.permutations(told + repeated))
    borders = sorted(draw(st.lists(st.integers(0, len(again)), max_size=3)))
    return told, [again[start:end] for start, end in pairwise([0, *borders, len(again)])]


@against_servers
@given(told=told_in_commits())
async def test_any_order_repetition_and_grouping_gives_the_state_of_the_model(
    storage: Storage, told: tuple[list[Fact], list[list[Fact]]]
) -> None:
    assert await storage.merged([delta_of(group) for group in told[1]]) == delta_of(told[0])


@settings(against_servers, max_examples=examples(4))
@given(told=st.lists(facts, max_size=6), late=st.lists(facts, max_size=3), for_all=st.booleans())
async def test_an_invalidation_and_late_facts_merge_in_any_order(
    storage: Storage, told: list[Fact], late: list[Fact], for_all: bool
) -> None:
    """As an operator's order has it: made from what is known, and committed before or after what is late."""
    known, later = delta_of(told), delta_of(late)
    essays = None if for_all else sorted(known.first_seen_us)
    plan = invalidating(known, LAW, PHASES, essays, now_us=0, max_skew_us=LATEST_US)
    order = delta_of(at_once(plan).facts)
    model = delta_of([*told, *late])
    model.merge(order)
    for deltas in ([known, order, later], [later, order, known], [order, known, order, later]):
        assert await storage.merged(deltas) == model


async def test_many_batches_in_one_statement_are_merged_each_for_itself(archive: PostgresArchive) -> None:
    states = {
        f"{number}": delta_of([completed("a", number), PhaseReported("nlp", F, number)]) for number in range(1, 30)
    }
    await archive.add_states(states)
    await archive.add_states({"1": states["29"], "29": states["1"]})
    for batch_id, state in states.items():
        merged = state.copy()
        merged.merge(states[{"1": "29", "29": "1"}.get(batch_id, batch_id)])
        assert await archive.state(batch_id) == merged


async def test_a_commit_counts_up_and_renews_the_time_to_live(
    gateway: RedisGateway, in_redis: MakeStore, redis_key_prefix: str
) -> None:
    keys = BatchKeys(redis_key_prefix, "b")
    versions: list[int] = []
    for kind, change in product((RedisStateStore, ByTransaction), (failed("a", 1, "nlp"), completed("a", 2, "nlp"))):
        store = in_redis(gateway, ttl_seconds=90, kind=kind)
        await store.commit("b", delta_of([completed("a", 1, "nlp"), EssaysRegistered(("a",), 1, 0)]))
        await gateway.call(("PEXPIRE", keys.facts, 1000))
        await store.commit("b", delta_of([change]))
        version, ttl_ms = await gateway.call(("HGET", keys.facts, "version"), ("PTTL", keys.facts))
        assert 80_000 < ttl_ms <= 90_000
        versions.append(int(version))
        summary = await store.summary("b")
        assert summary.version == int(version)
        assert same_but_for_the_version(summary, await store.state("b"))
    assert versions[0] + 1 == versions[1], "a change counts up"
    assert set(versions[1:]) == {versions[1]}, "facts that are known already change nothing"


@pytest.mark.parametrize("kind", [RedisStateStore, ByTransaction])
async def test_a_batch_that_comes_again_repeats_no_version(
    gateway: RedisGateway, in_redis: MakeStore, redis_key_prefix: str, kind: type[RedisStateStore]
) -> None:
    keys, store = BatchKeys(redis_key_prefix, "b"), in_redis(gateway, kind=kind)
    versions: list[int] = []
    for _ in range(2):
        for at_us in range(1, 4):
            await store.commit("b", delta_of([completed("a", at_us)]))
            versions.append((await store.summary("b")).version)
        await gateway.call(("DEL", keys.facts))
        assert await store.summary("b") == BatchSummary()
    assert sorted(set(versions)) == versions
