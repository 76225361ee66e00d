"""A large dead letter does not block the event loop."""

from __future__ import annotations

import hashlib
import time

import anyio
import anyio.lowlevel
import pytest

from bcs.actors.dead_letters import DeadLetters, FailedEvent
from bcs.actors.messages import DeliveryToken
from bcs.storage.memory import MemoryOutbox
from bcs.wire import topics
from bcs.wire.dead_letters.decode import DeadLetterPosition, read_dead_letter
from bcs.wire.published import ConsumedMessage
from tests.support.runtimes import nothing_erased, runtime_with

pytestmark = pytest.mark.anyio


async def test_others_run_while_a_large_value_is_digested() -> None:
    value = bytes(64_000_000)
    turns, over = 0, anyio.Event()

    async def others() -> None:
        nonlocal turns
        while not over.is_set():
            turns += 1
            await anyio.lowlevel.checkpoint()

    message = ConsumedMessage(topics.CJ_COMPLETED, 0, 7, timestamp_ms=1, key=None, value=value)
    failed = FailedEvent(
        token=DeliveryToken(message, "CJAssessmentCompletedV1", None, 1),
        reason="too_large",
        error_type="UndecodableMessage",
        error_message="",
        batch_id=None,
    )
    dead_letters = DeadLetters(outbox=MemoryOutbox(1, time.monotonic), runtime=runtime_with(), is_erased=nothing_erased)
    async with anyio.create_task_group() as group:
        group.start_soon(others)
        await anyio.lowlevel.checkpoint()
        before = turns
        letter = (await dead_letters.encode(failed)).message
        meanwhile = turns - before
        over.set()
    assert meanwhile > 20
    found = read_dead_letter(DeadLetterPosition(letter.topic, 0, 0), letter.key, letter.value, letter.headers)
    assert found.value_sha256 == hashlib.sha256(value).hexdigest()
