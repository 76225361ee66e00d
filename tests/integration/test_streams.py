"""The queues in several streams: order, fairness, a stream that fails, and processes with other numbers of streams."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import anyio
import pytest

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.domain.history import FactsRecorded, PipelineResolved
from bcs.errors import OutboxFull, StoreUnavailable
from bcs.storage.history_codec import encode_entry
from bcs.storage.ports import LeasedMessage
from bcs.storage.redis import stream_layouts, stream_set
from bcs.storage.redis.archive_queue import ArchiveQueue
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.nodes import Node
from bcs.storage.redis.outbox import RedisOutbox
from bcs.storage.redis.stream_layouts import layouts_key, number_in, stream_key
from bcs.wire.published import OutboundMessage
from tests.integration.stores import MakeGateway
from tests.support.fault_proxy import FaultProxy
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_queues import (
    NOW_MS,
    USUAL_STREAMS,
    archive_queue,
    queue_keys,
    redis_outbox,
)
from tests.support.redis_queues import (
    stream_layouts as layouts_of,
)
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

BATCHES = [f"batch-{number}" for number in range(40)]
CHANGES = [(16, 4), (4, 16), (1, 16), (16, 1), (7, 5)]


def message(batch: str, number: int = 0) -> OutboundMessage:
    return OutboundMessage("phase_skipped", "topic", batch.encode(), b"%d of %s" % (number, batch.encode()))


def fact(batch: str) -> FactsRecorded:
    return FactsRecorded(uuid.uuid4(), batch, 0, facts=(), event_type="AnEvent")


def explanation_of(batch: str) -> PipelineResolved:
    return PipelineResolved(
        uuid.uuid4(),
        batch,
        0,
        correlation_id="c",
        asked_by="a",
        pipeline="p",
        decisions=(),
        version=1,
        source="redis",
    )


def values(leased: Sequence[LeasedMessage]) -> list[bytes]:
    return [entry.message.value for entry in leased]


def in_stream(number: int, streams: int = USUAL_STREAMS) -> str:
    """A batch whose entries go to a stream."""
    return next(
        name for name in (f"batch-{each}" for each in range(1000)) if number_in(streams, name.encode()) == number
    )


async def drained(outbox: RedisOutbox, limit: int = 20) -> list[bytes]:
    """All that can be leased, each acked."""
    found: list[bytes] = []
    while leased := await outbox.lease(limit):
        found += values(leased)
        await outbox.ack(leased)
    return found


async def leased_all(outbox: RedisOutbox) -> list[LeasedMessage]:
    """All that can be leased."""
    found: list[LeasedMessage] = []
    while leased := await outbox.lease(100):
        found += leased
    return found


@pytest.fixture
def process(gateway: RedisGateway, redis_key_prefix: str) -> Callable[..., RedisOutbox]:
    """Makes the outbox of a process with a name and a number of streams."""

    def make(consumer: str, streams: int = USUAL_STREAMS, limit: int = 10_000) -> RedisOutbox:
        return redis_outbox(gateway, redis_key_prefix, consumer=consumer, limit=limit, streams=streams, explained=True)

    return make


@pytest.fixture
def queue(gateway: RedisGateway, redis_key_prefix: str) -> Callable[..., ArchiveQueue]:
    """Makes the queue of facts of a process with a number of streams."""

    def make(streams: int = USUAL_STREAMS, limit: int = 1000) -> ArchiveQueue:
        return archive_queue(gateway, redis_key_prefix, consumer=uuid.uuid4().hex, streams=streams, limit=limit)

    return make


async def test_a_batch_has_one_stream_for_its_messages_and_their_explanations(
    process: Callable[..., RedisOutbox], gateway: RedisGateway, redis_key_prefix: str
) -> None:
    outbox = process("only")
    for batch in BATCHES:
        await outbox.announce([message(batch), message(batch, 1)], explanation_of(batch))
    expected = Counter(number_in(USUAL_STREAMS, batch.encode()) for batch in BATCHES)
    messages = await gateway.call(*(("XLEN", key) for key in queue_keys(redis_key_prefix)))
    explanations = await gateway.call(*(("XLEN", key) for key in queue_keys(redis_key_prefix, ":explanations")))
    assert list(explanations) == [expected[number] for number in range(USUAL_STREAMS)]
    assert list(messages) == [2 * expected[number] for number in range(USUAL_STREAMS)]
    assert await outbox.backlog() == 2 * len(BATCHES)


async def test_the_messages_of_a_batch_keep_their_order(process: Callable[..., RedisOutbox]) -> None:
    outbox = process("only")
    for number in range(6):
        await outbox.append([message(batch, number) for batch in BATCHES])
    found = await drained(outbox)
    assert len(found) == 6 * len(BATCHES)
    for batch in BATCHES:
        of_batch = [value for value in found if value.endswith(b" of " + batch.encode())]
        assert of_batch == [message(batch, number).value for number in range(6)]


async def test_messages_without_a_key_are_spread_and_added_once(
    process: Callable[..., RedisOutbox], gateway: RedisGateway, redis_key_prefix: str
) -> None:
    outbox = process("only")
    messages = [OutboundMessage("dead_letter", "topic", None, b"%d" % number) for number in range(100)]
    for _ in range(2):
        await outbox.append(messages)
    lengths = await gateway.call(*(("XLEN", key) for key in queue_keys(redis_key_prefix)))
    assert sum(lengths) == 100
    assert sum(map(bool, lengths)) == USUAL_STREAMS


async def test_a_full_stream_starves_no_other_and_uses_what_others_leave(process: Callable[..., RedisOutbox]) -> None:
    outbox, full = process("only"), [in_stream(3), in_stream(4)]
    await outbox.append([message(batch, number) for number in range(300) for batch in full])
    others = [in_stream(number) for number in range(USUAL_STREAMS) if number not in (3, 4)]
    await outbox.append([message(batch) for batch in others])
    leased = await outbox.lease(200)
    expected = dict.fromkeys(others, 1) | dict.fromkeys(full, (200 - len(others)) // 2)
    assert Counter(entry.message.key for entry in leased) == {
        batch.encode(): share for batch, share in expected.items()
    }
    await outbox.ack(leased)
    assert len(await drained(outbox)) == 600 + len(others) - 200


async def test_streams_with_few_entries_have_their_turns_in_few_calls(process: Callable[..., RedisOutbox]) -> None:
    outbox, batches = process("only"), [in_stream(number) for number in range(USUAL_STREAMS)]
    await outbox.append([message(batch, number) for batch in batches for number in range(2)])
    calls = [await outbox.lease(200) for _ in range(4)]
    assert [len(leased) for leased in calls] == [8] * 4, "two of each of four streams"
    assert {entry.message.key for leased in calls for entry in leased} == set(map(str.encode, batches))


async def test_streams_with_few_entries_on_a_cluster_have_their_turns_server_by_server(
    redis_cluster: RedisCluster, make_gateway: MakeGateway, redis_key_prefix: str
) -> None:
    nodes = make_gateway(redis_cluster.url, deadline=5.0)
    outbox = redis_outbox(nodes, redis_key_prefix, limit=1000)
    await outbox.append([message(in_stream(number)) for number in range(USUAL_STREAMS)])
    calls = [await outbox.lease(200) for _ in range(4)]
    assert [len(leased) for leased in calls] == [4] * 4
    servers = [{nodes.at(entry.stream).address for entry in leased} for leased in calls]
    assert sum(map(len, servers)) <= 7, "four calls, of which each change of the three servers may be in another one"


async def test_what_another_process_holds_of_many_streams_hides_no_entry(process: Callable[..., RedisOutbox]) -> None:
    other, outbox = process("other"), process("only")
    await other.append([message(in_stream(number)) for number in range(USUAL_STREAMS)])
    await leased_all(other)
    for number in range(USUAL_STREAMS):
        await outbox.append([message(in_stream(number), 1)])
        assert values(await outbox.lease(200)) == [message(in_stream(number), 1).value]


async def test_each_stream_gets_its_turn(process: Callable[..., RedisOutbox]) -> None:
    outbox = process("only")
    batches = [in_stream(number) for number in range(USUAL_STREAMS)]
    await outbox.append([message(batch, number) for batch in batches for number in range(9)])
    leased = [entry for _ in range(2 * USUAL_STREAMS) for entry in await outbox.lease(1)]
    assert Counter(entry.message.key for entry in leased) == dict.fromkeys(map(str.encode, batches), 2)


async def test_the_limit_is_that_of_all_streams(process: Callable[..., RedisOutbox]) -> None:
    outbox = process("only", limit=len(BATCHES))
    await outbox.append([message(batch) for batch in BATCHES])
    with pytest.raises(OutboxFull):
        await outbox.append([message("another")])
    await outbox.ack(await outbox.lease(1))
    await outbox.append([message("another")])


async def test_what_a_dead_process_held_of_all_streams_is_taken_over(process: Callable[..., RedisOutbox]) -> None:
    dead, living = process("dead"), process("living")
    await dead.append([message(batch) for batch in BATCHES])
    held = await leased_all(dead)
    assert await living.recover(3600, 100) == []
    taken: list[LeasedMessage] = []

    async def all_taken() -> bool:
        taken.extend(await living.recover(0.01, 7))
        return len({entry.place for entry in taken}) >= len(BATCHES)

    await wait_until(all_taken)
    assert set(values(taken)) == set(values(held))
    await living.ack(taken)
    assert await living.backlog() == 0


async def test_a_crashed_publisher_leases_again_what_it_held_of_all_streams(
    process: Callable[..., RedisOutbox],
) -> None:
    outbox = process("only")
    await outbox.append([message(batch) for batch in BATCHES])
    held = await leased_all(outbox)
    again: list[LeasedMessage] = []
    while part := await outbox.resume(7):
        again += part
        await outbox.ack(part)
    assert sorted(values(again)) == sorted(values(held))
    assert await outbox.backlog() == 0


async def test_entries_of_all_streams_come_once_after_a_lost_reply(
    second: FaultProxy, make_gateway: MakeGateway, redis_key_prefix: str
) -> None:
    cut_off = redis_outbox(make_gateway(second.address, deadline=5), redis_key_prefix, limit=1000)
    await cut_off.append([message(batch) for batch in BATCHES])
    for _ in range(2):  # first the groups are missing
        assert await cut_off.lease(1)
    second.drop_replies(b"publishers")
    with pytest.raises(StoreUnavailable):
        await cut_off.lease(100)
    found = Counter[bytes]()
    while leased := await cut_off.lease(100):
        found.update(values(leased))
        await cut_off.ack(leased)
    assert set(found.values()) == {1}
    assert len(found) >= len(BATCHES) - 2


@pytest.mark.parametrize(("before", "after"), CHANGES)
async def test_another_number_of_streams_loses_nothing(
    process: Callable[..., RedisOutbox], before: int, after: int
) -> None:
    former = process("former", before)
    await former.append([message(batch) for batch in BATCHES])
    leased = await former.lease(10)
    await former.park(leased[0], "never")
    await former.requeue(leased[1:4])
    present = process("present", after)
    await present.append([message(batch, 1) for batch in BATCHES])
    expected = {message(batch, number).value for batch in BATCHES for number in (0, 1)} - {leased[0].message.value}
    assert await present.backlog() == 2 * len(BATCHES) - 1
    found = await drained(present)
    await wait_until(partial(moved, present, len(expected) - len(found)))
    assert not await drained(former)
    recovered = await present.resume(100)
    await present.ack(recovered)
    assert sorted([*found, *values(recovered)]) == sorted(expected)
    assert await present.backlog() == await former.backlog() == 0


async def moved(outbox: RedisOutbox, count: int) -> bool:
    """Take over what another process holds; true once it is all there."""
    await outbox.recover(0.01, 100)
    return len(await outbox.resume(100)) == count


async def test_the_streams_of_a_process_that_began_later_are_drained(
    process: Callable[..., RedisOutbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_layouts, "_RENEWAL_SECONDS", 0.0)
    present, later = process("present", 2), process("later", 9)
    assert await present.lease(9) == []
    await later.append([message(batch) for batch in BATCHES])
    assert len(await drained(present)) == len(BATCHES)


async def test_the_order_of_a_batch_holds_for_each_number_of_streams(process: Callable[..., RedisOutbox]) -> None:
    former, present = process("former", 16), process("present", 5)
    for number in range(4):
        await (present if number % 2 else former).append([message(batch, number) for batch in BATCHES])
    found = await drained(present)
    assert len(found) == 4 * len(BATCHES)
    for batch in BATCHES:
        order = [int(value.split()[0]) for value in found if value.endswith(b" of " + batch.encode())]
        assert [number for number in order if number % 2] == [1, 3]
        assert [number for number in order if not number % 2] == [0, 2]


@pytest.mark.parametrize(("asking", "appending"), [*CHANGES, (16, 16)])
async def test_facts_are_seen_whatever_number_of_streams_another_process_has(
    queue: Callable[..., ArchiveQueue], asking: int, appending: int
) -> None:
    asks = queue(asking)
    assert [await asks.waiting(batch) for batch in BATCHES] == [0] * len(BATCHES)
    appends = queue(appending)  # begins after the other has looked
    for number, batch in enumerate(BATCHES[:8]):
        await appends.append([fact(batch)])
        assert await asks.waiting(batch) >= 1
        assert await asks.backlog() == number + 1
    assert await queue(3).waiting(BATCHES[0]) >= 1, "a third one finds both"


async def test_processes_that_start_at_one_time_find_each_other(queue: Callable[..., ArchiveQueue]) -> None:
    queues = [queue(streams) for streams in (3, 16, 5, 11)]

    async def start(each: ArchiveQueue) -> None:
        await each.waiting("batch")

    async with anyio.create_task_group() as group:
        for each in queues:
            group.start_soon(start, each)
    for number, appends in enumerate(queues):
        await appends.append([fact(BATCHES[number])])
        assert all([await asks.waiting(BATCHES[number]) >= 1 for asks in queues])


async def test_facts_of_a_release_with_one_stream_are_seen_and_drained(
    queue: Callable[..., ArchiveQueue], gateway: RedisGateway, redis_url: str, redis_key_prefix: str
) -> None:
    asks, batch = queue(), in_stream(7)
    # Releases before can't use a cluster, so there nothing comes once the stream is known to be empty.
    for _ in range(1 if redis_url.startswith("redis+cluster:") else 2):
        await gateway.call(("XADD", f"{redis_key_prefix}{{outbox}}:archive", "*", "entry", encode_entry(fact(batch))))
        assert await asks.waiting(batch) == 1
        [leased] = await asks.lease(9)
        await asks.ack([leased])
        assert (leased.message.batch_id, await asks.waiting(batch)) == (batch, 0)


@pytest.mark.parametrize("restarted", [False, True])
async def test_layouts_that_redis_has_lost_are_written_before_a_fact_counts(
    queue: Callable[..., ArchiveQueue], gateway: RedisGateway, redis_key_prefix: str, restarted: bool
) -> None:
    asks, appends = queue(16), queue(5)
    for each in (asks, appends):
        await each.waiting("batch")
    await gateway.call(*(("DEL", layouts_key(redis_key_prefix, number)) for number in range(16)))
    if restarted:
        asks = queue(16)
        assert await asks.waiting("batch") == 0
    await appends.append([fact(BATCHES[0])])
    assert await asks.waiting(BATCHES[0]) >= 1


async def test_a_number_of_streams_is_forgotten_a_day_after_its_last_process(
    gateway: RedisGateway, redis_key_prefix: str
) -> None:
    def at(streams: int, days: float) -> stream_layouts.StreamLayouts:
        return layouts_of(gateway, redis_key_prefix, streams, now_ms=NOW_MS + int(days * 86_400_000))

    ended = at(20, 0)
    await ended.register()
    outbox = RedisOutbox(ended, consumer="ended", limit=10)
    await outbox.append([message(in_stream(19, 20))])
    early, late = at(4, 0.9), at(4, 1.1)
    for each in (early, late):
        await each.register()
        assert each.layouts == {4, 20}, "an entry waits"
    [leased] = await RedisOutbox(late, consumer="late", limit=10).lease(9)
    await outbox.ack([leased])
    await early.register()
    assert early.layouts == {4, 20}
    await late.register()
    assert late.layouts == {4}
    fresh = at(4, 1.2)
    await fresh.register()
    assert fresh.layouts == {4}, "it is gone from Redis"


async def test_a_stream_that_is_no_stream_holds_up_no_other(
    process: Callable[..., RedisOutbox],
    gateway: RedisGateway,
    redis_key_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_set, "_RETRY_SECONDS", 0.0)
    outbox, wrong = process("only"), stream_key(redis_key_prefix, 3)
    await outbox.append([message(batch) for batch in BATCHES])
    of_wrong = {batch for batch in BATCHES if number_in(USUAL_STREAMS, batch.encode()) == 3}
    held = await leased_all(outbox)
    # Its entries are away, and what was published of them can't be acked.
    await gateway.call(("RENAME", wrong, f"{wrong}:aside"), ("SET", wrong, "x"))
    await outbox.ack(held)
    assert outbox.failing.keys() == {wrong}
    assert "not a stream" in str(outbox.failing[wrong])
    await outbox.append([message(in_stream(5), 7)])
    assert await drained(outbox) == [message(in_stream(5), 7).value]
    with pytest.raises(StoreUnavailable, match="not a stream"):
        await outbox.append([message(in_stream(3), 7)])
    assert (await outbox.measure()).count == len(of_wrong), "the last known number"
    await gateway.call(("DEL", wrong), ("RENAME", f"{wrong}:aside", wrong))
    assert await drained(outbox) == []
    assert outbox.failing == {}
    assert await outbox.backlog() == 0, "the entries are acked now"


@dataclass(frozen=True)
class TwoServers:
    """Streams with even numbers on one server, those with odd numbers on another."""

    servers: tuple[RedisGateway, RedisGateway]
    prefix: str

    def at(self, key: str, /) -> Node:
        """The server of a key."""
        number = key.removeprefix(self.prefix).partition("}")[0].partition(":")[2]
        return self.servers[int(number or 0) % 2]


@pytest.fixture
async def second(own_valkey: EmbeddedServer) -> AsyncIterator[FaultProxy]:
    """The way to a second server."""
    async with FaultProxy("127.0.0.1", own_valkey.port) as proxy:
        yield proxy


ROUNDS, AWAY_SECONDS = 5, 0.2


async def test_a_server_that_is_away_holds_up_only_its_streams(
    own_valkey: EmbeddedServer, second: FaultProxy, make_gateway: MakeGateway, redis_key_prefix: str
) -> None:
    there = make_gateway(own_valkey.address, deadline=5)
    away = make_gateway(second.address, deadline=AWAY_SECONDS, failures=2, open_seconds=0.05)
    servers = TwoServers((there, away), redis_key_prefix)
    outbox = redis_outbox(servers, redis_key_prefix, limit=1000)  # type: ignore[arg-type]
    facts = archive_queue(servers, redis_key_prefix, limit=1000)  # type: ignore[arg-type]
    await outbox.append([message(batch) for batch in BATCHES])
    held = await leased_all(outbox)
    assert len(held) == len(BATCHES)
    assert [await facts.waiting(in_stream(number)) for number in range(USUAL_STREAMS)] == [0] * USUAL_STREAMS
    # The network takes nothing that it could deliver later.
    second.refuse()
    await second.cut()
    await outbox.ack(held)
    second.freeze()
    second.accept()
    assert outbox.failing.keys() == {stream_key(redis_key_prefix, number) for number in range(1, USUAL_STREAMS, 2)}
    for number in range(1, ROUNDS + 1):  # a busy machine may take long for one of them
        watch = Stopwatch()
        await outbox.append([message(in_stream(4), number)])
        assert await drained(outbox) == [message(in_stream(4), number).value]
        if watch.seconds < AWAY_SECONDS:
            break
    else:
        raise AssertionError("it waits for the other server each time")
    await facts.append([fact(in_stream(4))])
    assert await facts.waiting(in_stream(4)) == 1
    for others, partly in (([fact(in_stream(4))], True), ([fact(in_stream(7))], False)):
        with pytest.raises(StoreUnavailable) as refusal:
            await facts.append([fact(in_stream(5)), *others])
        assert refusal.value.partly is partly
    with pytest.raises(StoreUnavailable):
        await facts.waiting(in_stream(5))
    second.thaw()
    await wait_until(lambda: answers(outbox))
    assert await drained(outbox) == []
    assert await outbox.backlog() == 0, "what was published is acked, and not leased again"


async def test_messages_of_a_stream_that_is_away_go_to_another_server(
    own_valkey: EmbeddedServer, second: FaultProxy, make_gateway: MakeGateway, redis_key_prefix: str
) -> None:
    """The server of a batch's stream may have nothing to do with the batch."""
    there = make_gateway(own_valkey.address, deadline=5)
    away = make_gateway(second.address, deadline=0.2, failures=2, open_seconds=0.05)
    servers = TwoServers((there, away), redis_key_prefix)
    outbox = redis_outbox(servers, redis_key_prefix, limit=1000, explained=True)  # type: ignore[arg-type]
    await outbox.append([message(batch) for batch in BATCHES])
    assert len(await drained(outbox)) == len(BATCHES)
    second.freeze()
    batch = in_stream(5)
    for _ in range(2):  # a repeated call adds nothing
        await outbox.append([message(batch)])
    await outbox.announce([message(batch, 1), message(batch, 2)], explanation_of(batch))
    assert values(await outbox.lease(9)) == [message(batch, number).value for number in range(3)]
    [explained] = await there.call(("XLEN", f"{stream_key(redis_key_prefix, 6)}:explanations"))
    assert explained == 1


