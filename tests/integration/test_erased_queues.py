"""What waits in the queues about an erased batch is removed, also where a process has leased it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bcs.domain.history import HistoryEntry
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.stream_set import StreamSet
from bcs.wire.published import OutboundMessage
from tests.support.history_entries import answered, consumed
from tests.support.redis_queues import archive_queue, queue_keys, redis_outbox

pytestmark = pytest.mark.anyio

LONG = 10.0


def letter(batch: str, number: int = 0) -> OutboundMessage:
    return OutboundMessage("dead_letter", "topic.DLQ", batch.encode(), b"of Elsa %d" % number, headers=(("a", b"b"),))


def announcement(batch: str) -> OutboundMessage:
    return OutboundMessage("phase_skipped", "topic", batch.encode(), b"{}")


async def everything(queue: StreamSet[OutboundMessage]) -> Sequence[OutboundMessage]:
    return [each.message for each in await queue.lease(100)]


@pytest.mark.parametrize("others_streams", [1, 16])
async def test_facts_and_explanations_of_the_batch_are_removed_wherever_a_process_puts_them(
    gateway: RedisGateway, redis_key_prefix: str, batch: str, others_streams: int
) -> None:
    other = f"{batch}-other"
    for name in ("archive", "explanations"):
        writer = archive_queue(
            gateway, redis_key_prefix, name=name, streams=others_streams, consumer="writer", limit=99
        )
        kept: list[HistoryEntry] = [consumed(other), answered(other)]
        await writer.append([consumed(batch), *kept, answered(batch), *(consumed(batch) for _ in range(50))])
        queue = archive_queue(gateway, redis_key_prefix, name=name)
        assert (await queue.erase(batch, dry_run=True, seconds=LONG)).count == 52
        assert (await queue.erase(batch, dry_run=False, seconds=LONG)).count == 52
        assert [each.message for each in await queue.lease(100)] == kept


async def test_dead_letters_are_removed_and_announcements_are_published(
    gateway: RedisGateway, redis_key_prefix: str, batch: str
) -> None:
    outbox = redis_outbox(gateway, redis_key_prefix)
    await outbox.append([letter(batch), announcement(batch), letter(f"{batch}-other")])
    erased = await outbox.erase(batch, dry_run=False, seconds=LONG)
    assert (erased.count, erased.unread) == (1, ())
    assert {each.key for each in await everything(outbox)} == {batch.encode(), f"{batch}-other".encode()}


async def test_a_leased_dead_letter_does_not_come_back(
    gateway: RedisGateway, redis_key_prefix: str, batch: str
) -> None:
    """Its publisher gives it back, or sets it aside, after it was removed."""
    publisher, eraser = redis_outbox(gateway, redis_key_prefix), redis_outbox(gateway, redis_key_prefix, consumer="b")
    await publisher.append([letter(batch, number) for number in range(3)])
    leased = await publisher.lease(10)
    assert (await eraser.erase(batch, dry_run=False, seconds=LONG)).count == 3
    await publisher.requeue(leased[:1])
    await publisher.park(leased[1], "too large")
    await publisher.ack(leased[2:])
    assert await publisher.backlog() == 0
    parked = queue_keys(redis_key_prefix, ":parked")
    assert sum(await gateway.call(*(("XLEN", key) for key in parked))) == 0


async def test_what_was_set_aside_is_removed(gateway: RedisGateway, redis_key_prefix: str, batch: str) -> None:
    outbox, queue = redis_outbox(gateway, redis_key_prefix), archive_queue(gateway, redis_key_prefix)
    await outbox.append([letter(batch)])
    await queue.append([consumed(batch)])
    [message], [entry] = await outbox.lease(10), await queue.lease(10)
    await outbox.park(message, "too large")
    await queue.park(entry, "too late")
    assert (await outbox.erase(batch, dry_run=False, seconds=LONG)).count == 1
    assert (await queue.erase(batch, dry_run=False, seconds=LONG)).count == 1
    assert (await outbox.erase(batch, dry_run=False, seconds=LONG)).count == 0


async def test_streams_that_could_not_be_read_are_named(
    gateway: RedisGateway, redis_key_prefix: str, batch: str
) -> None:
    outbox = redis_outbox(gateway, redis_key_prefix, streams=2)
    await outbox.append([letter(batch)])
    [broken, sound] = queue_keys(redis_key_prefix, streams=2)
    if await gateway.call(("XLEN", broken)) != [0]:
        broken, sound = sound, broken
    await gateway.call(("DEL", broken), ("SET", broken, "not a stream"))
    erased = await outbox.erase(batch, dry_run=False, seconds=LONG)
    assert (erased.count, erased.unread) == (1, (broken,))
    await outbox.append([letter(batch, 1)])
    assert set((await outbox.erase(batch, dry_run=False, seconds=0.0)).unread) == {broken, sound}
