"""One contract for the state store, in memory and in Redis."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote, unquote

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome, PhaseOutcome, PhaseReported
from bcs.domain.progress import BatchSummary
from bcs.domain.state import BatchState, delta_of
from bcs.storage.committing import CommitPolicy
from bcs.storage.memory import MemoryStateStore
from bcs.storage.ports import Committed, StateStore
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from tests.integration.stores import (
    BREAKER_FAILURES,
    ByTransaction,
    MakeGateway,
    completed,
    failed,
    same_but_for_the_version,
)
from tests.support.laws import LAW
from tests.support.tiers import examples

pytestmark = pytest.mark.anyio

Pair = Callable[[CommitPolicy | None], tuple[StateStore, StateStore]]

against_servers = settings(
    deadline=None,
    max_examples=examples(20),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def gateways(redis_url: str, make_gateway: MakeGateway) -> list[RedisGateway]:
    return [make_gateway(redis_url, deadline=5, failures=BREAKER_FAILURES, connections=16) for _ in range(2)]


@pytest.fixture(params=["memory", "script", "transaction"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Makes the stores of two processes; memory has only one process."""
    if request.param == "memory":
        store = MemoryStateStore(law=LAW, ttl_seconds=60, clock=lambda: 0.0)
        return lambda _: (store, store)
    gateways = request.getfixturevalue("gateways")
    make = request.getfixturevalue("in_redis")
    kind = ByTransaction if request.param == "transaction" else RedisStateStore
    return lambda policy: (make(gateways[0], policy, kind=kind), make(gateways[1], policy, kind=kind))


async def test_each_change_counts_up(pair: Pair) -> None:
    stores, known, versions = pair(None), BatchState(), [0]
    outcome = PhaseOutcome(
        "nlp",
        "completed_with_failures",
        completed=("a",),
        failed=("b",),
        speaks_for_all=False,
        at_us=7,
        repeat_key="0123456789abcdef",
    )
    told: list[Fact] = [
        EssaysRegistered(("a", "b"), 2, 5),
        outcome,
        outcome,
        PhaseReported("nlp", Outcome.COMPLETED, 9),
    ]
    for number, fact in enumerate(told):
        changed = known.merge(delta_of([fact]))
        assert await stores[number % 2].commit("b", delta_of([fact])) == Committed()
        for store in stores:
            summary = await store.summary("b")
            assert same_but_for_the_version(summary, known)
            assert await store.state("b") == known
            versions.append(summary.version)
        assert versions[-1] == versions[-2]
        assert (versions[-1] > versions[-3]) is not changed.empty


async def test_nothing_is_known_of_an_unknown_batch(pair: Pair) -> None:
    store, _ = pair(None)
    assert (await store.state("unknown")).empty
    assert await store.summary("unknown") == BatchSummary()
    await store.ping()
    store.ensure_reachable()


async def test_what_a_store_hands_out_is_not_the_store(pair: Pair) -> None:
    store, _ = pair(None)
    delta = delta_of([completed("a")])
    await store.commit("b", delta)
    for ours in (delta, await store.state("b")):
        ours.merge(delta_of([failed("a", 9), completed("x")]))
    assert await store.state("b") == delta_of([completed("a")])


@pytest.mark.parametrize("attempts", [1, 2, 5])
async def test_concurrent_commits_to_one_batch_lose_nothing(pair: Pair, attempts: int) -> None:
    stores = pair(CommitPolicy(attempts, first_wait_seconds=0.0005, longest_wait_seconds=0.002))
    told: list[Fact] = [completed(f"essay-{number}", number) for number in range(40)]
    told += [EssayPhaseEnded("nlp", "shared", Outcome(letter), at) for letter in "cf" for at in range(10)]
    results: list[Committed] = []

    async def commit(number: int, fact: Fact) -> None:
        results.append(await stores[number % 2].commit("b", delta_of([fact])))

    async with anyio.create_task_group() as group:
        for number, fact in enumerate(told):
            group.start_soon(commit, number, fact)
    assert len(results) == len(told)
    assert all(result.fallback == (result.conflicts == attempts) for result in results)
    assert (sum(result.conflicts for result in results) > 0) is isinstance(stores[0], ByTransaction)
    if attempts == 1 and isinstance(stores[0], ByTransaction):
        assert any(result.fallback for result in results)
    for store in stores:
        assert await store.state("b") == delta_of(told)
        summary = await store.summary("b")
        assert same_but_for_the_version(summary, delta_of(told))


async def test_a_cancelled_commit_is_merged_wholly_or_not_at_all(pair: Pair) -> None:
    store, _ = pair(None)
    delta = delta_of([completed("a"), completed("b", 2, "nlp"), EssaysRegistered(("a", "b"), 2, 0)])
    outcomes = set()
    for patience in range(40):
        batch_id = f"b{patience}"
        async with anyio.create_task_group() as group:
            group.start_soon(store.commit, batch_id, delta)
            for _ in range(patience):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        state = await store.state(batch_id)
        assert state in (BatchState(), delta)
        assert same_but_for_the_version(await store.summary(batch_id), state)
        outcomes.add(state.empty)
    assert outcomes == {True, False}


@st.composite
def ids_alike(draw: st.DrawFn) -> list[str]:
    """Ids that would be the same under some encoding or none, or parts of each other's keys."""
    nasty = st.text(":*{}[] %?/\\^-_.~'\"A7é😀\x00\n", min_size=1, max_size=6)
    ids = {"*", "outbox"}
    for base in draw(st.lists(nasty, min_size=1, max_size=3)):
        ids |= {base, quote(base), quote(base, safe=""), quote(quote(base)), unquote(base)}
        ids |= {base.lower(), base.replace("%", ""), "".join(filter(str.isalnum, base))}
        ids |= {f"{{{base}}}", f"{base}:summary", f"{base}:essays", f"{base}{'😀' * 255}"[:255]}
    return draw(st.permutations(sorted(ids - {""})))


@against_servers
@given(ids=ids_alike())
async def test_no_batch_touches_another_whatever_their_ids(pair: Pair, ids: list[str]) -> None:
    store, _ = pair(None)
    for batch_id in ids:
        await store.commit(batch_id, delta_of([completed(batch_id), failed(batch_id, 2, "nlp")]))
    for batch_id in ids:
        expected = delta_of([completed(batch_id), failed(batch_id, 2, "nlp")])
        assert await store.state(batch_id) == expected
        assert same_but_for_the_version(await store.summary(batch_id), expected)


async def test_memory_forgets_a_batch_whole_when_its_time_is_over() -> None:
    now = 0.0
    store = MemoryStateStore(law=LAW, ttl_seconds=10, clock=lambda: now)
    first, second = delta_of([completed("a")]), delta_of([completed("b", 2, "nlp")])
    await store.commit("other", first)
    await store.commit("b", first)
    now = 9.5
    await store.commit("b", second)  # renews all of it
    now = 19.0
    assert (await store.state("other")).empty
    assert (await store.state("b")) == delta_of([completed("a"), completed("b", 2, "nlp")])
    now = 19.5
    assert (await store.state("b")).empty
    assert await store.summary("b") == BatchSummary()
    await store.commit("b", second)
    assert await store.state("b") == second
