"""A repeated write to the outbox adds nothing twice and leaves nothing behind."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from bcs.actors.messages import ApplyFacts, DeliveryToken
from bcs.domain.facts import EssayPhaseEnded, Outcome
from bcs.domain.history import PipelineResolved
from bcs.errors import StoreUnavailable
from bcs.storage.ports import LeasedMessage
from bcs.storage.redis import queue as redis_queue
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.outbox import RedisOutbox
from bcs.storage.redis.stream_layouts import number_in, stream_key
from bcs.wire import topics
from bcs.wire.published import ConsumedMessage, OutboundMessage, phases_skipped
from tests.integration.service_with_archive import ServiceWithArchive
from tests.integration.stores import MakeGateway
from tests.support.events import spellchecked
from tests.support.fault_proxy import FaultProxy
from tests.support.history_entries import AT_US
from tests.support.kafka import Platform
from tests.support.redis_queues import USUAL_STREAMS, queue_keys, redis_outbox
from tests.support.service import Orchestrator, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

Replica = Callable[[str], RedisOutbox]


def message(number: int) -> OutboundMessage:
    return OutboundMessage("phase_skipped", "topic", b"key", b"value %d" % number)


def values(leased: list[LeasedMessage]) -> list[bytes]:
    return [entry.message.value for entry in leased]


@pytest.fixture
def stream(redis_key_prefix: str) -> str:
    """The stream of the messages with the usual key."""
    return stream_key(redis_key_prefix, number_in(USUAL_STREAMS, b"key"))


@pytest.fixture
def cut_off(proxy: FaultProxy, make_gateway: MakeGateway, redis_key_prefix: str) -> RedisOutbox:
    """An outbox whose replies get lost."""
    gateway = make_gateway(proxy.address, deadline=5)
    return redis_outbox(gateway, redis_key_prefix, consumer="cut off", limit=1000, explained=True)


@pytest.fixture
def other(gateway: RedisGateway, redis_key_prefix: str) -> RedisOutbox:
    """Another replica's way to the same outbox."""
    return redis_outbox(gateway, redis_key_prefix, consumer="other", limit=1000)


async def twice(proxy: FaultProxy, about: bytes, write: Callable[[], Awaitable[object]]) -> None:
    """Write, lose the reply to a request with these bytes, and write again."""
    lost = proxy.replies_dropped
    proxy.drop_replies(about)
    with pytest.raises(StoreUnavailable):
        await write()
    assert proxy.replies_dropped == lost + 1
    await write()


async def test_an_append_is_carried_out_once(proxy: FaultProxy, cut_off: RedisOutbox, other: RedisOutbox) -> None:
    await other.append([message(9)])  # Redis has the script from now on
    await twice(proxy, b"value 0", lambda: cut_off.append([message(0), message(1)]))
    assert values(await other.lease(10)) == [b"value 9", b"value 0", b"value 1"]
    # A retry comes with more than the first try had, as more letters wait by then.
    await cut_off.append([message(1), message(2)])
    assert values(await other.lease(10)) == [b"value 2"]


async def test_an_announcement_whose_reply_was_lost_is_not_made_again(
    proxy: FaultProxy, make_gateway: MakeGateway, gateway: RedisGateway, redis_key_prefix: str
) -> None:
    """A caller repeats its request, which has another time, and so other bytes."""
    cut_off, other = (
        redis_outbox(each, redis_key_prefix, consumer=name, announce_once_seconds=3600)
        for name, each in (("cut off", make_gateway(proxy.address, deadline=5)), ("other", gateway))
    )
    first, again, last = (
        phases_skipped("batch", ["nlp"], "click", datetime(2026, 1, 1, second=second, tzinfo=UTC))
        for second in range(3)
    )
    await other.append([message(9)])  # Redis has the script from now on
    proxy.drop_replies(b"announced")
    with pytest.raises(StoreUnavailable):
        await cut_off.append(first)
    await other.append(again)
    # In another stream than the message before.
    assert set(values(await other.lease(10))) == {b"value 9", first[0].value}
    await cut_off.append(last)
    assert await other.lease(10) == []


async def test_a_retry_adds_nothing_after_the_message_was_published(
    proxy: FaultProxy, cut_off: RedisOutbox, other: RedisOutbox
) -> None:
    proxy.drop_replies(b"value 0")
    with pytest.raises(StoreUnavailable):
        await cut_off.append([message(0)])
    await other.ack(await other.lease(10))
    await cut_off.append([message(0)])
    assert await other.backlog() == 0


