"""Special cases of the state store in Redis: other writers, expiry, foreign keys, lost summaries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.crc import key_slot
from redis.exceptions import ResponseError

from bcs.domain.facts import EssaysRegistered, Fact, PhaseOutcome
from bcs.domain.law import CompleteWhen, CompletionLaw
from bcs.domain.progress import BatchSummary, summarize
from bcs.domain.state import BatchState, delta_of
from bcs.errors import StoreCorrupted
from bcs.storage.committing import CommitPolicy
from bcs.storage.ports import Committed
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.batch_commands import merge
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.commands import Command
from bcs.storage.redis.errors import CORRUPT, code_of
from bcs.storage.redis.gateway import RedisGateway, RedisSession
from bcs.storage.redis.outbox import RedisOutbox
from bcs.wire.published import OutboundMessage
from tests.integration.stores import (
    BREAKER_FAILURES,
    PHASES,
    MakeStore,
    completed,
    failed,
    same_but_for_the_version,
)
from tests.support.laws import LAW
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


class RacingSession(RedisSession):
    """Lets a rival in between WATCH and EXEC."""

    def __init__(self, inner: RedisSession, rival: Callable[[], Awaitable[None]]) -> None:
        self.peer = inner.peer
        self._inner = inner
        self._rival = rival
        self._watching = False

    async def call(self, *commands: Command) -> list[Any]:
        if self._watching and commands[0] == ("MULTI",):
            await self._rival()
        self._watching = self._watching or commands[0][0] == "WATCH"
        return await self._inner.call(*commands)

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        return await self._inner.exchange(commands)

    @contextmanager
    def paused(self) -> Iterator[None]:
        with self._inner.paused():
            yield


class RacingGateway(RedisGateway):
    """A real gateway; a rival may write between WATCH and EXEC."""

    rival: Callable[[], Awaitable[None]] | None = None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[RedisSession]:
        async with super().session() as session:
            yield RacingSession(session, self.rival) if self.rival else session


@pytest.fixture
def gateways(redis_url: str, make_gateway: Callable[..., Any]) -> list[RacingGateway]:
    return [make_gateway(redis_url, RacingGateway, deadline=5, failures=BREAKER_FAILURES) for _ in range(2)]


class InRedis:
    """A store in Redis together with a view of what it wrote there."""

    def __init__(self, gateways: list[RacingGateway], make: MakeStore, prefix: str) -> None:
        self.gateway, self.other_gateway = gateways
        self.make = make
        self.store = make(self.gateway)
        self.rival = make(self.other_gateway)
        self.prefix = prefix

    def keys(self, batch_id: str) -> BatchKeys:
        return BatchKeys(self.prefix, batch_id)

    def all_keys(self, batch_id: str) -> list[str]:
        return list(self.keys(batch_id).all)

    async def run(self, *commands: Command) -> list[Any]:
        return await self.other_gateway.call(*commands)

    async def ttls_ms(self, batch_id: str) -> list[int]:
        """Of all keys that exist, at one instant."""
        replies = await self.run(("MULTI",), *(("PTTL", key) for key in self.all_keys(batch_id)), ("EXEC",))
        return [ttl for ttl in replies[-1] if ttl != -2]

    async def expire_in(self, batch_id: str, milliseconds: int) -> None:
        await self.run(*(("PEXPIRE", key, milliseconds) for key in self.all_keys(batch_id)))

    def fall_back(self) -> RedisStateStore:
        """A store whose every optimistic attempt loses."""

        async def touch() -> None:
            await self.rival.commit("b", BatchState())

        self.gateway.rival = touch
        return self.make(self.gateway, CommitPolicy(attempts=2, first_wait_seconds=0.001))


@pytest.fixture
def redis(gateways: list[RacingGateway], in_redis: MakeStore, redis_key_prefix: str) -> InRedis:
    return InRedis(gateways, in_redis, redis_key_prefix)


def never() -> NoReturn:
    raise AssertionError("it writes")


EVERYTHING = delta_of([EssaysRegistered(("a",), 1, 0), *(completed("a", 1, phase) for phase in PHASES)])


@pytest.mark.parametrize("losses", [0, 1, 2, 3])
async def test_every_lost_attempt_is_counted_and_the_rival_s_facts_are_kept(redis: InRedis, losses: int) -> None:
    written: list[Fact] = []

    async def write() -> None:
        if len(written) < losses:
            written.append(failed("a", 10 * len(written), "nlp"))
            await redis.rival.commit("b", delta_of(written[-1:]))

    redis.gateway.rival = write
    store = redis.make(redis.gateway, CommitPolicy(attempts=3, first_wait_seconds=0.001))
    mine: list[Fact] = [completed("a", 10, "nlp"), completed("mine"), EssaysRegistered(("a", "mine"), 2, 5)]
    assert await store.commit("b", delta_of(mine)) == Committed(conflicts=losses, fallback=losses == 3)
    redis.gateway.rival = None
    assert await store.state("b") == delta_of([*mine, *written])
    assert same_but_for_the_version(await store.summary("b"), delta_of([*mine, *written]))


async def test_every_write_renews_all_keys_together(redis: InRedis) -> None:
    await redis.store.commit("b", EVERYTHING)
    assert len(await redis.ttls_ms("b")) == 3
    for store in (redis.store, redis.fall_back()):
        await redis.expire_in("b", 10_000)
        await store.commit("b", delta_of([completed("a")]))
        redis.gateway.rival = None
        ttls = await redis.ttls_ms("b")
        assert len(set(ttls)) == 1, ttls
        assert 50_000 < ttls[0] <= 60_000


async def test_expiry_forgets_the_batch_whole(redis: InRedis) -> None:
    store = redis.make(redis.gateway, ttl_seconds=1)
    await store.commit("b", EVERYTHING)

    async def gone() -> bool:
        state = await store.state("b")
        assert state in (EVERYTHING, BatchState())
        return state.empty

    assert not await gone()
    await wait_until(gone)
    assert await store.summary("b") == BatchSummary()
    assert await redis.run(("EXISTS", *redis.all_keys("b"))) == [0]


async def test_a_deleted_summary_is_rebuilt(redis: InRedis) -> None:
    await redis.store.commit("b", EVERYTHING)
    await redis.run(("DEL", redis.keys("b").summaries))
    rebuilt = await redis.store.summary("b")
    assert same_but_for_the_version(rebuilt, EVERYTHING)
    assert rebuilt.version == 1  # to make it anew is no commit
    assert await redis.run(("EXISTS", redis.keys("b").summaries)) == [1]
    assert await redis.rival.summary("b") == rebuilt


async def test_a_rebuilt_summary_expires_with_the_rest_of_the_batch(redis: InRedis) -> None:
    await redis.store.commit("b", EVERYTHING)
    await redis.expire_in("b", 20_000)
    await redis.run(("DEL", redis.keys("b").summaries))
    await redis.store.summary("b")
    ttls = await redis.ttls_ms("b")
    assert len(ttls) == 3
    assert max(ttls) - min(ttls) < 1000, ttls


async def test_a_batch_that_expires_during_a_summary_leaves_no_keys(redis: InRedis) -> None:
    await redis.store.commit("b", EVERYTHING)
    await redis.run(("DEL", redis.keys("b").summaries))

    async def expire() -> None:
        redis.gateway.rival = None
        await redis.run(("DEL", *redis.all_keys("b")))

    redis.gateway.rival = expire  # between what is read of the batch and what is written
    assert await redis.store.summary("b") == BatchSummary()
    assert redis.gateway.rival is None
    assert -1 not in await redis.ttls_ms("b")


async def test_a_writer_that_comes_between_reading_and_rebuilding_wins(redis: InRedis) -> None:
    await redis.store.commit("b", EVERYTHING)
    await redis.run(("DEL", redis.keys("b").summaries))
    later = delta_of([failed("a", 9)])

    async def write() -> None:
        redis.gateway.rival = None
        await redis.rival.commit("b", later)

    redis.gateway.rival = write
    await redis.store.summary("b")
    expected = EVERYTHING.copy()
    expected.merge(later)
    assert same_but_for_the_version(await redis.store.summary("b"), expected)


FOREIGN: dict[str, tuple[str, tuple[str | bytes, ...]]] = {
    "a string for essays": ("essays", ("SET", "x")),
    "a list for essays": ("essays", ("RPUSH", "x")),
    "a set for essays": ("essays", ("SADD", "x")),
    "a string for the rest": ("batch", ("SET", "x")),
    "a record that is empty": ("essays", ("HSET", "a", "")),
    "a record that is cut off": ("essays", ("HSET", "a", "1234567")),
    "a record with half a mark": ("essays", ("HSET", "a", "12345678c123")),
    "a record with a mark for no phase": ("essays", ("HSET", "a", "12345678c12345678")),
    "an essay that is not UTF-8": ("essays", ("HSET", b"\xff", "12345678")),
    "a report of no time": ("batch", ("HSET", "report:nlp", "c")),
    "a report of no outcome": ("batch", ("HSET", "report:nlp", "x12")),
    "an outcome of no time": ("batch", ("HSET", "outcome:nlp:", ":0:cancelled")),
    "an outcome for somebody": ("batch", ("HSET", "outcome:nlp:", "12:2:cancelled")),
    "an outcome without a status": ("batch", ("HSET", "outcome:nlp:", "12:0")),
    "an invalidation of no time": ("batch", ("HSET", "invalid:nlp:a", "")),
    "an expectation of no count": ("batch", ("HSET", "expected", "12")),
    "a version that is no number": ("batch", ("HSET", "version", "new")),
    "a slot that is no number": ("batch", ("HSET", "slot:nlp", "first")),
    "a slot that leaves one out": ("batch", ("HSET", "slot:nlp", "1")),
}


@pytest.mark.parametrize("foreign", FOREIGN)
async def test_what_bcs_did_not_write_is_reported_and_harms_no_other_batch(redis: InRedis, foreign: str) -> None:
    async def commit_everything(batch_id: str) -> Committed:
        return await redis.store.commit(batch_id, EVERYTHING)

    suffix, (command, *arguments) = FOREIGN[foreign]
    key = f"{redis.keys('b').stem}:{suffix}"
    await redis.store.commit("other", EVERYTHING)
    await redis.run((command, key, *arguments), ("PEXPIRE", key, 60_000))
    before = await redis.run(("DUMP", key))
    for _ in range(BREAKER_FAILURES + 1):
        uses: list[Callable[[str], Awaitable[object]]] = [redis.store.state, redis.store.summary, commit_everything]
        for use in uses:
            with pytest.raises(StoreCorrupted) as refusal:
                await use("b")
            assert redis.keys("b").stem in str(refusal.value)
    assert await redis.run(("DUMP", key)) == before
    assert redis.gateway.circuit == "closed"
    assert await redis.store.state("other") == EVERYTHING
    assert await redis.store.summary("other") == summarize(EVERYTHING, LAW, 1)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"x",
        b"\xff",
        b"[]",
        b"{}",
        b"12",
        b'{"v":1,"known":1,"expected":1,"phases":[]}',
        b'{"v":1,"known":1,"expected":1,"phases":{"nlp":1}}',
        b'{"v":1,"known":1,"expected":1,"phases":{"nlp":[1,1]}}',
        b'{"v":1,"known":1,"expected":1,"phases":{"nlp":["no","one","none"]}}',
        b'{"v":1,"known":1,"expected":1,"phases":{"nlp":[1,1,0,"then"]}}',
    ],
    ids=lambda text: repr(text[:60]),
)
async def test_a_foreign_summary_is_reported_and_replaced_by_the_next_commit(redis: InRedis, text: bytes) -> None:
    await redis.store.commit("b", EVERYTHING)
    await redis.run(("HSET", redis.keys("b").summaries, LAW.fingerprint, text))
    for _ in range(BREAKER_FAILURES + 1):
        with pytest.raises(StoreCorrupted):
            await redis.store.summary("b")
    assert redis.gateway.circuit == "closed"
    await redis.store.commit("b", BatchState())
    assert await redis.store.summary("b") == summarize(EVERYTHING, LAW, 2)


async def test_summaries_that_are_no_hash_are_reported_and_replaced(redis: InRedis) -> None:
    await redis.store.commit("b", EVERYTHING)
    await redis.run(("SET", redis.keys("b").summaries, "x", "PX", 60_000))
    with pytest.raises(StoreCorrupted):
        await redis.store.summary("b")
    await redis.store.commit("b", BatchState())
    assert await redis.store.summary("b") == summarize(EVERYTHING, LAW, 2)


async def test_a_list_without_its_outcome_is_reported(redis: InRedis) -> None:
    await redis.store.commit(
        "b",
        delta_of(
            [
                PhaseOutcome(
                    "nlp", "cancelled", completed=("a",), failed=(), speaks_for_all=False, at_us=1, repeat_key="k"
                )
            ]
        ),
    )
    assert await redis.run(("HDEL", redis.keys("b").meta, "outcome:nlp:k")) == [1]
    with pytest.raises(StoreCorrupted):
        await redis.store.state("b")


SETTLED = CompletionLaw({"spellcheck": (), "nlp": ()}, {"nlp": CompleteWhen.EVERY_ESSAY_SETTLED})


async def test_stores_with_different_laws_keep_a_summary_each(redis: InRedis) -> None:
    """As there are during a deployment: neither makes the other's summary anew at every read, nor answers by it."""
    stores = {law: redis.make(redis.gateway, law=law) for law in (LAW, SETTLED)}
    keys, known = redis.keys("b"), delta_of([EssaysRegistered(("a", "b"), 2, 0), completed("a", 1, "nlp")])
    known.merge(delta_of([failed("b", 1, "nlp")]))
    await stores[LAW].commit("b", known)
    for attempt in range(3):
        for law, store in stores.items():
            assert await store.summary("b") == summarize(known, law, 1)
            assert (await store.summary("b")).complete("nlp") is (law is SETTLED)
        if attempt == 0:
            kept = await redis.run(("HGETALL", keys.summaries), ("DUMP", keys.summaries))
            assert set(kept[0][::2]) == {law.fingerprint.encode() for law in stores}
            # From now on nothing is written: not even a write that changes nothing, and that WATCH would see.
            redis.gateway.session = never  # type: ignore[method-assign]
    assert await redis.run(("HGETALL", keys.summaries), ("DUMP", keys.summaries)) == kept


