"""Special cases of the state store in Redis: other writers, expiry, foreign keys, lost summaries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.domain.facts import EssaysRegistered, Fact, Outcome, PhaseInvalidated, PhaseOutcome, PhaseReported
from bcs.domain.law import CompleteWhen, CompletionLaw
from bcs.domain.progress import BatchSummary, summarize
from bcs.domain.state import BatchState, delta_of
from bcs.errors import StoreCorrupted, StoreUnavailable, TooManyEssays
from bcs.observability.failpoints import FailPoint, fail_points
from bcs.storage.committing import CommitPolicy
from bcs.storage.ports import Committed
from bcs.storage.redis.batch_codec import BatchKeys, StoredBatch
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.commands import Command
from bcs.storage.redis.gateway import RedisGateway, RedisSession
from bcs.storage.redis.stored_batches import StoredBatches
from bcs.wire.published import OutboundMessage
from tests.integration.stores import (
    BREAKER_FAILURES,
    PHASES,
    ByTransaction,
    MakeStore,
    completed,
    failed,
    same_but_for_the_version,
)
from tests.support.laws import LAW
from tests.support.redis_queues import redis_outbox
from tests.support.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.anyio


class RacingSession(RedisSession):
    """Lets a rival in between WATCH and EXEC."""

    def __init__(self, inner: RedisSession, rival: Callable[[], Awaitable[None]]) -> None:
        self.peer, self.named = inner.peer, inner.named
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
    async def session(self, *, deadline_seconds: float | None = None) -> AsyncIterator[RedisSession]:
        async with super().session(deadline_seconds=deadline_seconds) as session:
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
        keys = self.keys(batch_id)
        return [keys.facts, keys.summary(LAW.fingerprint)]

    async def made(self, batch_id: str, law: CompletionLaw = LAW) -> BatchSummary:
        """A summary that is made and stored."""
        summaries: list[tuple[str, BatchSummary, CompletionLaw]] = []
        maker = self.make(self.other_gateway, law=law, summary_made=lambda *made: summaries.append(made))
        for _ in range(2):  # the second question shows that others may ask, too
            await maker.summary(batch_id)
        for made in summaries:
            assert await maker.store_summary(*made) == Committed()
        return summaries[-1][1]

    async def run(self, *commands: Command) -> list[Any]:
        return await self.other_gateway.call(*commands)

    async def ttls_ms(self, batch_id: str) -> list[int]:
        """Of all keys that exist, at one instant."""
        replies = await self.run(("MULTI",), *(("PTTL", key) for key in self.all_keys(batch_id)), ("EXEC",))
        return [ttl for ttl in replies[-1] if ttl != -2]

    async def expire_in(self, batch_id: str, milliseconds: int) -> None:
        await self.run(*(("PEXPIRE", key, milliseconds) for key in self.all_keys(batch_id)))


@pytest.fixture
def redis(gateways: list[RacingGateway], in_redis: MakeStore, redis_key_prefix: str) -> InRedis:
    return InRedis(gateways, in_redis, redis_key_prefix)


def never(*_: object) -> NoReturn:
    raise AssertionError("it writes, or makes a summary")


EVERYTHING = delta_of([EssaysRegistered(("a",), 1, 0), *(completed("a", 1, phase) for phase in PHASES)])


@pytest.mark.parametrize("losses", [0, 1, 2, 3])
async def test_every_lost_attempt_is_counted_and_the_rival_s_facts_are_kept(redis: InRedis, losses: int) -> None:
    written: list[Fact] = []

    async def write() -> None:
        if len(written) < losses:
            written.append(failed("a", 10 * len(written), "nlp"))
            await redis.rival.commit("b", delta_of(written[-1:]))

    redis.gateway.rival = write
    store = redis.make(redis.gateway, CommitPolicy(attempts=3, first_wait_seconds=0.001), kind=ByTransaction)
    mine: list[Fact] = [completed("a", 10, "nlp"), completed("mine"), EssaysRegistered(("a", "mine"), 2, 5)]
    assert await store.commit("b", delta_of(mine)) == Committed(conflicts=losses, fallback=losses == 3)
    redis.gateway.rival = None
    assert await store.state("b") == delta_of([*mine, *written])
    assert same_but_for_the_version(await store.summary("b"), delta_of([*mine, *written]))


async def test_the_fallback_of_a_transaction_refuses_essays_without_room(redis: InRedis) -> None:
    """Scripts were refused, and are allowed again."""
    rivals = 0

    async def write() -> None:
        nonlocal rivals
        rivals += 1
        await redis.rival.commit("b", delta_of([completed(f"{rivals}-{number}") for number in range(2)]))

    redis.gateway.rival = write
    policy = CommitPolicy(attempts=2, first_wait_seconds=0.001)
    store = redis.make(redis.gateway, policy, kind=ByTransaction, max_essays=3)
    with pytest.raises(TooManyEssays):
        await store.commit("b", delta_of([completed("mine")]))
    assert rivals == 2


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


async def test_a_summary_is_made_once_for_all_processes(redis: InRedis) -> None:
    await redis.store.commit("b", EVERYTHING)
    made = await redis.made("b")
    assert same_but_for_the_version(made, EVERYTHING)
    assert await redis.make(redis.gateway, summary_made=never).summary("b") == made
    await redis.run(("DEL", redis.all_keys("b")[1]))
    asking_again = redis.make(redis.gateway, summary_made=never)
    assert await asking_again.summary("b") == made
    with pytest.raises(AssertionError):
        await asking_again.summary("b")
    assert await redis.made("b") == made, "to make a summary is no change"


async def test_a_process_keeps_the_summary_that_it_made(redis: InRedis) -> None:
    summaries: list[BatchSummary] = []
    store = redis.make(redis.gateway, summary_made=lambda _, made, __: summaries.append(made))
    await redis.store.commit("b", EVERYTHING)
    assert [await store.summary("b") for _ in range(3)] == summaries * 3
    assert len(summaries) == 1
    await redis.rival.commit("b", delta_of([failed("a", 9, "nlp")]))
    assert not (await store.summary("b")).complete("nlp"), "another process has changed the batch"


async def test_a_summary_of_another_server_is_not_used(
    redis: InRedis, private_valkey: EmbeddedServer, make_gateway: Callable[..., Any]
) -> None:
    """It may have the same version there with other facts, as after a failover that lost writes."""
    gateway = make_gateway(private_valkey.address, deadline=5)
    store, key = redis.make(gateway), redis.keys("b").facts
    await store.commit("b", EVERYTHING)
    before = await store.summary("b")
    private_valkey.restart()
    await store.commit("b", delta_of([failed("a", 9, "nlp")]))
    await gateway.call(("HSET", key, "version", before.version))
    assert not (await store.summary("b")).complete("nlp")


async def test_a_summary_is_not_stored_on_another_server(
    redis: InRedis, private_valkey: EmbeddedServer, make_gateway: Callable[..., Any]
) -> None:
    """It may have the same version there with other facts, as after a failover that lost writes."""
    made: list[tuple[str, BatchSummary, CompletionLaw]] = []
    gateway = make_gateway(private_valkey.address, deadline=5)
    store = redis.make(gateway, summary_made=lambda *one: made.append(one))
    await store.commit("b", EVERYTHING)
    for _ in range(2):
        await store.summary("b")
    [(_, before, _)] = made
    private_valkey.restart()
    await store.commit("b", delta_of([PhaseInvalidated("nlp", None, 9)]))
    await gateway.call(("HSET", redis.keys("b").facts, "version", before.version))
    await store.store_summary("b", before)
    assert not (await redis.make(gateway).summary("b")).complete("nlp")


async def test_a_stored_summary_expires_with_the_batch(redis: InRedis) -> None:
    await redis.store.commit("b", EVERYTHING)
    await redis.expire_in("b", 20_000)
    await redis.made("b")
    ttls = await redis.ttls_ms("b")
    assert len(ttls) == 2
    assert abs(ttls[0] - ttls[1]) < 1000


async def test_a_batch_that_expires_while_its_summary_is_stored_leaves_no_key(redis: InRedis) -> None:
    await redis.store.commit("b", EVERYTHING)
    summary = await redis.store.summary("b")

    async def expire() -> None:
        redis.gateway.rival = None
        await redis.run(("DEL", *redis.all_keys("b")))

    redis.gateway.rival = expire
    assert await redis.store.store_summary("b", summary) == Committed(conflicts=1)
    assert await redis.ttls_ms("b") == []
    assert await redis.store.summary("b") == BatchSummary()


async def test_an_outdated_summary_is_not_stored(redis: InRedis) -> None:
    await redis.store.commit("b", EVERYTHING)
    summary, later = await redis.store.summary("b"), delta_of([failed("a", 9)])

    async def write() -> None:
        redis.gateway.rival = None
        await redis.rival.commit("b", later)

    redis.gateway.rival = write
    assert await redis.store.store_summary("b", summary) == Committed(conflicts=1)
    assert len(await redis.ttls_ms("b")) == 1
    expected = EVERYTHING.copy()
    expected.merge(later)
    assert same_but_for_the_version(await redis.store.summary("b"), expected)


@pytest.mark.parametrize("losses", [1, 2, 3])
async def test_a_summary_is_given_up_after_all_attempts(redis: InRedis, losses: int) -> None:
    renewals = 0

    async def renew() -> None:
        nonlocal renewals
        if renewals < losses:
            renewals += 1
            await redis.rival.commit("b", EVERYTHING)  # it changes nothing but the time to live

    store = redis.make(redis.gateway, CommitPolicy(attempts=3, first_wait_seconds=0.001))
    await store.commit("b", EVERYTHING)
    summary = await store.summary("b")
    redis.gateway.rival = renew
    assert await store.store_summary("b", summary) == Committed(conflicts=losses, fallback=losses == 3)
    assert len(await redis.ttls_ms("b")) == (1 if losses == 3 else 2)


async def test_a_script_that_redis_has_lost_is_sent_again(redis: InRedis) -> None:
    for at_us in (1, 2):
        await redis.run(("SCRIPT", "FLUSH"))
        assert await redis.store.commit("b", delta_of([completed("a", at_us)])) == Committed()
        assert await redis.store.commit("b", delta_of([completed("b", at_us)])) == Committed()
    told = [completed(essay, at_us) for essay in "ab" for at_us in (1, 2)]
    assert await redis.store.state("b") == delta_of(told)
    assert redis.gateway.problem == ""


async def test_where_redis_refuses_scripts_facts_are_committed_by_transaction(
    redis: InRedis, make_gateway: Callable[..., Any], redis_url: str, unique_name: Callable[[str], str]
) -> None:
    user = unique_name("user")
    await redis.run(("ACL", "SETUSER", user, "on", "nopass", "~*", "+@all", "-@scripting"))
    try:
        gateway = make_gateway(redis_url.replace("://", f"://{user}:any@"), deadline=5)
        store = redis.make(gateway)
        for at_us in (1, 2):
            assert await store.commit("b", delta_of([completed("a", at_us)])) == Committed()
        assert await redis.rival.state("b") == delta_of([completed("a", 1), completed("a", 2)])
        assert "'evalsha'" in gateway.problem
        assert gateway.circuit == "closed"
    finally:
        await redis.run(("ACL", "DELUSER", user))


async def test_a_large_batch_leaves_the_shared_connection_to_others(
    redis: InRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: set[object] = set()
    send = RedisGateway.call_multiplexed

    async def noted(self: RedisGateway, *commands: Command) -> Any:
        # A service of other tests may poll its queues in this process.
        shared.update(each[0] for each in commands if any(redis.prefix in str(word) for word in each))
        return await send(self, *commands)

    monkeypatch.setattr(RedisGateway, "call_multiplexed", noted)
    for batch, essays, others in (("small", 30, {"EVALSHA", "HGETALL"}), ("large", 1000, set())):
        await redis.store.commit("another", EVERYTHING)  # from now on Redis has the script
        shared.clear()
        names = tuple(f"essay-{number}" for number in range(essays))
        await redis.store.commit(batch, delta_of([EssaysRegistered(names, essays, 1)]))
        assert (await redis.store.summary(batch)).known == essays
        assert shared == {"HMGET", "GET", "EXISTS"} | others


async def test_the_summary_of_a_large_batch_is_stored_after_the_first_answer(redis: InRedis) -> None:
    made: list[str] = []
    store = redis.make(redis.gateway, summary_made=lambda batch, *_: made.append(batch))
    for batch, essays in (("small", 30), ("large", 1000)):
        names = tuple(f"essay-{number}" for number in range(essays))
        await store.commit(batch, delta_of([EssaysRegistered(names, essays, 1)]))
        await store.summary(batch)
    assert made == ["large"]


async def test_questions_about_a_changed_batch_share_its_reading(
    redis: InRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = StoredBatches.read

    async def noted(self: StoredBatches, batch_id: str, **options: bool) -> StoredBatch:
        reads.append(batch_id)
        return await read(self, batch_id, **options)

    monkeypatch.setattr(StoredBatches, "read", noted)
    await redis.store.commit("b", EVERYTHING)
    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(redis.store.summary, "b")
    assert len(reads) <= 2, "one for the first question, and one for those that came meanwhile"


async def test_a_commit_that_has_no_answer_in_time_is_not_sent_again(
    private_valkey: EmbeddedServer, make_gateway: Callable[..., Any], redis: InRedis
) -> None:
    store, attempts = redis.make(make_gateway(private_valkey.address, deadline=0.2)), list[str]()
    await store.commit("b", EVERYTHING)

    async def note(point: FailPoint, batch_id: str) -> None:
        if point is FailPoint.BEFORE_EXEC:
            attempts.append(batch_id)

    private_valkey.freeze()
    try:
        with fail_points(note), pytest.raises(StoreUnavailable):
            await store.commit("b", delta_of([completed("b", 7)]))
    finally:
        private_valkey.thaw()
    assert attempts == ["b"]


async def test_a_lost_connection_is_not_noticed_by_a_commit(
    private_valkey: EmbeddedServer, make_gateway: Callable[..., Any], redis: InRedis
) -> None:
    # A server of its own: services that other tests share have connections to the shared one.
    store, other = (
        redis.make(make_gateway(private_valkey.address, deadline=PATIENCE_SECONDS)),
        make_gateway(private_valkey.address),
    )
    await store.commit("b", EVERYTHING)
    [clients] = await other.call(("CLIENT", "LIST"))
    [shared] = [line for line in clients.decode().splitlines() if " cmd=eval" in line]
    number = shared.split()[0]

    async def waits() -> bool:
        [clients] = await other.call(("CLIENT", "LIST", "ID", number.removeprefix("id=")))
        return b" flags=b " in clients

    await other.call(("CLIENT", "PAUSE", 60_000, "WRITE"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.commit, "b", delta_of([completed("b", 7)]))
        await wait_until(waits)
        await other.call(("CLIENT", "KILL", "ID", number.removeprefix("id=")))
        await other.call(("CLIENT", "UNPAUSE"))
    assert (await store.state("b")).first_seen_us == {"a": 0, "b": 7}


FOREIGN: dict[str, tuple[str | bytes, ...]] = {
    "a string": ("SET", "x"),
    "a list": ("RPUSH", "x"),
    "a set": ("SADD", "x"),
    "a row that is empty": ("HSET", "ta", ""),
    "a row that is cut off": ("HSET", "ta", "1234567"),
    "a row with half a mark": ("HSET", "ta", "123456781234"),
    "a row with a mark for no slot": ("HSET", "ta", "1234567812345678"),
    "a report of no time": ("HSET", "report:nlp", "c"),
    "a report of no outcome": ("HSET", "report:nlp", "x12"),
    "an outcome of no time": ("HSET", "outcome:nlp:", ":0:cancelled"),
    "an outcome for somebody": ("HSET", "outcome:nlp:", "12:2:cancelled"),
    "an outcome without a status": ("HSET", "outcome:nlp:", "12:0"),
    "an invalidation of no time": ("HSET", "invalid:nlp:a", ""),
    "an expectation of no count": ("HSET", "expected", "12"),
    "a version that is no number": ("HSET", "version", "new"),
    "a slot that is no number": ("HSET", "slot:nlp", "first"),
    "a slot that leaves one out": ("HSET", "slot:nlp", "1", "slots", "1"),
    "a number of slots that is none": ("HSET", "slots", "some"),
    "a number of essays that is none": ("HSET", "essays", "some"),
}
# Facts about every register in FOREIGN: a commit notices only what it touches.
TOUCHING = delta_of(
    [
        EssaysRegistered(("a",), 1, 0),
        *(completed("a", 1, phase) for phase in PHASES),
        PhaseReported("nlp", Outcome.COMPLETED, 5),
        PhaseInvalidated("nlp", "a", 1),
        PhaseOutcome("nlp", "cancelled", completed=(), failed=(), speaks_for_all=False, at_us=13),
    ]
)


@pytest.mark.parametrize("kind", [RedisStateStore, ByTransaction])
@pytest.mark.parametrize("foreign", FOREIGN)
async def test_what_bcs_did_not_write_is_reported_and_harms_no_other_batch(
    redis: InRedis, foreign: str, kind: type[RedisStateStore]
) -> None:
    store = redis.make(redis.gateway, kind=kind)

    async def commit(batch_id: str) -> Committed:
        return await store.commit(batch_id, TOUCHING)

    command, *arguments = FOREIGN[foreign]
    key = redis.keys("b").facts
    await store.commit("other", EVERYTHING)
    beginning: list[Command] = [("HSET", key, "version", 1)] if command == "HSET" else []
    await redis.run(*beginning, (command, key, *arguments), ("PEXPIRE", key, 60_000))
    before = await redis.run(("DUMP", key))
    for _ in range(BREAKER_FAILURES + 1):
        uses: list[Callable[[str], Awaitable[object]]] = [store.state, store.summary, commit]
        for use in uses:
            with pytest.raises(StoreCorrupted) as refusal:
                await use("b")
            assert redis.keys("b").stem in str(refusal.value)
    assert await redis.run(("DUMP", key)) == before
    assert redis.gateway.circuit == "closed"
    assert await store.state("other") == EVERYTHING
    assert same_but_for_the_version(await store.summary("other"), EVERYTHING)


async def test_an_essay_that_is_not_utf_8_is_reported_where_its_name_is_needed(redis: InRedis) -> None:
    await redis.run(("HSET", redis.keys("b").facts, b"t\xff", "12345678"))
    with pytest.raises(StoreCorrupted):
        await redis.store.state("b")


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
async def test_a_foreign_summary_is_logged_and_replaced(
    redis: InRedis, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.store.commit("b", EVERYTHING)
    await redis.run(("SET", redis.all_keys("b")[1], text))
    assert same_but_for_the_version(await redis.made("b"), EVERYTHING)
    assert [record.msg for record in caplog.records if record.name == "bcs.redis"] == ["summary_unreadable"]
    assert same_but_for_the_version(await redis.make(redis.gateway, summary_made=never).summary("b"), EVERYTHING)


async def test_a_summary_of_another_type_is_replaced(redis: InRedis) -> None:
    await redis.store.commit("b", EVERYTHING)
    await redis.run(("RPUSH", redis.all_keys("b")[1], "x"))
    assert same_but_for_the_version(await redis.made("b"), EVERYTHING)
    assert same_but_for_the_version(await redis.make(redis.gateway, summary_made=never).summary("b"), EVERYTHING)


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
    assert await redis.run(("HDEL", redis.keys("b").facts, "outcome:nlp:k")) == [1]
    with pytest.raises(StoreCorrupted):
        await redis.store.state("b")


SETTLED = CompletionLaw({"spellcheck": (), "nlp": ()}, {"nlp": CompleteWhen.EVERY_ESSAY_SETTLED})


async def test_stores_with_different_laws_keep_a_summary_each(redis: InRedis) -> None:
    """As there are during a deployment: neither makes the other's summary anew at every read, nor answers by it."""
    known = delta_of([EssaysRegistered(("a", "b"), 2, 0), completed("a", 1, "nlp"), failed("b", 1, "nlp")])
    await redis.store.commit("b", known)
    made = {law: await redis.made("b", law) for law in (LAW, SETTLED)}
    for law, summary in made.items():
        assert summary == summarize(known, law, summary.version)
        assert summary.complete("nlp") is (law is SETTLED)
        assert await redis.make(redis.gateway, law=law, summary_made=never).summary("b") == summary
    await redis.store.commit("b", delta_of([completed("b", 2, "nlp")]))
    for law in made:
        assert (await redis.make(redis.gateway, law=law).summary("b")).complete("nlp"), "an older one is not used"


