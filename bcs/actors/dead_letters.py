"""Makes all dead letters, stores them in the outbox, counts and logs them."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import anyio.lowlevel
import anyio.to_thread
import structlog

from bcs.actors.archive.client import ArchiveClient
from bcs.actors.messages import DeliveryToken
from bcs.actors.runtime import Runtime
from bcs.domain.dead_lettered import entry_about, entry_id_of, replay_entry, replay_id_of
from bcs.domain.history import FactsRecorded, Position
from bcs.domain.times import microseconds
from bcs.errors import DeadLetterReason, StoreError, UndecodableMessage
from bcs.storage.ports import OutboxWriter
from bcs.wire import topics
from bcs.wire.dead_letters.decode import read_replay
from bcs.wire.dead_letters.encode import RESOLUTION_FAILED, dead_letter, unread_dead_letter
from bcs.wire.published import ConsumedMessage, OutboundMessage
from bcs.wire.tracing import trace_of_message

log = structlog.stdlib.get_logger("bcs.dead_letters")

_LARGE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedEvent:
    """A consumed event that becomes a dead letter, and the reason.

    :param attempts: the number of attempts to process the event.
    """

    token: DeliveryToken
    reason: DeadLetterReason
    error_type: str
    error_message: str
    batch_id: str | None
    attempts: int = 1

    @classmethod
    def undecodable(cls, token: DeliveryToken, error: UndecodableMessage) -> FailedEvent:
        """An event that the intake could not decode, or refused."""
        return cls(
            token=token,
            reason=error.reason,
            error_type=type(error).__name__,
            error_message=error.detail,
            batch_id=error.batch_id,
        )

    @property
    def detail(self) -> dict[str, object]:
        """The description of the failure in the dead letter."""
        return {"attempts": self.attempts, "error_type": self.error_type, "error_message": self.error_message}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedDeadLetter:
    """A dead letter that is ready for the outbox.

    :param topic: the topic of the original message.
    :param batch_id: the batch of an event; None where no batch is known.
    :param event: the event that failed; None for a skip order and for a request, which have their own log lines.
    :param entry: for the history of the batch; None where the batch is unknown.
    """

    message: OutboundMessage
    topic: str
    reason: str
    batch_id: str | None = None
    event: FailedEvent | None = None
    entry: FactsRecorded | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetters:
    """Makes dead letters and stores them, but none of erased batches: they would keep what was erased.

    :param is_erased: tells whether a batch was erased.
    :param archive_client: None without an archive.
    """

    outbox: OutboxWriter
    runtime: Runtime
    is_erased: Callable[[str], Awaitable[bool]]
    archive_client: ArchiveClient | None = None

    async def encode(self, failed: FailedEvent, at: datetime | None = None) -> EncodedDeadLetter:
        """The dead letter of an event. A large event does not block the event loop.

        :param at: the time of the failure; None for the present. The outbox recognises a repeated dead letter by its
            bytes, so a dead letter that is encoded again needs the same time.
        """
        original = failed.token.message
        digest = None
        if original.value is not None and len(original.value) > _LARGE_BYTES:
            digest = await anyio.to_thread.run_sync(_sha256, original.value)
        else:
            await anyio.lowlevel.checkpoint()  # other tasks run between two dead letters
        failed_at = at or self.runtime.now()
        message = dead_letter(
            original,
            failed.reason,
            failed.detail,
            failed_at,
            failed.batch_id,
            limit_bytes=self.runtime.settings.kafka_max_message_bytes,
            value_sha256=digest,
            trace=trace_of_message(original.headers, original.value) if self.runtime.tracer.enabled else None,
        )
        position = Position(original.topic, original.partition, original.offset)
        at_us = microseconds(failed_at)
        entry = entry_about(
            failed.batch_id,
            at_us,
            entry_id=entry_id_of(position, at_us),
            correlation_id=failed.token.correlation_id,
            reason=f"{failed.reason}: {failed.error_message}",
            position=position,
        )
        return EncodedDeadLetter(
            message=message,
            topic=original.topic,
            reason=failed.reason,
            batch_id=failed.batch_id,
            event=failed,
            entry=entry,
        )

    @staticmethod
    def encode_unread(
        at: Position, reason: DeadLetterReason, detail: dict[str, object], failed_at: datetime
    ) -> EncodedDeadLetter:
        """The dead letter of a message whose bytes could not be read."""
        message = unread_dead_letter(at.topic, at.partition, at.offset, reason, detail, failed_at)
        return EncodedDeadLetter(message=message, topic=at.topic, reason=reason)

    @staticmethod
    def of_request(message: OutboundMessage, entry: FactsRecorded | None = None) -> EncodedDeadLetter:
        """The dead letter of a request to resolve a pipeline.

        :param entry: for the history of the batch.
        """
        return EncodedDeadLetter(message=message, topic=topics.RESOLUTION, reason=RESOLUTION_FAILED, entry=entry)

    def note_replay(self, message: ConsumedMessage, batch_id: str | None, correlation_id: str | None) -> None:
        """Have the history of a batch tell of a replay, if a message is the replayed original of a dead letter.

        :param batch_id: as the message has it; None where it has none.
        """
        replay = read_replay(message.headers) if message.headers and self.archive_client else None
        if replay is None:
            return
        at = Position(replay.dead_letter.topic, replay.dead_letter.partition, replay.dead_letter.offset)
        entry_id = replay_id_of(at, Position(message.topic, message.partition, message.offset), message.timestamp_ms)
        self._note_replay(batch_id, entry_id, correlation_id, at, replay.operator)

    def note_request_replay(self, batch_id: str, correlation_id: str, at: Position, caller: str) -> None:
        """Have the history of a batch tell that the request in a dead letter was sent again.

        :param at: the dead letter.
        """
        self._note_replay(batch_id, self.runtime.new_id(), correlation_id, at, caller)

    def _note_replay(
        self, batch_id: str | None, entry_id: UUID, correlation_id: str | None, at: Position, operator: str
    ) -> None:
        entry = replay_entry(
            batch_id,
            microseconds(self.runtime.now()),
            entry_id=entry_id,
            correlation_id=correlation_id,
            position=at,
            operator=operator,
        )
        if entry and self.archive_client:
            # If a crash loses the entry, the message is read again, unless it was finished before.
            self.archive_client.write_soon(entry)

    async def store(self, dead_letters: Sequence[EncodedDeadLetter]) -> None:
        """Store dead letters in the outbox; then count and log them.

        After a cancellation they may be stored or not. To store them again adds nothing twice.

        :raises StoreError: the outbox did not store them; they are neither counted nor logged.
        """
        erased = await self._erased_among({each.batch_id for each in dead_letters if each.batch_id is not None})
        kept = [each for each in dead_letters if each.batch_id not in erased]
        await self.outbox.append([each.message for each in kept])
        for each in dead_letters:
            if each.batch_id in erased and each.event:
                note_dropped(self.runtime, each.batch_id or "", [each.event.token])
        for each in kept:
            self.runtime.telemetry.dead_letters.labels(each.topic, each.reason).inc()
            if each.entry and self.archive_client:
                # The dead letter is durable, so its entry may wait in memory.
                self.archive_client.write_soon(each.entry)
            if each.event:
                self._count_and_log(each.event)

    async def _erased_among(self, batch_ids: Collection[str]) -> set[str]:
        erased: set[str] = set()

        async def look(batch_id: str) -> None:
            # Where the store does not answer, the message must not be lost, and the intake must not wait for it.
            with suppress(StoreError):
                if await self.is_erased(batch_id):
                    erased.add(batch_id)

        # At the same time, so that they share round trips, and one deadline where Redis does not answer.
        async with anyio.create_task_group() as tasks:
            for batch_id in batch_ids:
                tasks.start_soon(look, batch_id)
        return erased

    def _count_and_log(self, failed: FailedEvent) -> None:
        token, message = failed.token, failed.token.message
        self.runtime.telemetry.events(token.event_type, "dead_lettered").inc()
        fields = {
            "topic": message.topic,
            "partition": message.partition,
            "offset": message.offset,
            "reason": failed.reason,
            "batch_id": failed.batch_id,
            "correlation_id": token.correlation_id,
            "attempts": failed.attempts,
            "error_type": failed.error_type,
            "error_message": failed.error_message,
        }
        if failed.reason in ("processing_failed", "decoder_failed"):
            # BCS or one of its stores is at fault, not the event.
            log.error("message_dead_lettered", **fields, summed_by=("topic", "reason"))
        else:
            log.warning("message_dead_lettered", **fields, summed_by=("topic", "reason"))


def note_dropped(runtime: Runtime, batch_id: str, tokens: Sequence[DeliveryToken]) -> None:
    """Count and log messages that were dropped, because their batch was erased."""
    for token in tokens:
        runtime.telemetry.events(token.event_type, "erased").inc()
    log.warning("events_of_erased_batch_dropped", batch_id=batch_id, events=len(tokens), summed_by=("batch_id",))


def _sha256(value: bytes) -> str:
    # hashlib releases the GIL for this.
    return hashlib.sha256(value).hexdigest()
