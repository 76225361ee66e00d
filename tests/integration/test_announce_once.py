"""A request that is repeated under its correlation id announces nothing again for some time, and never too little."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from bcs.errors import StoreUnavailable
from bcs.storage.memory import MemoryOutbox
from bcs.storage.ports import Outbox
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.stream_layouts import number_in, stream_key
from bcs.wire.published import OutboundMessage, phases_skipped
from tests.support.history_entries import answered
from tests.support.redis_queues import USUAL_STREAMS, redis_outbox
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

BATCH = "batch"
NEVER_SECONDS = 3600.0
STREAM = number_in(USUAL_STREAMS, BATCH.encode())


@dataclass
class Requests:
    """Makes the announcements of requests, each of them at another time."""

    made: int = field(default=0)

    def of(self, correlation_id: str, *phases: str, batch: str = BATCH) -> Sequence[OutboundMessage]:
        self.made += 1
        now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.made)
        return phases_skipped(batch, phases, correlation_id, now)


@pytest.fixture
def requests() -> Requests:
    return Requests()


@pytest.fixture(params=["memory", "redis", "redis with explanations"])
def outbox(request: pytest.FixtureRequest) -> Outbox:
    if request.param == "memory":
        return MemoryOutbox(100, time.monotonic, NEVER_SECONDS)
    gateway, prefix = request.getfixturevalue("gateway"), request.getfixturevalue("redis_key_prefix")
    explained = request.param != "redis"
    return redis_outbox(gateway, prefix, limit=100, explained=explained, announce_once_seconds=NEVER_SECONDS)


async def announce(outbox: Outbox, messages: Sequence[OutboundMessage]) -> None:
    """Announce as a service with an archive does; an outbox without one stores no explanation."""
    await outbox.announce(messages, answered(BATCH))


async def stored(outbox: Outbox) -> list[str]:
    """The phases of the announcements that are new since the last call."""
    leased = await outbox.lease(100)
    await outbox.ack(leased)
    return [json.loads(entry.message.value)["data"]["phase_name"] for entry in leased]


async def test_a_repeated_request_announces_only_what_is_new(outbox: Outbox, requests: Requests) -> None:
    await announce(outbox, requests.of("click", "spellcheck"))
    await announce(outbox, requests.of("click", "spellcheck"))
    assert await stored(outbox) == ["spellcheck"]
    # Also after it was published, and by the other way into the outbox.
    await outbox.append(requests.of("click", "spellcheck"))
    assert await stored(outbox) == []
    await announce(outbox, requests.of("click", "spellcheck", "nlp"))
    assert await stored(outbox) == ["nlp"]
    await announce(outbox, requests.of("another click", "spellcheck", "nlp"))
    assert await stored(outbox) == ["spellcheck", "nlp"]
    await announce(outbox, requests.of("click", "spellcheck", batch="another batch"))
    assert await stored(outbox) == ["spellcheck"]


async def test_messages_without_an_event_id_are_always_stored(outbox: Outbox) -> None:
    letters = [OutboundMessage("dead_letter", "topic", BATCH.encode(), b"%d" % number) for number in range(2)]
    await outbox.append(letters)
    assert [entry.message for entry in await outbox.lease(9)] == letters


async def test_in_memory_it_is_announced_again_after_the_time(requests: Requests) -> None:
    now = 0.0
    outbox = MemoryOutbox(100, lambda: now, 60)
    for now, phases in ((0.0, ["nlp"]), (59.9, []), (60.0, ["nlp"]), (119.0, []), (121.0, ["nlp"])):
        await outbox.append(requests.of("click", "nlp"))
        assert await stored(outbox) == phases, now


async def test_in_redis_it_is_announced_again_after_the_time(
    gateway: RedisGateway, redis_key_prefix: str, requests: Requests
) -> None:
    outbox = redis_outbox(gateway, redis_key_prefix, announce_once_seconds=NEVER_SECONDS)
    await outbox.append(requests.of("click", "nlp"))
    [key] = [f"{stream_key(redis_key_prefix, STREAM)}:announced:{one.event_id}" for one in requests.of("click", "nlp")]
    [left_ms] = await gateway.call(("PTTL", key))
    assert NEVER_SECONDS * 900 < left_ms <= NEVER_SECONDS * 1000
    short = redis_outbox(gateway, redis_key_prefix, announce_once_seconds=0.05)
    await short.append(requests.of("short", "nlp"))
    assert await stored(outbox) == ["nlp", "nlp"]

    async def again() -> bool:
        await short.append(requests.of("short", "nlp"))
        return await stored(outbox) == ["nlp"]

    await wait_until(again)


async def test_without_a_time_each_request_announces(
    gateway: RedisGateway, redis_key_prefix: str, requests: Requests
) -> None:
    for outbox in (redis_outbox(gateway, redis_key_prefix), MemoryOutbox(100, time.monotonic)):
        for _ in range(2):
            await outbox.append(requests.of("click", "nlp"))
        assert await stored(outbox) == ["nlp", "nlp"]


async def test_another_replica_knows_what_was_announced(
    gateway: RedisGateway, redis_key_prefix: str, requests: Requests
) -> None:
    one, other = (
        redis_outbox(gateway, redis_key_prefix, consumer=name, announce_once_seconds=NEVER_SECONDS) for name in "ab"
    )
    await one.append(requests.of("click", "nlp"))
    await other.append(requests.of("click", "nlp", "spellcheck"))
    assert await stored(one) == ["nlp", "spellcheck"]


async def test_an_announcement_that_could_not_be_stored_is_stored_when_it_is_repeated(
    gateway: RedisGateway, redis_key_prefix: str, requests: Requests
) -> None:
    outbox = redis_outbox(gateway, redis_key_prefix, announce_once_seconds=NEVER_SECONDS)
    stream = stream_key(redis_key_prefix, STREAM)
    await gateway.call(("SET", stream, "not a stream"))
    with pytest.raises(StoreUnavailable):
        await outbox.append(requests.of("click", "nlp"))
    await gateway.call(("DEL", stream))
    await outbox.append(requests.of("click", "nlp"))
    assert await stored(outbox) == ["nlp"]


async def test_a_requeued_announcement_stays(outbox: Outbox, requests: Requests) -> None:
    await outbox.append(requests.of(str(uuid.uuid4()), "nlp"))
    await outbox.requeue(await outbox.lease(9))
    assert await stored(outbox) == ["nlp"]