async def test_a_commit_leaves_no_summary_of_an_older_version(redis: InRedis) -> None:
    stores = [redis.make(redis.gateway, law=law) for law in (LAW, SETTLED)]
    known = delta_of([EssaysRegistered(("a",), 1, 0), completed("a", 1, "nlp")])
    await stores[0].commit("b", known)
    assert (await stores[1].summary("b")).complete("nlp")
    change = delta_of([failed("a", 2, "nlp")])
    await stores[0].commit("b", change)
    assert not (await stores[1].summary("b")).complete("nlp")
    await redis.fall_back().commit("b", delta_of([completed("a", 3, "nlp")]))
    redis.gateway.rival = None
    for store in stores:
        assert (await store.summary("b")).complete("nlp")


async def test_what_another_layout_wrote_is_not_read(redis: InRedis) -> None:
    old = f"{redis.prefix}{{b}}"
    await redis.run(("HSET", f"{old}:batch", "expected", "1:1", "mark:nlp", "c9", "version", "7", "slot:nlp", "0"))
    await redis.run(("HSET", f"{old}:essays", "a", b"\0" * 8 + b"c" + b"\0" * 8))
    await redis.run(("SET", f"{old}:verdicts", '{"v":7,"known":1,"expected":1,"phases":{"nlp":[1,1,0]}}'))
    assert await redis.store.summary("b") == BatchSummary()
    assert (await redis.store.state("b")).empty
    await redis.store.commit("b", EVERYTHING)
    assert await redis.store.state("b") == EVERYTHING


