"""One contract for the outbox, in memory and in Redis, and between replicas."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from random import Random

import anyio
import pytest

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.errors import BcsError, OutboxFull
from bcs.storage.memory import MemoryOutbox
from bcs.storage.ports import Leased, LeasedMessage, Outbox, Waiting
from bcs.storage.redis import queue as redis_queue
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.outbox import RedisOutbox
from bcs.storage.redis.stream_layouts import number_in, stream_key
from bcs.wire.published import OutboundMessage
from tests.integration.stores import MakeGateway
from tests.support.redis_queues import USUAL_STREAMS, redis_outbox
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

KEY = b"key"
ALL_BYTES = bytes(range(256))
Replica = Callable[..., RedisOutbox]


def message(number: int) -> OutboundMessage:
    return OutboundMessage("phase_skipped", "topic", KEY, b"value %d" % number)


def numbers(leased: list[LeasedMessage]) -> list[int]:
    return [int(entry.message.value.split()[1]) for entry in leased]


def ids(leased: list[LeasedMessage]) -> list[str]:
    return [entry.entry_id for entry in leased]


@pytest.fixture
def stream(redis_key_prefix: str) -> str:
    """The stream of the messages with the usual key."""
    return stream_key(redis_key_prefix, number_in(USUAL_STREAMS, KEY))


@pytest.fixture
def replica(gateway: RedisGateway, redis_key_prefix: str) -> Replica:
    def make(consumer: str, limit: int = 20, streams: int = USUAL_STREAMS) -> RedisOutbox:
        return redis_outbox(gateway, redis_key_prefix, consumer=consumer, limit=limit, streams=streams)

    return make


@pytest.fixture(params=["memory", "redis"])
def outbox(request: pytest.FixtureRequest) -> Outbox:
    """Holds at most 20 messages."""
    if request.param == "memory":
        return MemoryOutbox(20, time.monotonic)
    made: RedisOutbox = request.getfixturevalue("replica")("only")
    return made


async def until_recovered(outbox: Outbox, count: int, idle_seconds: float = 0.05) -> list[LeasedMessage]:
    recovered: list[LeasedMessage] = []

    async def enough() -> bool:
        recovered.extend(await outbox.recover(idle_seconds, 10))
        return len(recovered) >= count

    await wait_until(enough)
    return recovered


async def test_everything_of_a_set_asideis_kept(outbox: Outbox) -> None:
    headers = (("a", b"1"), ("ä", b"\xff"), ("a", None), ("", b""))
    messages = [
        OutboundMessage("dead_letter", "t", None, b"\xff", truncated=b"less", headers=headers),
        OutboundMessage("phase_skipped", "t", b"", b""),
    ]
    await outbox.append(messages)
    leased = await outbox.lease(5)
    assert {entry.message for entry in leased} == set(messages)
    await outbox.requeue(leased)
    assert {entry.message for entry in await outbox.lease(5)} == set(messages)


async def test_an_empty_outbox_has_nothing_to_do(outbox: Outbox) -> None:
    assert await outbox.lease(5) == []
    assert await outbox.resume(5) == []
    assert await outbox.recover(0, 5) == []
    assert await outbox.backlog() == 0


async def test_entries_are_leased_once_and_oldest_first(outbox: Outbox) -> None:
    await outbox.append([message(0), message(1)])
    await outbox.append([message(2)])
    assert numbers(await outbox.lease(2)) == [0, 1]
    assert numbers(await outbox.lease(9)) == [2]
    assert await outbox.lease(9) == []
    assert await outbox.backlog() == 3


async def test_two_messages_that_look_the_same_are_two(outbox: Outbox) -> None:
    await outbox.append([message(0), message(1), message(0)])
    assert numbers(await outbox.lease(9)) == [0, 1, 0]


async def test_an_entry_stays_until_it_is_settled(outbox: Outbox) -> None:
    await outbox.append([message(number) for number in range(3)])
    leased = await outbox.lease(3)
    await outbox.ack(leased[1:2])
    assert await outbox.backlog() == 2
    assert numbers(await outbox.resume(9)) == [0, 2]
    assert numbers(await outbox.resume(1)) == [0]  # a second crash changes nothing
    await outbox.ack(leased)  # once more than needed
    assert await outbox.resume(9) == []
    assert await outbox.backlog() == 0


async def test_resuming_gives_back_what_was_leased_under_the_same_id(outbox: Outbox) -> None:
    await outbox.append([message(0), message(1)])
    [leased] = await outbox.lease(1)
    assert await outbox.resume(9) == [leased]
    assert numbers(await outbox.lease(9)) == [1]


@pytest.mark.parametrize(
    "sent",
    [
        OutboundMessage("dead_letter", "t.DLQ", ALL_BYTES, ALL_BYTES * 3, truncated=ALL_BYTES[::-1]),
        OutboundMessage("dead_letter", "t.DLQ", None, b""),
        OutboundMessage("phase_skipped", "t", b"", b"v", truncated=b""),
        OutboundMessage("phase_skipped", "t", "é😀".encode(), b"\r\n$3\r\n" * 9),
        OutboundMessage("dead_letter", "t.DLQ", b"k", ALL_BYTES * 4096),
    ],
    ids=["all bytes", "no key", "empty key", "protocol", "a megabyte"],
)
async def test_every_byte_comes_back(outbox: Outbox, sent: OutboundMessage) -> None:
    await outbox.append([sent])
    [leased] = await outbox.lease(1)
    assert leased.message == sent
    await outbox.requeue([leased])
    [again] = await outbox.lease(1)
    assert again.message == sent


async def test_what_is_given_back_goes_to_the_end_of_the_queue(outbox: Outbox) -> None:
    await outbox.append([message(number) for number in range(4)])
    first = await outbox.lease(2)
    await outbox.requeue(first)
    assert await outbox.backlog() == 4
    assert await outbox.resume(9) == []
    assert numbers(await outbox.lease(9)) == [2, 3, 0, 1]


async def has_waited(outbox: Outbox, seconds: float) -> bool:
    return (await outbox.measure()).oldest_seconds >= seconds


async def assert_no_older_than(outbox: Outbox, began: float) -> None:
    """Check that no message has waited since before then; a busy machine may be slow, and its messages older."""
    waited = (await outbox.measure()).oldest_seconds
    assert waited <= time.monotonic() - began + 0.01  # the times of Redis have milliseconds


async def test_a_message_gets_no_younger_by_being_given_back(outbox: Outbox) -> None:
    assert await outbox.measure() == Waiting(0, 0.0)
    await outbox.append([message(0)])
    await wait_until(lambda: has_waited(outbox, 0.05))
    for _ in range(2):
        await outbox.requeue(await outbox.lease(1))
        assert await has_waited(outbox, 0.05)
    [old] = await outbox.lease(1)
    began = time.monotonic()
    await outbox.append([message(1)])
    waiting = await outbox.measure()
    assert waiting.count == 2
    assert waiting.oldest_seconds >= 0.05
    # As after a FLUSHALL, when the entry that is given back is not there any more.
    await outbox.ack([old])
    await assert_no_older_than(outbox, began)
    if isinstance(outbox, RedisOutbox):
        await outbox.requeue([old])
        assert await has_waited(outbox, 0.05), "its age came along with it"


async def test_the_oldest_message_is_never_told_too_young(replica: Replica, gateway: RedisGateway, stream: str) -> None:
    outbox, random = replica("a", 100), Random(7)
    since_ms: dict[int, int] = {}
    leased: list[LeasedMessage] = []
    for number in range(150):
        match random.choice(("append", "lease", "give back", "ack")):
            case "append":
                await outbox.append([message(number)])
                [entries] = await gateway.call(("XREVRANGE", stream, "+", "-", "COUNT", 1))
                since_ms[number] = int(entries[0][0].partition(b"-")[0])
            case "lease":
                leased += await outbox.lease(random.randint(1, 4))
            case "give back":
                random.shuffle(leased)
                given, leased = leased[:2], leased[2:]
                await outbox.requeue(given)
            case "ack" if leased:
                entry = leased.pop()
                await outbox.ack([entry])
                del since_ms[numbers([entry])[0]]
        [[seconds, micros]] = await gateway.call(("TIME",))
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        waiting = await outbox.measure()
        assert waiting.count == len(since_ms)
        assert waiting.oldest_seconds * 1000 >= now_ms - min(since_ms.values(), default=now_ms)
    while leased or (leased := await outbox.lease(9)):
        await outbox.ack(leased)
        leased = []
    began = time.monotonic()
    await outbox.append([message(1000)])
    await assert_no_older_than(outbox, began)  # what the queue no longer has makes no other entry look old


async def test_appending_settling_or_giving_back_nothing_is_harmless(outbox: Outbox) -> None:
    await outbox.append([])
    await outbox.ack([])
    await outbox.requeue([])
    await outbox.append([message(0)])
    assert numbers(await outbox.lease(9)) == [0]


async def test_a_parked_entry_blocks_nothing(outbox: Outbox) -> None:
    await outbox.append([message(0), message(1)])
    [unlucky, other] = await outbox.lease(2)
    await outbox.park(unlucky, "too large")
    assert await outbox.backlog() == 1
    assert await outbox.resume(9) == [other]


async def test_a_full_outbox_takes_all_of_an_append_or_nothing(outbox: Outbox) -> None:
    await outbox.append([message(number) for number in range(18)])
    with pytest.raises(OutboxFull) as refusal:
        await outbox.append([message(number) for number in range(3)])
    assert refusal.value.limit == 20
    assert await outbox.backlog() == 18
    await outbox.append([message(18), message(19)])
    leased = await outbox.lease(5)
    with pytest.raises(OutboxFull):  # what is leased still counts
        await outbox.append([message(20)])
    await outbox.ack(leased[:1])
    await outbox.append([message(20)])
    assert await outbox.backlog() == 20


async def test_what_a_dead_holder_leased_is_taken_over_after_a_while(outbox: Outbox) -> None:
    await outbox.append([message(0), message(1)])
    held = await outbox.lease(2)
    assert await outbox.recover(3600, 9) == []
    recovered = await until_recovered(outbox, 2)
    assert recovered == held
    assert await outbox.recover(3600, 9) == []  # the new holder's time begins anew
    await outbox.ack(recovered)
    assert await outbox.backlog() == 0


async def test_memory_keeps_what_is_parked_with_the_reason() -> None:
    outbox = MemoryOutbox(20, time.monotonic)
    await outbox.append([message(0)])
    [leased] = await outbox.lease(1)
    await outbox.park(leased, "too large")
    assert list(outbox.parked) == [(message(0), "too large")]


async def test_redis_keeps_what_is_parked_with_the_reason(replica: Replica, gateway: RedisGateway) -> None:
    outbox = replica("a")
    await outbox.append([OutboundMessage("dead_letter", "t", ALL_BYTES, ALL_BYTES)])
    [leased] = await outbox.lease(1)
    await outbox.park(leased, "too large: ä")
    [[(_, fields)]] = await gateway.call(("XRANGE", f"{leased.stream}:parked", "-", "+"))
    parked = dict(zip(fields[::2], fields[1::2], strict=True))
    assert (parked[b"value"], parked[b"key"], parked[b"topic"]) == (ALL_BYTES, ALL_BYTES, b"t")
    assert parked[b"problem"].decode() == "too large: ä"


async def test_two_replicas_share_the_work_without_duplicates(replica: Replica) -> None:
    delivered: list[int] = []

    async def drain(outbox: RedisOutbox) -> None:
        while leased := await outbox.lease(3):
            delivered.extend(numbers(leased))
            await outbox.ack(leased)

    writer = replica("writer", limit=1000)
    await writer.append([message(number) for number in range(100)])
    async with anyio.create_task_group() as group:
        for name in ("a", "b"):
            group.start_soon(drain, replica(name))
    assert sorted(delivered) == list(range(100))
    assert await writer.backlog() == 0


async def test_a_replica_resumes_only_what_is_its_own(replica: Replica) -> None:
    a, b = replica("a"), replica("b")
    await a.append([message(0), message(1)])
    [mine], [theirs] = await a.lease(1), await b.lease(1)
    assert await a.resume(9) == [mine]
    assert await b.resume(9) == [theirs]
    assert await replica("a").resume(9) == [mine]  # a new incarnation of the same name


async def test_a_replica_takes_over_an_entry_and_the_dead_one_loses_it(replica: Replica) -> None:
    dead, living = replica("dead"), replica("living")
    await dead.append([message(0), message(1)])
    held = await dead.lease(2)
    assert await living.recover(3600, 9) == []
    assert await until_recovered(living, 2) == held
    assert await dead.resume(9) == []
    assert await living.resume(9) == held


async def test_only_one_of_several_replicas_takes_over(replica: Replica) -> None:
    dead = replica("dead")
    await dead.append([message(number) for number in range(12)])
    held = await dead.lease(12)
    taken: list[LeasedMessage] = []

    async def take(outbox: RedisOutbox) -> None:
        taken.extend(await outbox.recover(0.5, 5))

    async def all_taken() -> bool:
        async with anyio.create_task_group() as group:
            for name in ("a", "b", "c"):
                group.start_soon(take, replica(name))
        return len(taken) >= 12

    await wait_until(all_taken)
    assert sorted(ids(taken)) == sorted(ids(held))


async def test_a_dead_replica_s_entry_is_found_after_many_live_leases(replica: Replica) -> None:
    living, dead, other = replica("living", 100), replica("dead"), replica("other")
    await living.append([message(number) for number in range(31)])
    assert len(await living.lease(30)) == 30
    [lost] = await dead.lease(1)

    async def found() -> list[LeasedMessage]:
        await living.resume(100)  # reading them again counts as a sign of life
        return await other.recover(0.3, 1)

    assert await wait_until(found, 3, description="the dead replica's entry is taken over") == [lost]


@pytest.mark.parametrize("lost", ["stream", "group"])
async def test_it_goes_on_after_the_stream_or_its_group_is_lost(
    replica: Replica, gateway: RedisGateway, stream: str, lost: str
) -> None:
    a = replica("a")
    await a.append([message(0)])
    leased = await a.lease(1)
    await gateway.call(("DEL", stream) if lost == "stream" else ("XGROUP", "DESTROY", stream, "publishers"))
    assert await a.recover(0, 9) == []
    await a.ack(leased)
    await a.requeue(leased)
    await a.append([message(1)])
    assert numbers(await a.lease(9)) == [0, 1]
    assert await a.backlog() == 2
    assert len(await replica("b").recover(0, 9)) == 2


async def test_a_full_outbox_that_was_deleted_takes_messages_again(
    replica: Replica, gateway: RedisGateway, stream: str
) -> None:
    outbox = replica("a", limit=2)
    await outbox.append([message(0), message(1)])
    with pytest.raises(OutboxFull):
        await outbox.append([message(2)])
    await gateway.call(("DEL", stream))
    await outbox.append([message(2)])
    assert await outbox.backlog() == 1


async def test_entries_that_someone_deleted_hide_no_others(
    replica: Replica, gateway: RedisGateway, stream: str
) -> None:
    outbox = replica("a")
    await outbox.append([message(number) for number in range(4)])
    held = await outbox.lease(3)
    await gateway.call(("XDEL", stream, *ids(held[:2])))
    assert numbers(await outbox.resume(9)) == [2]
    assert numbers(await outbox.resume(1)) == [2]


async def test_an_entry_of_a_newer_release_with_more_fields_is_delivered(
    replica: Replica, gateway: RedisGateway, stream: str
) -> None:
    await gateway.call(("XADD", stream, "*", "kind", "k", "topic", "t", "value", "v", "new", "field"))
    [leased] = await replica("a").lease(9)
    assert leased.message == OutboundMessage("k", "t", None, b"v")


async def test_what_is_leased_at_a_time_is_bounded_by_bytes(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_queue, "_REPLY_BYTES", 1_000)
    a, b = replica("a"), replica("b")
    await a.append([OutboundMessage("dead_letter", "t", KEY, (b"value %d " % number) * 40) for number in range(10)])
    leased = await a.lease(10)
    assert numbers(leased) == [0, 1, 2]
    assert await a.resume(10) == leased
    recovered = await until_recovered(b, 3, idle_seconds=0.01)
    assert recovered == leased
    assert [len(await a.lease(10)) for _ in range(4)] == [3, 3, 1, 0]
    assert len(await a.resume(10)) == len(await b.resume(10)) == 3


async def test_an_entry_that_is_too_large_to_be_read_is_set_aside_unread(
    replica: Replica, gateway: RedisGateway, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = replica("a")
    huge, another = (OutboundMessage("dead_letter", "t", b"key", value * 100_000) for value in (b"x", b"y"))
    await a.append([message(0), huge, message(1)])
    [first] = await a.lease(1)
    [leased] = await a.lease(1)  # by a release that reads whatever is there
    monkeypatch.setattr(redis_queue, "_LARGEST_ENTRY_BYTES", 50_000)
    assert await a.resume(9) == [first]
    await a.append([another, message(2)])
    assert numbers(await a.lease(9)) == [1, 2]
    [parked] = await gateway.call(("XRANGE", f"{stream}:parked", "-", "+"))
    for set_aside, (_, fields) in zip((huge, another), parked, strict=True):
        found = dict(zip(fields[::2], fields[1::2], strict=True))
        assert (found[b"value"], found[b"key"]) == (set_aside.value, b"key")
        assert found[b"problem"].startswith(b"too large: 100")
    assert leased.message == huge
    assert await a.backlog() == 3


async def test_a_foreign_key_in_the_only_stream_s_place_is_a_typed_error(
    replica: Replica, gateway: RedisGateway, redis_key_prefix: str
) -> None:
    outbox, stream = replica("a", streams=1), stream_key(redis_key_prefix, 0)
    await gateway.call(("SET", stream, "x", "PX", 60_000))
    leased = Leased("1-1", message(0), stream)
    uses: list[Callable[[], Awaitable[object]]] = [
        lambda: outbox.lease(1),
        lambda: outbox.resume(1),
        lambda: outbox.recover(0, 1),
        lambda: outbox.append([message(0)]),
        lambda: outbox.ack([leased]),
        lambda: outbox.requeue([leased]),
        lambda: outbox.backlog(),
    ]
    for use in uses:
        with pytest.raises(BcsError):
            await use()
    assert gateway.circuit == "closed"


async def test_messages_are_added_after_redis_has_lost_the_script(
    own_valkey: EmbeddedServer, make_gateway: MakeGateway, redis_key_prefix: str
) -> None:
    gateway = make_gateway(own_valkey.address)
    outbox = redis_outbox(gateway, redis_key_prefix)
    await outbox.append([message(0)])
    await gateway.call(("SCRIPT", "FLUSH"))
    await outbox.append([message(1)])
    await outbox.append([message(2)])
    assert numbers(await outbox.lease(10)) == [0, 1, 2]


async def test_a_user_who_may_not_send_digests_of_scripts_adds_messages(
    own_valkey: EmbeddedServer, make_gateway: MakeGateway, redis_key_prefix: str
) -> None:
    control = make_gateway(own_valkey.address)
    await control.call(("ACL", "SETUSER", "narrow", "on", ">secret", "~*", "+@all", "-evalsha"))
    gateway = make_gateway(f"redis://narrow:secret@{own_valkey.address}")
    outbox = redis_outbox(gateway, redis_key_prefix)
    for number in range(3):
        await outbox.append([message(number)])
    assert numbers(await outbox.lease(10)) == [0, 1, 2]
