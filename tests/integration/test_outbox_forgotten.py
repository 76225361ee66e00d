"""A FLUSHALL takes the outbox and its consumer group along, at any moment."""

from __future__ import annotations

from typing import Any

import pytest

from bcs.errors import StoreUnavailable
from bcs.storage.redis.commands import Command
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.outbox import OutboxStream
from bcs.storage.redis.queue import KnownLengths
from bcs.wire.published import OutboundMessage

pytestmark = pytest.mark.anyio

MESSAGE = OutboundMessage("phase_skipped", "topic", b"key", b"value")


def forget_after_group_creation(gateway: RedisGateway, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let the stream be gone as soon as it has a group, so often."""
    call, left = gateway.call, times

    async def forgetful(*commands: Command) -> list[Any]:
        nonlocal left
        replies = await call(*commands)
        if commands[0][0] == "XGROUP" and left:
            left -= 1
            await call(("DEL", commands[0][2]))
        return replies

    monkeypatch.setattr(gateway, "call", forgetful)


async def test_redis_may_forget_the_group_between_its_creation_and_its_first_use(
    gateway: RedisGateway, redis_key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = OutboxStream(gateway, key_prefix=redis_key_prefix, number=3, consumer="only", lengths=KnownLengths())
    forget_after_group_creation(gateway, monkeypatch, times=1)
    assert await outbox.lease(5) == []
    await outbox.append([MESSAGE])
    assert [entry.message for entry in await outbox.lease(5)] == [MESSAGE]


async def test_a_redis_that_does_nothing_but_forget_counts_as_away(
    gateway: RedisGateway, redis_key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = OutboxStream(gateway, key_prefix=redis_key_prefix, number=3, consumer="only", lengths=KnownLengths())
    forget_after_group_creation(gateway, monkeypatch, times=1000)
    with pytest.raises(StoreUnavailable):
        await outbox.lease(5)