async def test_a_mark_of_no_known_outcome_is_reported(redis: InRedis) -> None:
    await redis.store.commit("b", EVERYTHING)
    await redis.run(("HSET", redis.keys("b").essays, "a", "12345678x12345678"), ("DEL", redis.keys("b").summaries))
    for use in (redis.store.state, redis.store.summary):
        with pytest.raises(StoreCorrupted):
            await use("b")


async def test_batches_may_have_their_phases_in_different_orders(redis: InRedis) -> None:
    for batch, phases in (("b", PHASES), ("c", PHASES[::-1])):
        known = BatchState()
        for at_us, phase in enumerate(phases):
            delta = delta_of([completed(batch, at_us, phase), failed(f"{batch}{at_us}", at_us, phase)])
            known.merge(delta)
            await redis.store.commit(batch, delta)
        assert await redis.store.state(batch) == known


async def test_a_fallback_with_a_foreign_key_leaves_no_outdated_summary(redis: InRedis) -> None:
    await redis.store.commit("b", delta_of([completed("a")]))
    foreign = redis.keys("b").essays
    store = redis.fall_back()
    put = redis.gateway.rival
    assert put is not None

    async def touch_and_put() -> None:
        await redis.run(("DEL", foreign))
        await put()
        await redis.run(("SET", foreign, "x", "PX", 60_000))

    redis.gateway.rival = touch_and_put
    policy = CommitPolicy(attempts=1)
    with pytest.raises(StoreCorrupted):
        await redis.make(redis.gateway, policy).commit("b", delta_of([failed("a", 5), completed("a", 5, "nlp")]))
    redis.gateway.rival = None
    await redis.run(("DEL", foreign))
    assert same_but_for_the_version(await store.summary("b"), await store.state("b"))


