"""Entries of the history about dead letters and their replays: they have no facts."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, TypeGuard
from uuid import UUID

from bcs.domain.history import FactsRecorded, Position

DEAD_LETTERED: Final = "DeadLettered"
"""The event type of the entries about messages and requests that became dead letters."""

REPLAYED: Final = "DeadLetterReplayed"
"""The event type of the entries about dead letters that an operator replayed."""

_MOST_CHARACTERS = 500
_LONGEST_ID = 255


def entry_about(
    batch_id: str | None,
    at_us: int,
    *,
    entry_id: UUID,
    correlation_id: str | None,
    reason: str,
    position: Position | None = None,
    asked_by: str | None = None,
) -> FactsRecorded | None:
    """The entry about a dead letter; None where no batch has it.

    :param batch_id: as the message had it, which may be invalid.
    :param reason: why it is a dead letter, in the words of the dead letter.
    :param position: the message in Kafka; None for a request.
    :param asked_by: the caller of a request.
    """
    if not _is_batch_id(batch_id):
        return None
    return FactsRecorded(
        entry_id,
        batch_id,
        at_us,
        facts=(),
        event_type=DEAD_LETTERED,
        correlation_id=correlation_id,
        position=position,
        asked_by=asked_by,
        reason=reason[:_MOST_CHARACTERS].encode(errors="replace").decode(),
    )


def replay_entry(
    batch_id: str | None,
    at_us: int,
    *,
    entry_id: UUID,
    correlation_id: str | None,
    position: Position,
    operator: str,
) -> FactsRecorded | None:
    """The entry about the replay of a dead letter; None where no batch has it.

    :param batch_id: as the message had it, which may be invalid.
    :param position: the dead letter in Kafka.
    """
    if not _is_batch_id(batch_id):
        return None
    return FactsRecorded(
        entry_id,
        batch_id,
        at_us,
        facts=(),
        event_type=REPLAYED,
        correlation_id=correlation_id,
        position=position,
        asked_by=operator.encode(errors="replace").decode(),
    )


def replay_id_of(position: Position, message: Position, timestamp_ms: int) -> UUID:
    """The same each time the same replayed message is read.

    :param position: the dead letter.
    :param message: the replayed message.
    :param timestamp_ms: that of the message.
    """
    places = "\0".join(f"{at.topic}\0{at.partition}\0{at.offset}" for at in (position, message))
    return UUID(bytes=blake2b(f"replay\0{places}\0{timestamp_ms}".encode(), digest_size=16).digest())


def entry_id_of(position: Position, at_us: int) -> UUID:
    """The same each time the same dead letter is stored.

    :param at_us: the time of the failure.
    """
    name = f"dead letter\0{position.topic}\0{position.partition}\0{position.offset}\0{at_us}".encode()
    return UUID(bytes=blake2b(name, digest_size=16).digest())


def _is_batch_id(batch_id: str | None) -> TypeGuard[str]:
    if batch_id is None or not 1 <= len(batch_id) <= _LONGEST_ID:
        return False
    try:
        batch_id.encode()
    except UnicodeEncodeError:
        return False
    return True
