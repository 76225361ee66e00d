"""The merge law as it runs inside Redis is the merge law of the model."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bcs.domain.facts import Outcome
from bcs.domain.state import BatchState, Expected, Mark
from bcs.domain.verdicts import summarize
from bcs.store.codec import BatchKeys
from bcs.store.committing import CommitPolicy
from bcs.store.redis_gateway import RedisGateway
from bcs.store.redis_state import RedisStateStore
from tests.integration.stores import PHASES, FallbackOnly, MakeStore

pytestmark = pytest.mark.anyio

# Ties, neighbours, other lengths, bytes with the highest bit, numbers that Lua's doubles cannot tell apart.
times = st.sampled_from([0, 1, 9, 10, 99, 100, 127, 128, 255, 256, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 2])
essays = st.sampled_from(["a", "b", "c1", "f0", "\x00\n", "😀", "-1", "expected", "version", "mark:nlp"])
marks = st.builds(Mark, st.sampled_from(Outcome), times)
deltas = st.builds(
    BatchState,
    st.dictionaries(st.sampled_from(PHASES), st.dictionaries(essays, marks, min_size=1, max_size=3)),
    st.dictionaries(st.sampled_from(PHASES), marks),
    st.dictionaries(essays, times, max_size=4),
    st.none() | st.builds(Expected, st.sampled_from([0, 1, 9, 10, 2**53, 2**53 + 1, 10**20]), times),
)
C1, F1 = Mark(Outcome.COMPLETED, 2**53), Mark(Outcome.FAILED, 2**53)


@pytest.fixture
def script(gateway: RedisGateway, in_redis: MakeStore) -> RedisStateStore:
    """A store that commits by the script alone."""
    return in_redis(gateway, CommitPolicy(attempts=1), ttl_seconds=90, kind=FallbackOnly)


@pytest.fixture
def store(gateway: RedisGateway, in_redis: MakeStore) -> RedisStateStore:
    return in_redis(gateway)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(deltas, min_size=1, max_size=5))
@example(
    history=[
        BatchState(batch_marks={"nlp": C1}),
        BatchState(batch_marks={"nlp": F1}),
        BatchState(batch_marks={"nlp": C1}),
    ]
)
@example(
    history=[
        BatchState(expected=Expected(9, 10)),
        BatchState(expected=Expected(10, 10)),
        BatchState(expected=Expected(2, 9)),
    ]
)
async def test_the_script_gives_the_state_of_the_model(
    script: RedisStateStore, store: RedisStateStore, history: list[BatchState]
) -> None:
    batch_id, model = uuid.uuid4().hex, BatchState()
    for delta in history:
        model.absorb(delta)
        assert (await script.commit(batch_id, delta)).fallback
        assert await store.state(batch_id) == model
    summary = await store.summary(batch_id)
    assert summary == summarize(model, summary.version)
    assert summary.version >= (0 if model.empty else len(history))
    # What the script wrote is what an optimistic commit builds on.
    for delta in history[::-1]:
        await store.commit(batch_id, delta)
    assert await store.state(batch_id) == model


async def test_the_script_drops_the_summary_counts_up_and_renews_everything(
    gateway: RedisGateway, redis_key_prefix: str, script: RedisStateStore, store: RedisStateStore
) -> None:
    keys = BatchKeys(redis_key_prefix, "b")
    await store.commit("b", BatchState({"nlp": {"a": C1}}, {}, {"a": 0}, Expected(1, 0)))
    assert (await store.summary("b")).complete("nlp")
    await script.commit("b", BatchState({"nlp": {"a": F1}}))
    names = keys.all
    replies = await gateway.call(("MULTI",), *(("PTTL", name) for name in names), ("EXEC",))
    assert replies[-1][0] == -2
    assert len(set(replies[-1][1:])) == 1
    assert 80_000 < replies[-1][1] <= 90_000
    assert await gateway.call(("HGET", keys.meta, "version")) == [b"2"]
    assert not (await store.summary("b")).complete("nlp")
