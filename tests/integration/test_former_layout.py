"""Batches that a release before 0.3.0 stored in Redis are taken over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest

from bcs.domain.facts import EssaysRegistered, Fact, Outcome, PhaseInvalidated, PhaseOutcome, PhaseReported
from bcs.domain.state import delta_of
from bcs.errors import StoreCorrupted
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.commands import Command
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.multiplexer import Replies
from tests.integration.stores import MakeStore, completed, failed, same_but_for_the_version

pytestmark = pytest.mark.anyio

UUID = "00000001-6f2c-4d3a-9b1e-5c7d8e9f0a1b"
FACTS: list[Fact] = [
    EssaysRegistered(("a", UUID), 2, 100),
    completed("a", 2**53 + 1),
    failed(UUID, 7),
    PhaseOutcome("nlp", "cancelled", completed=("a",), failed=(), speaks_for_all=False, at_us=9, repeat_key="k"),
    PhaseReported("ai_feedback", Outcome.FAILED, 8),
    PhaseInvalidated("nlp", "a", 3),
]


def number(at_us: int) -> bytes:
    return at_us.to_bytes(8, "big")


def stored(keys: BatchKeys) -> list[Command]:
    """FACTS as that release stored them."""
    registers, essays = keys.former
    return [
        ("HSET", registers, "expected", "100:2", "version", "6", "whole", "5 redis/archive"),
        ("HSET", registers, "slot:spellcheck", "0", "slot:nlp k", "1", "outcome:nlp:k", "9:0:cancelled"),
        ("HSET", registers, "report:ai_feedback", "f8", "invalid:nlp:a", "3"),
        ("HSET", essays, "a", number(9) + b"c" + number(2**53 + 1) + b"c" + number(0)),
        ("HSET", essays, UUID, number(7) + b"f" + number(7)),
        *(("PEXPIRE", key, 60_000) for key in keys.former),
    ]


@pytest.fixture
async def keys(gateway: RedisGateway, redis_key_prefix: str) -> BatchKeys:
    keys = BatchKeys(redis_key_prefix, "b")
    await gateway.call(*stored(keys))
    return keys


@pytest.fixture
def store(gateway: RedisGateway, in_redis: MakeStore) -> RedisStateStore:
    return in_redis(gateway)


async def test_a_summary_takes_the_batch_over(store: RedisStateStore, gateway: RedisGateway, keys: BatchKeys) -> None:
    assert await store.state("b") == await store.partial_state("b") == delta_of(FACTS)
    assert same_but_for_the_version(await store.summary("b"), delta_of(FACTS))
    assert await gateway.call(("EXISTS", *keys.former)) == [0]
    [ttl_ms] = await gateway.call(("PTTL", keys.facts))
    assert 0 < ttl_ms <= 60_000
    assert await store.state("b") == delta_of(FACTS)
    assert same_but_for_the_version(await store.summary("b"), delta_of(FACTS))


async def test_a_batch_of_unknown_size_does_not_delay_the_shared_connection(
    store: RedisStateStore,
    gateway: RedisGateway,
    keys: BatchKeys,
    redis_key_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared: list[object] = []
    call = RedisGateway.call_multiplexed

    async def noted(self: RedisGateway, *commands: Command) -> Replies:
        # A service of other tests may poll its queues in this process.
        shared.extend(each[0] for each in commands if any(redis_key_prefix in str(word) for word in each))
        return await call(self, *commands)

    monkeypatch.setattr(RedisGateway, "call_multiplexed", noted)
    assert same_but_for_the_version(await store.summary("b"), delta_of(FACTS))
    assert shared == ["EXISTS", "EXISTS", "GET", "HMGET"]


async def test_a_commit_before_that_loses_nothing(
    store: RedisStateStore, gateway: RedisGateway, keys: BatchKeys
) -> None:
    more: list[Fact] = [completed("new"), completed(UUID, 8), completed("a", 1, "nlp")]
    await store.commit("b", delta_of(more))
    assert await gateway.call(("EXISTS", *keys.former)) == [2]
    assert await store.state("b") == delta_of([*FACTS, *more])
    assert same_but_for_the_version(await store.summary("b"), delta_of([*FACTS, *more]))
    assert await gateway.call(("EXISTS", *keys.former), ("HGET", keys.facts, "essays")) == [0, b"3"]
    assert await store.state("b") == delta_of([*FACTS, *more])


async def test_replicas_that_take_over_together_lose_nothing(
    gateway: RedisGateway, in_redis: MakeStore, keys: BatchKeys
) -> None:
    told = delta_of(FACTS)
    async with anyio.create_task_group() as group:
        for at_us in range(1, 9):
            store, more = in_redis(gateway), delta_of([completed("new", at_us)])
            told.merge(more)
            group.start_soon(store.summary, "b")
            group.start_soon(store.commit, "b", more)
    await store.summary("b")
    assert await gateway.call(("EXISTS", *keys.former)) == [0]
    assert await store.state("b") == told


@pytest.mark.parametrize(
    ("place", "field", "value"),
    [(0, "report:nlp", "x12"), (0, "slot:nlp", "7"), (1, "a", "short"), (1, "a", "12345678x12345678")],
)
async def test_what_bcs_did_not_write_is_reported(
    store: RedisStateStore, gateway: RedisGateway, keys: BatchKeys, place: int, field: str, value: str
) -> None:
    await gateway.call(("HSET", keys.former[place], field, value))
    uses: list[Callable[[str], Awaitable[object]]] = [store.state, store.summary]
    for use in uses:
        with pytest.raises(StoreCorrupted, match=r"\{b\}"):
            await use("b")
