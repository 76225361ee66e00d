"""Which dead letters of a batch Kafka can delete without those of other batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from bcs.ops.dlq.erasing import dead_letters_to_erase
from bcs.ops.dlq.reading import DeadLetterIndex
from bcs.wire import topics
from bcs.wire.dead_letters.decode import ERASED_HEADER, DeadLetterPosition, replay_marker_key
from bcs.wire.dead_letters.encode import BATCH_ID
from tests.integration.test_command_dlq import letter

TOPIC = topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED)
OURS, OTHERS = "batch_conductor_service", "another_service"


def record(offset: int, batch: str, service: str = OURS, partition: int = 0, **fields: object) -> Any:
    usual = {
        "topic": TOPIC,
        "partition": partition,
        "offset": offset,
        "timestamp": 1,
        "key": batch.encode(),
        "value": letter(service),
        "headers": ((BATCH_ID, batch.encode()),),
    }
    return SimpleNamespace(**{**usual, **fields})


def index_of(*records: Any) -> DeadLetterIndex:
    index = DeadLetterIndex()
    for each in records:
        index.take(each)
    return index


def at(offset: int, partition: int = 0) -> DeadLetterPosition:
    return DeadLetterPosition(TOPIC, partition, offset)


def test_letters_before_those_of_others_can_be_deleted() -> None:
    marker = record(2, "", key=replay_marker_key(at(0)), value=None, headers=())
    found = dead_letters_to_erase(
        index_of(
            record(0, "b"), record(1, "b"), marker, record(3, "other"), record(4, "b"), record(0, "b", partition=1)
        ),
        "b",
    )
    assert found.ours == (at(0), at(1), at(4), at(0, 1))
    assert found.last == {(TOPIC, 0): 1, (TOPIC, 1): 0}
    assert found.before == {(TOPIC, 0): at(3)}
    assert found.keyed == set(found.ours)


def test_nothing_is_deleted_behind_what_may_be_of_another_batch() -> None:
    junk = record(0, "b", value=b"\xff")
    assert dead_letters_to_erase(index_of(junk, record(1, "b")), "b").last == {}
    found = dead_letters_to_erase(index_of(record(0, "b", OTHERS), record(1, "b")), "b")
    assert (found.ours, found.of_others, found.last) == ((at(1),), (at(0),), {})


def test_what_a_tombstone_erases_is_no_dead_letter_any_more() -> None:
    tombstone = record(3, "b", value=None, headers=((ERASED_HEADER, b""),))
    index = index_of(record(0, "b"), record(1, "other"), record(0, "b", partition=1), tombstone, record(4, "b"))
    assert set(index.dead_letters) == {at(1), at(0, 1), at(4)}
    assert not index.unreadable