async def test_one_store_answers_under_each_law_that_it_is_asked_for(redis: InRedis) -> None:
    """As during a reload: requests that have begun end under the old definitions."""
    known = delta_of([EssaysRegistered(("a", "b"), 2, 0), completed("a", 1, "nlp"), failed("b", 1, "nlp")])
    made: list[tuple[str, BatchSummary, CompletionLaw]] = []
    store = redis.make(redis.gateway, summary_made=lambda *one: made.append(one))
    await store.commit("b", known)
    asked = [LAW, SETTLED, SETTLED, LAW, LAW, SETTLED]
    for law in asked:
        assert (await store.summary("b", law)).complete("nlp") is (law is SETTLED)
    for one in made:
        await store.store_summary(*one)
    for law in (LAW, SETTLED):
        assert (await redis.make(redis.gateway, summary_made=never).summary("b", law)).complete("nlp") is (
            law is SETTLED
        )


async def test_what_another_layout_wrote_is_not_read(redis: InRedis) -> None:
    old = f"{redis.prefix}{{b}}"
    await redis.run(("HSET", f"{old}:batch", "expected", "1:1", "mark:nlp", "c9", "version", "7", "slot:nlp", "0"))
    await redis.run(("HSET", f"{old}:essays", "a", b"\0" * 8 + b"c" + b"\0" * 8))
    await redis.run(("SET", f"{old}:verdicts", '{"v":7,"known":1,"expected":1,"phases":{"nlp":[1,1,0]}}'))
    assert await redis.store.summary("b") == BatchSummary()
    assert (await redis.store.state("b")).empty
    await redis.store.commit("b", EVERYTHING)
    assert await redis.store.state("b") == EVERYTHING