@pytest.mark.parametrize(
    ("suffix", "field", "value"),
    [("batch", "version", "new"), ("batch", "version", "1" * 19), ("essays", "a", "short")],
)
async def test_the_script_has_its_own_error_code_for_foreign_data(
    redis: InRedis, suffix: str, field: str, value: str
) -> None:
    keys = redis.keys("b")
    await redis.run(("HSET", f"{keys.stem}:{suffix}", field, value), ("PEXPIRE", f"{keys.stem}:{suffix}", 60_000))
    with pytest.raises(ResponseError) as raised:
        await redis.run(merge(keys, delta_of([completed("a")]), 60_000))
    assert code_of(raised.value) == CORRUPT


@settings(deadline=None)
@given(batch_id=st.text("{}:%a ", min_size=1))
async def test_all_keys_of_a_batch_lie_in_one_slot_of_a_cluster(batch_id: str) -> None:
    keys = BatchKeys("bcs:", batch_id)
    assert len(set(keys.all)) == len(keys.all)
    assert len({key_slot(name.encode()) for name in keys.all}) == 1


async def test_a_batch_that_is_called_outbox_is_not_the_outbox(redis: InRedis) -> None:
    outbox = RedisOutbox(redis.gateway, key_prefix=redis.prefix, consumer="c", limit=9)
    message = OutboundMessage("dead_letter", "t", None, b"v")
    await outbox.append([message, message])
    await redis.store.commit("outbox", EVERYTHING)
    [leased, unlucky] = await outbox.lease(2)
    await outbox.park(unlucky, "too large")
    assert leased.message == message
    assert await redis.store.state("outbox") == EVERYTHING