async def answers(outbox: RedisOutbox) -> bool:
    await outbox.measure()
    return not outbox.failing


async def test_no_commands_ask_no_server(
    gateway: RedisGateway, redis_cluster: RedisCluster, make_gateway: MakeGateway
) -> None:
    for nodes in (gateway, make_gateway(redis_cluster.url, deadline=5.0)):
        failing: dict[str, StoreUnavailable] = {}
        assert await stream_layouts.small_calls(nodes, {}, failing) == {}
        assert not failing


async def test_an_idle_queue_costs_one_small_round_trip_a_poll(
    own_valkey: EmbeddedServer, make_gateway: MakeGateway, redis_key_prefix: str
) -> None:
    gateway = make_gateway(own_valkey.address, deadline=5)
    outbox = redis_outbox(gateway, redis_key_prefix)
    facts = archive_queue(gateway, redis_key_prefix)
    uses: list[Callable[[], Awaitable[object]]] = [
        lambda: outbox.lease(200),
        lambda: facts.lease(200),
        lambda: outbox.measure(),
        lambda: facts.backlog(),
        lambda: outbox.recover(0, 200),
    ]
    for use in uses:
        await use()  # registers
    assert await outbox.resume(200) == []
    before = await commands_of(gateway)
    for use in uses:
        await use()
    assert await outbox.resume(200) == []
    after = await commands_of(gateway)
    # The queue of facts has one stream more, that of releases before.
    assert after - before == {"xlen": 3 * USUAL_STREAMS + 2 * (USUAL_STREAMS + 1), "info": 1}
    assert [key async for key in keys_of(gateway, redis_key_prefix)] == sorted(
        layouts_key(redis_key_prefix, number) for number in range(USUAL_STREAMS)
    )


async def commands_of(gateway: RedisGateway) -> Counter[str]:
    """How often each command was called."""
    [text] = await gateway.call(("INFO", "commandstats"))
    lines = [
        line.removeprefix("cmdstat_").partition(":calls=") for line in text.decode().splitlines() if ":calls=" in line
    ]
    return Counter({name: int(rest.partition(",")[0]) for name, _, rest in lines})


async def keys_of(gateway: RedisGateway, prefix: str) -> AsyncIterator[str]:
    [found] = await gateway.call(("KEYS", f"{prefix}*"))
    for key in sorted(found):
        yield key.decode()
