"""Messages that the intake does not deliver to a batch: each becomes a dead letter."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime

from bcs.actors.dead_letters import DeadLetters, EncodedDeadLetter, FailedEvent
from bcs.actors.ingest.skip_orders import REASON as SKIPPED
from bcs.actors.ingest.skip_orders import reason_of
from bcs.actors.messages import ApplyFacts, DeliveryToken, position_of
from bcs.domain.history import Position
from bcs.domain.skips import SkipOrder
from bcs.errors import StoreError, UndecodableMessage
from bcs.observability.waits import INTAKE, Waits

_STORE = "store dead letters"
_DEAD_LETTERS_PER_APPEND = 20
# The dead letters are stored in one round trip, which has a deadline.
_BYTES_PER_APPEND = 1024 * 1024


@dataclass(slots=True, kw_only=True)
class RefusedMessages:
    """Holds refused messages until the outbox has their dead letters. Then the messages count as finished."""

    dead_letters: DeadLetters
    waits: Waits
    _refused: list[tuple[DeliveryToken, UndecodableMessage]] = field(default_factory=list, init=False)
    # The dead letters of the first refused messages. A retry must append the same bytes, because the outbox recognizes
    # a repeated dead letter by its bytes.
    _encoded: list[EncodedDeadLetter] = field(default_factory=list, init=False)

    def __len__(self) -> int:
        """The number of messages that wait for the outbox."""
        return len(self._refused)

    @property
    def positions(self) -> set[Position]:
        """The positions of the messages that wait for the outbox."""
        return {position_of(token.message) for token, _ in self._refused}

    def add(self, token: DeliveryToken, error: UndecodableMessage) -> None:
        """Refuse a message."""
        self._refused.append((token, error))

    async def store(self) -> list[DeliveryToken]:
        """Store the next dead letters in one round trip.

        After cancellation the next call stores the same dead letters.

        :returns: the tokens of the messages whose dead letters are now durable; empty if no message waits, or the
            outbox stored none.
        """
        if not self._refused:
            return []
        if not self._encoded:
            self._encoded = await self._encode()
        if not await self._store(self._encoded):
            return []
        stored = self._refused[: len(self._encoded)]
        del self._refused[: len(stored)]
        self._encoded = []
        return [token for token, _ in stored]

    async def store_skipped(self, order: SkipOrder, command: ApplyFacts | None) -> bool:
        """Store the dead letter of a message that an operator ordered to skip; False if that failed.

        :param command: the message in flight; None if the bytes of the message are not available.
        """
        # With the time of the order, a dead letter that is encoded again has the same bytes.
        ordered_at, text = datetime.fromisoformat(order.ordered_at), reason_of(order)
        if command is None or command.token is None:
            detail = {"attempts": 1, "error_type": "SkipOrder", "error_message": text}
            dead_letter = self.dead_letters.encode_unread(order.position, SKIPPED, detail, ordered_at)
        else:
            failed = FailedEvent(
                token=command.token,
                reason=SKIPPED,
                error_type="SkipOrder",
                error_message=text,
                batch_id=command.batch_id,
            )
            # The skip order has its own log line and outcome.
            dead_letter = replace(await self.dead_letters.encode(failed, ordered_at), event=None)
        return await self._store([dead_letter])

    async def _store(self, dead_letters: list[EncodedDeadLetter]) -> bool:
        try:
            await self.dead_letters.store(dead_letters)
        except StoreError as error:
            self.waits.begin(INTAKE, _STORE, str(error))
            return False
        self.waits.end(INTAKE, _STORE)
        return True

    async def _encode(self) -> list[EncodedDeadLetter]:
        """Encode the next dead letters, at least one and at most as many as fit in one round trip."""
        encoded: list[EncodedDeadLetter] = []
        size_bytes = 0
        for token, error in self._refused[:_DEAD_LETTERS_PER_APPEND]:
            size_bytes += token.message.size_bytes
            if encoded and size_bytes > _BYTES_PER_APPEND:
                break
            encoded.append(await self.dead_letters.encode(FailedEvent.undecodable(token, error)))
        return encoded
