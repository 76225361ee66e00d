"""Dead letters are counted and logged once they are stored, and a retry appends the same bytes."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from bcs.actors.dead_letters import DeadLetters, FailedEvent
from bcs.actors.ingest.refused import RefusedMessages
from bcs.actors.messages import ApplyFacts, DeliveryToken
from bcs.domain.history import Position
from bcs.domain.skips import SkipOrder
from bcs.errors import DeadLetterReason, StoreUnavailable
from bcs.wire import topics
from bcs.wire.published import ConsumedMessage, OutboundMessage
from tests.support.runtimes import nothing_erased, runtime_with

pytestmark = pytest.mark.anyio

MESSAGE = ConsumedMessage(topics.SPELLCHECK_COMPLETED, 0, 7, timestamp_ms=1, key=b"e", value=b"{}")
TOKEN = DeliveryToken(MESSAGE, "SpellcheckPhaseCompletedV1", "correlation", 1)


class FailingFirst:
    """An outbox whose first append fails, with an unknown outcome."""

    def __init__(self) -> None:
        self.appended: list[OutboundMessage] = []

    async def append(self, messages: Sequence[OutboundMessage]) -> None:
        self.appended.extend(messages)
        if len(self.appended) == len(messages):
            raise StoreUnavailable("redis", "the test says so")

    async def announce(self, *_: object) -> None:
        raise NotImplementedError


def failed(reason: DeadLetterReason) -> FailedEvent:
    return FailedEvent(token=TOKEN, reason=reason, error_type="E", error_message="", batch_id="b")


def dead_letters(outbox: FailingFirst) -> DeadLetters:
    seconds = itertools.count()
    begin = datetime(2026, 5, 3, 8, tzinfo=UTC)
    clock = lambda: begin + timedelta(seconds=next(seconds))  # noqa: E731
    return DeadLetters(
        outbox=outbox, runtime=replace(runtime_with(), now=clock, new_id=uuid.uuid4), is_erased=nothing_erased
    )


def counted(letters: DeadLetters, reason: str) -> float:
    return float(letters.runtime.telemetry.dead_letters.labels(MESSAGE.topic, reason)._value.get())


@pytest.mark.parametrize(
    ("reason", "level"),
    [("processing_failed", "ERROR"), ("decoder_failed", "ERROR"), ("not_json", "WARNING"), ("too_large", "WARNING")],
)
async def test_only_stored_dead_letters_are_counted_and_logged(
    reason: DeadLetterReason, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    letters = dead_letters(FailingFirst())
    encoded = await letters.encode(failed(reason))
    with pytest.raises(StoreUnavailable):
        await letters.store([encoded])
    assert (counted(letters, reason), caplog.records) == (0, [])
    await letters.store([encoded])
    assert counted(letters, reason) == 1
    assert [(record.msg, record.levelname) for record in caplog.records] == [("message_dead_lettered", level)]


async def test_a_skip_that_is_tried_again_appends_the_same_bytes() -> None:
    outbox = FailingFirst()
    letters = dead_letters(outbox)
    refused = RefusedMessages(dead_letters=letters, waits=letters.runtime.waits)
    order = SkipOrder(Position(MESSAGE.topic, 0, 7), "it blocks", "somebody", "2026-05-03T07:00:00Z")
    command = ApplyFacts("b", (), TOKEN)
    assert not await refused.store_skipped(order, command)
    assert await refused.store_skipped(order, command)
    first, second = outbox.appended
    assert first == second
