"""Messages that the intake does not hand to a batch: each becomes a dead letter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from bcs.actors.dead_letters import dead_letter_of
from bcs.actors.ingest.skips import REASON as SKIPPED
from bcs.actors.ingest.skips import reason_of
from bcs.actors.messages import ApplyFacts, DeliveryToken, position_of
from bcs.domain.history import Position
from bcs.domain.skips import SkipOrder
from bcs.errors import StoreError, UndecodableMessage
from bcs.observability.telemetry import Telemetry
from bcs.observability.waits import INTAKE, Waits
from bcs.storage.ports import OutboxEntrance
from bcs.wire.dead_letters.encode import unread_dead_letter
from bcs.wire.published import OutboundMessage

log = structlog.stdlib.get_logger("bcs.intake", actor="intake")

_STORE = "store dead letters"
_DEAD_LETTERS_PER_APPEND = 20
# They go to the store in one round trip, which has a deadline.
_BYTES_PER_APPEND = 1024 * 1024


@dataclass(slots=True, kw_only=True)
class RefusedMessages:
    """Keeps refused messages until the outbox has their dead letters; only then do they count as finished.

    :param waits: is told that the outbox takes nothing.
    :param now: wall-clock time.
    :param dead_letter_limit_bytes: the largest message that the broker takes.
    """

    outbox: OutboxEntrance
    telemetry: Telemetry
    waits: Waits
    now: Callable[[], datetime]
    dead_letter_limit_bytes: int
    _refused: list[tuple[DeliveryToken, UndecodableMessage]] = field(default_factory=list, init=False)
    # Of the first of these, kept until the store has them: by their content it knows letters that come again.
    _dead_letters: list[OutboundMessage] = field(default_factory=list, init=False)

    def __len__(self) -> int:
        """How many wait for the outbox."""
        return len(self._refused)

    @property
    def positions(self) -> set[Position]:
        """Where the messages lie that wait for the outbox."""
        return {position_of(token.message) for token, _ in self._refused}

    def add(self, token: DeliveryToken, error: UndecodableMessage) -> None:
        """A message is refused."""
        self._refused.append((token, error))

    async def store(self) -> list[DeliveryToken]:
        """Store the next dead letters, as many as go in one round trip.

        Cancellation leaves them here; the same letters are stored with the next call.

        :returns: whose letters are durable now; nothing where none waits, or the outbox took none.
        """
        if not self._refused:
            return []
        if not self._dead_letters:
            self._dead_letters = await self._make()
        if not await self._append(self._dead_letters):
            return []
        stored = self._refused[: len(self._dead_letters)]
        del self._refused[: len(stored)]
        self._dead_letters = []
        for token, error in stored:
            self._note(token, error)
        return [token for token, _ in stored]

    async def store_skipped(self, order: SkipOrder, held: ApplyFacts | None) -> bool:
        """Store the dead letter of a message that an operator ordered to pass over; False where that failed.

        :param held: what a batch has of the message; None where its bytes are not at hand.
        """
        at, ordered_at = order.position, datetime.fromisoformat(order.ordered_at)
        detail = {"attempts": 1, "error_type": "SkipOrder", "error_message": reason_of(order)}
        # With the time of the order: a letter that is made again must be the same, for the outbox to know it.
        if held is None or held.token is None:
            dead_letter = unread_dead_letter(at.topic, at.partition, at.offset, SKIPPED, detail, ordered_at)
        else:
            message, limit_bytes = held.token.message, self.dead_letter_limit_bytes
            dead_letter = await dead_letter_of(
                message, SKIPPED, detail, ordered_at, held.batch_id, limit_bytes=limit_bytes
            )
        if not await self._append([dead_letter]):
            return False
        self.telemetry.dead_letters.labels(at.topic, SKIPPED).inc()
        return True

    async def _append(self, dead_letters: list[OutboundMessage]) -> bool:
        try:
            await self.outbox.append(dead_letters)
        except StoreError as error:
            self.waits.begin(INTAKE, _STORE, str(error))
            return False
        self.waits.end(INTAKE, _STORE)
        return True

    async def _make(self) -> list[OutboundMessage]:
        """As many of the next letters as are stored in one round trip; at least one."""
        dead_letters: list[OutboundMessage] = []
        size_bytes = 0
        for token, error in self._refused[:_DEAD_LETTERS_PER_APPEND]:
            size_bytes += token.message.size_bytes
            if dead_letters and size_bytes > _BYTES_PER_APPEND:
                break
            detail = {"attempts": 1, "error_type": type(error).__name__, "error_message": error.detail}
            dead_letters.append(
                await dead_letter_of(
                    token.message,
                    error.reason,
                    detail,
                    self.now(),
                    error.batch_id,
                    limit_bytes=self.dead_letter_limit_bytes,
                )
            )
        return dead_letters

    def _note(self, token: DeliveryToken, error: UndecodableMessage) -> None:
        message = token.message
        self.telemetry.dead_letters.labels(message.topic, error.reason).inc()
        self.telemetry.events(token.event_type, "dead_lettered").inc()
        log.warning(
            "message_dead_lettered",
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            reason=error.reason,
            detail=error.detail,
            batch_id=error.batch_id,
            correlation_id=token.correlation_id,
            summed_by=("topic", "reason"),
        )
