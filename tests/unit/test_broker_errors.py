"""Which errors of the broker may be about one record, and codes that aiokafka itself does not know."""

from __future__ import annotations

import pytest
from aiokafka.errors import (
    InvalidTimestampError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    TopicAuthorizationFailedError,
    UnknownError,
    UnknownTopicOrPartitionError,
    for_code,
)

from bcs.kafka.broker_errors import REFUSED_FOR_GOOD, InvalidRecordError, may_be_about_one_record


def test_a_code_that_aiokafka_does_not_know_is_kept() -> None:
    unknown = for_code(12_345)
    assert (unknown.errno, unknown().retriable) == (12_345, False)
    assert "12345" in str(unknown())
    assert unknown is for_code(12_345)
    assert for_code(87) is InvalidRecordError
    assert for_code(-1) is UnknownError
    assert for_code(3) is UnknownTopicOrPartitionError


@pytest.mark.parametrize(
    ("error", "about_one", "for_good"),
    [
        (InvalidRecordError(), True, True),
        (InvalidTimestampError(), True, True),
        (MessageSizeTooLargeError(), True, True),
        (UnknownError(), True, False),
        (for_code(12_345)(), True, False),
        # The batch before was refused, and this one lies behind the gap in the sequence.
        (OutOfOrderSequenceNumber(), True, False),
        (ProducerFenced(), True, False),
        (TopicAuthorizationFailedError(), False, False),
        (UnknownTopicOrPartitionError(), False, False),
        (NotLeaderForPartitionError(), False, False),
        (KafkaTimeoutError(), False, False),
        (TimeoutError(), False, False),
    ],
)
def test_a_refusal_is_told_from_trouble_with_the_topic(error: Exception, about_one: bool, for_good: bool) -> None:
    assert may_be_about_one_record(error) is about_one
    assert isinstance(error, REFUSED_FOR_GOOD) is for_good
