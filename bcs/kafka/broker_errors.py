"""Classifies broker errors: about one record, or the whole topic. Adds error codes for which aiokafka has no class."""

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
    """Broker error codes to classes; an unknown code gets its own class."""

    def get(self, code: int, _: Any = None) -> type[BrokerResponseError]:
        if code not in self:
            self[code] = type(f"BrokerError{code}", (UnknownError,), {"errno": code, "message": f"ERROR_{code}"})
        return self[code]


# aiokafka 0.14 has classes for the codes up to 72, and 79. It turns every other code into an UnknownError without the
# code.
errors.kafka_errors = _EveryCode({InvalidRecordError.errno: InvalidRecordError, **errors.kafka_errors})

TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
"""One record is too large, or all records of a batch together are."""

REFUSED_FOR_GOOD = (
    *TOO_LARGE,
    InvalidRecordError,
    InvalidTimestampError,
    # Brokers before 2.4 send CORRUPT_MESSAGE where later brokers send INVALID_RECORD (KIP-467).
    CorruptRecordException,
    UnsupportedForMessageFormatError,
    PolicyViolationError,
)
"""The broker will never accept the same record, so a retry does not help."""

_OF_THE_TOPIC = (
    TopicAuthorizationFailedError,
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    InvalidRequiredAcksError,
    UnsupportedVersionError,
)


def may_be_about_one_record(error: BaseException) -> bool:
    """True if one record of the batch may be the reason for the refusal.

    The broker refuses a batch as a whole, so only a record that was sent alone is certainly the cause. A refused batch
    also leaves a gap in the sequence of an idempotent producer, and the broker refuses everything after the gap, too.
    """
    if isinstance(error, ProducerFenced):
        return True
    return isinstance(error, BrokerResponseError) and not error.retriable and not isinstance(error, _OF_THE_TOPIC)
