"""The readable records of a fetch are read, and unreadable ones are reported."""

import gzip
from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from bcs.kafka.records import TolerantRecords
from tests.support.record_batches import GZIP, RawRecord, damaged, record_batch, with_attributes

PARTITION = TopicPartition("topic", 3)
BAD_NAME = b"\xff\xfe"
CONTROL = 0x20


def read(data: bytes, fetch_offset: int = 0) -> tuple[list[ConsumerRecord], list[tuple[Any, ...]], int]:
    """The records, the failures, and the position behind both."""
    failures: list[tuple[Any, ...]] = []

    def failed(partition: TopicPartition, offset: int, last_offset: int | None, error: Exception) -> None:
        failures.append((partition, offset, last_offset, str(error)))

    records = TolerantRecords(PARTITION, data, None, fetch_offset, check_crcs=True, isolation_level=1, failed=failed)
    return list(records), failures, records.next_fetch_offset


def batch(first: int, *values: bytes, **options: Any) -> bytes:
    return record_batch([RawRecord(value) for value in values], base_offset=first, **options)


@pytest.mark.parametrize("codec", [0, GZIP])
def test_a_record_whose_header_name_is_no_utf8_is_read_with_its_bytes(codec: int) -> None:
    bad = RawRecord(b"value", b"key", ((b"good", b"1"), (BAD_NAME, None)))
    middle = record_batch([RawRecord(b"b"), bad, RawRecord(b"d")], base_offset=1, codec=codec, at_ms=77)
    records, failures, position = read(batch(0, b"a") + middle + batch(4, b"e"))
    assert failures == []
    assert position == 5
    assert [(record.offset, record.value) for record in records] == list(enumerate([b"a", b"b", b"value", b"d", b"e"]))
    assert (records[2].key, records[2].timestamp, records[2].partition) == (b"key", 77, 3)
    assert [(name.encode(errors="surrogateescape"), value) for name, value in records[2].headers] == list(bad.headers)


def test_two_batches_with_such_a_record_are_both_read() -> None:
    bad = [RawRecord(b"v", None, ((BAD_NAME, b""),))] * 2
    records, failures, _ = read(record_batch(bad) + record_batch(bad, base_offset=2) + batch(4, b"e"))
    assert ([record.offset for record in records], failures) == ([0, 1, 2, 3, 4], [])


def test_reading_in_the_middle_of_such_a_batch_gives_nothing_twice() -> None:
    bad = [RawRecord(b"%d" % number, None, ((BAD_NAME, b""),)) for number in range(4)]
    records, failures, _ = read(record_batch(bad), fetch_offset=2)
    assert ([record.offset for record in records], failures) == ([2, 3], [])


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (damaged(batch(1, b"b", b"c")), "checksum"),
        (with_attributes(batch(1, b"b", b"c"), 5), "codec 5"),
        (with_attributes(batch(1, b"b", b"c"), GZIP), "corrupt"),
        (with_attributes(batch(1, b"b", b"c"), 4), "corrupt"),  # no zstd
        (with_attributes(batch(1, b"b", b"c"), CONTROL), "marker"),
    ],
)
def test_reading_ends_in_front_of_a_batch_that_cannot_be_read(broken: bytes, problem: str) -> None:
    records, failures, position = read(batch(0, b"a") + broken + batch(3, b"d"))
    assert [record.value for record in records] == [b"a"]
    [(partition, offset, last_offset, said)] = failures
    assert (partition, offset, last_offset) == (PARTITION, 1, 2)
    assert problem in said
    assert position == 1, "it is to be read again"


def test_a_batch_of_an_old_format_that_is_damaged_is_named() -> None:
    old = bytearray(batch(0, b"a"))
    old[16] = 1  # the format
    records, [(_, offset, last_offset, problem)], position = read(bytes(old))
    assert (records, offset, last_offset, position) == ([], 0, None, 0)
    assert problem


@given(st.binary(max_size=400), st.integers(0, 60))
def test_no_bytes_make_it_raise(junk: bytes, at: int) -> None:
    good = batch(0, b"a", b"b") + record_batch([RawRecord(b"v", None, ((BAD_NAME, b""),))], base_offset=2)
    for data in (junk, good + junk, good[:at] + junk + good[at + len(junk) :]):
        records, failures, position = read(data)
        assert [record.offset for record in records] == sorted({record.offset for record in records})
        assert position >= 0
        assert len(failures) <= 1


@given(st.binary(max_size=200))
def test_no_compressed_bytes_make_it_raise(junk: bytes) -> None:
    for codec in range(1, 8):
        payload = gzip.compress(junk) if codec == GZIP else junk
        whole = record_batch([RawRecord(b"a")])
        data = with_attributes(whole[:61] + payload, codec)
        read(data[:8] + (len(data) - 12).to_bytes(4, "big") + data[12:])


def test_many_batches_with_such_records_are_read_in_one_pass() -> None:
    bad = RawRecord(b"v", None, ((BAD_NAME, b""),))
    data = b"".join(record_batch([bad], base_offset=number) for number in range(300))
    records = TolerantRecords(PARTITION, data, None, 0, check_crcs=True, isolation_level=1, failed=lambda *_: None)
    looked_at: list[int] = []
    batch_at = records._batch_at

    def counted(offset: int) -> tuple[int, int, int, int]:
        looked_at.append(records._scanned)
        return batch_at(offset)

    records._batch_at = counted  # type: ignore[method-assign]
    assert [record.offset for record in records] == list(range(300))
    assert looked_at == sorted(looked_at)
    assert len(looked_at) == len(set(looked_at)) == 300, "each search begins behind the one before"
