"""A stall is over as soon as the partition is to be read from another offset than the one that can't be read."""

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from bcs.kafka.isolation import Stall, _is_over

KEY = TopicPartition("topic", 0)
UNREADABLE = Stall(offset=20, last_offset=None, cause="the checksum is wrong", lasting=True, tries=1, retry_at=0.0)
REFUSED = Stall(offset=None, last_offset=None, cause="the broker refuses", lasting=True, tries=1, retry_at=0.0)


def assignment(position: int | None) -> Any:
    state = SimpleNamespace(has_valid_position=position is not None, position=position)
    return SimpleNamespace(tps={KEY}, state_value=lambda _: state)


@pytest.mark.parametrize(
    ("stall", "position", "over"),
    [
        (UNREADABLE, 20, False),
        (UNREADABLE, 21, True),  # passed over, or read after all
        (UNREADABLE, None, True),  # a rebalance: where the partition begins is still to be asked
        (UNREADABLE, 10, True),  # a rebalance: what was not committed is read again first
        (REFUSED, None, False),
        (REFUSED, 5, False),
    ],
)
def test_a_stall_holds_for_one_position(stall: Stall, position: int | None, over: bool) -> None:
    assert _is_over(stall, KEY, assignment(position)) is over


def test_a_stall_of_a_partition_that_was_taken_away_is_over() -> None:
    assert _is_over(UNREADABLE, TopicPartition("topic", 1), assignment(20))