async def test_batches_may_have_their_phases_in_different_orders(redis: InRedis) -> None:
    for batch, phases in (("b", PHASES), ("c", PHASES[::-1])):
        known = BatchState()
        for at_us, phase in enumerate(phases):
            delta = delta_of([completed(batch, at_us, phase), failed(f"{batch}{at_us}", at_us, phase)])
            known.merge(delta)
            await redis.store.commit(batch, delta)
        assert await redis.store.state(batch) == known


@settings(deadline=None)
@given(batch_id=st.text("{}:%a ", min_size=1))
async def test_all_keys_of_a_batch_lie_in_one_slot_of_a_cluster(batch_id: str) -> None:
    keys = BatchKeys("bcs:", batch_id)
    names = [keys.facts, keys.summary(LAW.fingerprint), *keys.former]
    assert len(set(names)) == len(names)
    assert len({key_slot(name.encode()) for name in names}) == 1


async def test_a_batch_that_is_called_outbox_is_not_the_outbox(redis: InRedis) -> None:
    outbox = redis_outbox(redis.gateway, redis.prefix)
    message = OutboundMessage("dead_letter", "t", None, b"v")
    await outbox.append([message, message])
    await redis.store.commit("outbox", EVERYTHING)
    [leased, unlucky] = await outbox.lease(2)
    await outbox.park(unlucky, "too large")
    assert leased.message == message
    assert await redis.store.state("outbox") == EVERYTHING