async def test_an_announcement_repeated_by_the_archive_is_added_once(
    proxy: FaultProxy, cut_off: RedisOutbox, other: RedisOutbox
) -> None:
    explanation = PipelineResolved(
        uuid.uuid4(),
        "batch",
        AT_US,
        correlation_id="id",
        asked_by="test",
        pipeline="nlp",
        decisions=(),
        version=1,
        source="redis",
        registered=True,
    )
    proxy.drop_replies(b"value 0")
    with pytest.raises(StoreUnavailable):
        await cut_off.announce([message(0)], explanation)
    await other.append([message(0)])
    assert await other.backlog() == 1


async def test_what_is_given_back_is_there_once(proxy: FaultProxy, cut_off: RedisOutbox, other: RedisOutbox) -> None:
    await cut_off.append([message(number) for number in range(3)])
    leased = await cut_off.lease(10)
    await twice(proxy, leased[0].entry_id.encode(), lambda: cut_off.requeue(leased))
    assert values(await other.lease(10)) == [b"value 0", b"value 1", b"value 2"]


async def test_what_is_set_aside_is_there_once(
    proxy: FaultProxy, cut_off: RedisOutbox, gateway: RedisGateway, stream: str
) -> None:
    await cut_off.append([message(0)])
    [leased] = await cut_off.lease(10)
    await twice(proxy, leased.entry_id.encode(), lambda: cut_off.park(leased, "refused"))
    assert await gateway.call(("XLEN", stream), ("XLEN", f"{stream}:parked")) == [0, 1]


@pytest.mark.parametrize("taking", ["lease", "recover"])
async def test_entries_whose_reply_was_lost_are_leased_again_at_once(
    proxy: FaultProxy, cut_off: RedisOutbox, other: RedisOutbox, taking: str
) -> None:
    await other.append([message(0), message(1)])
    if taking == "recover":
        await other.lease(1)
    proxy.drop_replies(b"publishers")
    with pytest.raises(StoreUnavailable):
        await (cut_off.lease(1) if taking == "lease" else cut_off.recover(0, 1))
    for expected in ([b"value 0"], [b"value 1"], []):
        leased = await cut_off.lease(1)
        assert values(leased) == expected
        await cut_off.ack(leased)


async def test_the_kept_identities_of_appends_are_limited(
    other: RedisOutbox, gateway: RedisGateway, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_queue, "_KEPT_IDENTITIES", 10)
    for number in range(35):
        await other.append([message(number)])
        [now, before] = await gateway.call(("SCARD", f"{stream}:taken"), ("SCARD", f"{stream}:taken:before"))
        assert now + before <= 20
        assert number < 10 or now + before >= 10
    await other.append([message(number) for number in range(25, 35)])
    assert await other.backlog() == 35


@pytest.mark.release
async def test_a_dead_letter_whose_append_has_no_reply_is_written_once(
    proxy: FaultProxy, module_kafka: str, batch: str, redis_key_prefix: str
) -> None:
    junk = json.dumps({"data": {"batch_id": batch, "marker": f"marker-of-{batch}"}}).encode()
    async with (
        Platform(module_kafka) as platform,
        running_service(
            redis_url=f"redis://{proxy.address}/0",
            kafka_bootstrap_servers=module_kafka,
            kafka_consumer_group_id=redis_key_prefix,
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        proxy.drop_replies(f"marker-of-{batch}".encode(), count=3)
        await platform.send_raw((topics.SPELLCHECK_COMPLETED, batch.encode(), junk))
        await wait_until(lambda: platform.caught_up(redis_key_prefix))
        assert proxy.replies_dropped == 3

        async def all_published() -> bool:
            return await orchestrator.metric("bcs_outbox_backlog") == 0

        await wait_until(all_published)
        letters = await platform.messages(topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED), batch)
        assert len(letters) == 1


@pytest.mark.release
async def test_a_fact_whose_place_in_the_queue_is_unknown_waits_there_once(
    tmp_path: Path, database_url: str, batch: str
) -> None:
    event = spellchecked(batch, "essay")
    message = ConsumedMessage(event.topic, 0, 7, timestamp_ms=1, key=event.key, value=event.value)
    fact = EssayPhaseEnded("spellcheck", "essay", Outcome.COMPLETED, AT_US)
    command = ApplyFacts(batch, (fact,), DeliveryToken(message, "SpellcheckPhaseCompletedV1", None, 1))
    async with ServiceWithArchive(tmp_path, database_url) as setup:
        setup.database_proxy.refuse()
        await setup.database_proxy.cut()
        setup.redis_proxy.drop_replies(f'"{batch}"'.encode())
        setup.running.call(setup.running.service.batches.deliver_nowait, batch, command)
        # In Redis only behind the queue.
        await wait_until(partial(knows, setup, batch))
        assert setup.redis_proxy.replies_dropped == 1
        assert sum([await setup.redis.xlen(key) for key in queue_keys("bcs:", ":archive")]) == 1


async def knows(setup: ServiceWithArchive, batch: str) -> bool:
    return bool(await setup.redis.hlen(BatchKeys("bcs:", batch).facts))
