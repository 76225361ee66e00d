"""The publisher is woken when the outbox has accepted messages, and not when it refused them."""

from __future__ import annotations

import time
from uuid import UUID

import pytest

from bcs.actors.waking_outbox import WakingOutbox
from bcs.domain.history import PipelineResolved
from bcs.errors import OutboxFull
from bcs.storage.memory import MemoryOutbox
from bcs.wire.published import OutboundMessage

pytestmark = pytest.mark.anyio

MESSAGE = OutboundMessage("phase_skipped", "topic", b"key", b"value")
RESOLVED = PipelineResolved(
    UUID(int=1),
    "batch",
    1,
    correlation_id="c",
    asked_by="test",
    pipeline="nlp",
    decisions=(),
    version=1,
    source="memory",
)


@pytest.mark.parametrize("explained", [False, True], ids=["append", "announce"])
async def test_the_outbox_has_the_message_before_the_publisher_is_woken(explained: bool) -> None:
    outbox = MemoryOutbox(1, time.monotonic)
    waiting_when_woken: list[int] = []
    entrance = WakingOutbox(outbox, lambda: waiting_when_woken.append(len(outbox._waiting)))

    async def put() -> None:
        if explained:
            await entrance.announce([MESSAGE], RESOLVED)
        else:
            await entrance.append([MESSAGE])

    await put()
    assert waiting_when_woken == [1]
    with pytest.raises(OutboxFull):
        await put()
    assert waiting_when_woken == [1]
