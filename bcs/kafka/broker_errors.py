"""What an error of the broker is about, one record or the whole topic; and the codes that aiokafka has no class for."""

from __future__ import annotations

from typing import Any

from aiokafka import errors
from aiokafka.errors import (
    BrokerResponseError,
    ClusterAuthorizationFailedError,
    CorruptRecordException,
    InvalidRequiredAcksError,
    InvalidTimestampError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    ProducerFenced,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownError,
    UnsupportedForMessageFormatError,
    UnsupportedVersionError,
)


class InvalidRecordError(BrokerResponseError):  # type: ignore[misc] # aiokafka has no types
    """The broker's rules for the topic refuse a record, such as one without a key on a compacted topic."""

    errno = 87
    message = "INVALID_RECORD"
    description = "The broker refused a record of the batch."


class _EveryCode(dict[int, type[BrokerResponseError]]):
    """Broker error codes to classes; a code that is not known gets a class of its own."""

    def get(self, code: int, _: Any = None) -> type[BrokerResponseError]:
        if code not in self:
            self[code] = type(f"BrokerError{code}", (UnknownError,), {"errno": code, "message": f"ERROR_{code}"})
        return self[code]


# aiokafka 0.14 knows the codes up to 72, and 79. It makes an UnknownError of every other code, and forgets the code.
errors.kafka_errors = _EveryCode({InvalidRecordError.errno: InvalidRecordError, **errors.kafka_errors})

TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
"""A record is too large, or all records of a batch together."""

REFUSED_FOR_GOOD = (
    *TOO_LARGE,
    InvalidRecordError,
    InvalidTimestampError,
    # Brokers before 2.4 say CORRUPT_MESSAGE where later ones say INVALID_RECORD (KIP-467).
    CorruptRecordException,
    UnsupportedForMessageFormatError,
    PolicyViolationError,
)
"""To send the same record again will not help."""

_OF_THE_TOPIC = (
    TopicAuthorizationFailedError,
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    InvalidRequiredAcksError,
    UnsupportedVersionError,
)


def may_be_about_one_record(error: BaseException) -> bool:
    """True where the batch was refused because of one of its records, or may have been.

    The broker refuses a batch as a whole, so only a record that was sent alone is known to be the cause. A refused
    batch also leaves a gap in the sequence of an idempotent producer, and what comes behind the gap is refused, too.
    """
    if isinstance(error, ProducerFenced):
        return True
    return isinstance(error, BrokerResponseError) and not error.retriable and not isinstance(error, _OF_THE_TOPIC)
