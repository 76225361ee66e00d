"""A large dead letter does not block the event loop."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import anyio
import anyio.lowlevel
import pytest

from bcs.actors.dead_letters import dead_letter_of
from bcs.wire import topics
from bcs.wire.dead_letters.decode import DeadLetterPosition, read_dead_letter
from bcs.wire.published import ConsumedMessage

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 5, 3, 8, tzinfo=UTC)


async def test_others_run_while_a_large_value_is_digested() -> None:
    value = bytes(64_000_000)
    turns, over = 0, anyio.Event()

    async def others() -> None:
        nonlocal turns
        while not over.is_set():
            turns += 1
            await anyio.lowlevel.checkpoint()

    failed = ConsumedMessage(topics.CJ_COMPLETED, 0, 7, timestamp_ms=1, key=None, value=value)
    async with anyio.create_task_group() as group:
        group.start_soon(others)
        await anyio.lowlevel.checkpoint()
        before = turns
        letter = await dead_letter_of(failed, "too_large", {}, NOW, None, limit_bytes=1_000_000)
        meanwhile = turns - before
        over.set()
    assert meanwhile > 20
    found = read_dead_letter(DeadLetterPosition(letter.topic, 0, 0), letter.key, letter.value, letter.headers)
    assert found.value_sha256 == hashlib.sha256(value).hexdigest()
