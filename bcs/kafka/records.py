"""The readable records of one fetched partition: an unreadable record ends only the reading of this partition."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.codec import gzip_decode, lz4_decode, snappy_decode, zstd_decode
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c, decode_varint

from bcs.supervision.errors import describe

# The header of a record batch of format 2 (Kafka's protocol guide, "Record Batch"): base offset, length, leader epoch,
# magic, CRC, attributes, last offset delta, first and last timestamp, producer's id, epoch and sequence, records.
_HEADER = struct.Struct(">qiibIhiqqqhii")
_LENGTH_END = 12  # the length field counts the bytes after this one
_CRC_FROM = 21
_MAGIC = 2
_CODEC, _LOG_APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_DECODERS: dict[int, tuple[str, Callable[[bytes], bytes]]] = {
    1: ("gzip", gzip_decode),
    2: ("snappy", snappy_decode),
    3: ("lz4", lz4_decode),
    4: ("zstd", zstd_decode),
}

Failed = Callable[[TopicPartition, int, int | None, Exception], None]
"""Gets the partition, the first unreadable offset, the last offset of its batch or None, and the error."""


class UnreadableBatch(CorruptRecordException):  # type: ignore[misc] # aiokafka has no types
    """A record batch can't be read.

    :ivar last_offset: the last offset of the batch.
    """

    def __init__(self, problem: str, last_offset: int | None = None) -> None:
        super().__init__(problem)
        self.last_offset = last_offset


class TolerantRecords(PartitionRecords):  # type: ignore[misc] # aiokafka has no types
    """The records that were fetched of one partition.

    The iteration of aiokafka's own class raises. Then the poll fails for all partitions, and the records of others that
    it had already taken are lost. This iteration ends before an unreadable record, and calls `failed`.

    A header's name can be invalid UTF-8, because brokers do not check it. Such a record is readable here: each invalid
    byte of the name becomes a lone surrogate ("surrogateescape").

    :param data: record batches; the last batch may be incomplete.
    :param aborted: the aborted transactions: the producer's id and the first offset of each.
    :param failed: called when a record is unreadable.
    """

    next_fetch_offset: int

    def __init__(
        self,
        partition: TopicPartition,
        data: bytes,
        aborted: list[tuple[int, int]] | None,
        fetch_offset: int,
        *,
        check_crcs: bool,
        isolation_level: int,
        failed: Failed,
    ) -> None:
        super().__init__(partition, MemoryRecords(data), aborted, fetch_offset, None, None, check_crcs, isolation_level)
        self._data = data
        self._scanned = 0  # all batches before this position are read
        self._failed = failed

    def __next__(self) -> ConsumerRecord:
        """The next record.

        :raises StopIteration: there is no more record, or the next record is unreadable.
        """
        try:
            try:
                return super().__next__()
            except StopIteration:
                raise
            except Exception:  # noqa: BLE001 (on bytes from outside, aiokafka's parsers raise many kinds of errors)
                # aiokafka's generator has ended with the error. Our own parser may be able to read the batch.
                self._records_iterator = self._from_here_on()
                return super().__next__()
        except StopIteration:
            raise
        except Exception as error:  # noqa: BLE001 (the same)
            self._records_iterator = iter(())
            self._failed(self._tp, self.next_fetch_offset, getattr(error, "last_offset", None), error)
            raise StopIteration from None

    def _from_here_on(self) -> Iterator[ConsumerRecord]:
        """The rest of the batch that aiokafka could not read, and the following batches."""
        while True:
            begin, end, base_offset, last_offset = self._batch_at(self.next_fetch_offset)
            for record in _records(self._tp, memoryview(self._data)[begin:end], base_offset, last_offset):
                if record.offset >= self.next_fetch_offset:
                    self.next_fetch_offset = record.offset + 1
                    yield record
            self.next_fetch_offset, self._scanned = last_offset + 1, end
            # The producer of one such batch has often written more. Returning to aiokafka after each would copy all
            # remaining bytes each time.
            if not _is_plain(self._data, end):
                break
        self._records = MemoryRecords(self._data[self._scanned :])
        yield from self._unpack_records()

    def _batch_at(self, offset: int) -> tuple[int, int, int, int]:
        """The first and the last position of the batch with an offset, and its first and last offset."""
        position = self._scanned
        while position + _HEADER.size <= len(self._data):
            base_offset, length, _, magic, _, _, last_delta, *_ = _HEADER.unpack_from(self._data, position)
            end = position + _LENGTH_END + length
            if length <= 0 or end > len(self._data):
                break
            if magic != _MAGIC:
                raise UnreadableBatch(f"a record batch of format {magic} can't be read")
            if base_offset <= offset <= base_offset + last_delta or offset < base_offset:
                return position, end, base_offset, base_offset + last_delta
            position = end
        raise UnreadableBatch("a record batch has no valid header")


def _is_plain(data: bytes, position: int) -> bool:
    """True if a complete batch outside of transactions follows, which can be read without the aborted transactions."""
    if position + _HEADER.size > len(data):
        return False
    _, length, _, magic, _, attributes, *_ = _HEADER.unpack_from(data, position)
    whole = 0 < length <= len(data) - position - _LENGTH_END
    return whole and magic == _MAGIC and not attributes & (_CONTROL | _TRANSACTIONAL)


def _records(
    partition: TopicPartition, batch: memoryview, base_offset: int, last_offset: int
) -> Iterator[ConsumerRecord]:
    """The records of a batch, also with header names that are not UTF-8.

    :raises UnreadableBatch: the batch can't be read.
    """
    _, _, _, _, crc, attributes, _, first_ms, last_ms, _, _, _, count = _HEADER.unpack_from(batch)
    if calc_crc32c(bytes(batch[_CRC_FROM:])) != crc:
        raise UnreadableBatch("the checksum (CRC) of a record batch is wrong", last_offset)
    if attributes & _CONTROL:
        raise UnreadableBatch("a transaction marker can't be read", last_offset)
    append_ms = last_ms if attributes & _LOG_APPEND_TIME else None
    try:
        payload = _decompressed(bytes(batch[_HEADER.size :]), attributes & _CODEC)
        position = 0
        for _ in range(count):
            record, position = _record(partition, payload, position, base_offset, first_ms, append_ms)
            yield record
        if position != len(payload):
            raise ValueError("a record batch has more bytes than its records")
    except UnsupportedCodecError as error:
        raise UnreadableBatch(str(error), last_offset) from error
    except Exception as error:  # each codec fails with errors of its own
        raise UnreadableBatch(f"a record batch is corrupt: {describe(error)}", last_offset) from error


def _decompressed(payload: bytes, codec: int) -> bytes:
    if not codec:
        return payload
    if codec not in _DECODERS:
        raise UnsupportedCodecError(f"the compression codec {codec} is unknown")
    name, decode = _DECODERS[codec]
    try:
        return decode(payload)
    except NotImplementedError:
        raise UnsupportedCodecError(f"the package for the compression codec {name} is not installed") from None


def _record(
    partition: TopicPartition,
    payload: bytes,
    position: int,
    base_offset: int,
    first_ms: int,
    append_ms: int | None,
) -> tuple[ConsumerRecord, int]:
    """A record, and the position of the next record (Kafka's protocol guide, "Record")."""
    buffer: Any = payload
    length, position = decode_varint(buffer, position)
    end = position + length
    _attributes, position = decode_varint(buffer, position)
    delta_ms, position = decode_varint(buffer, position)
    offset_delta, position = decode_varint(buffer, position)
    key, position = _bytes(payload, position)
    value, position = _bytes(payload, position)
    header_count, position = decode_varint(buffer, position)
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(header_count):
        name, position = _bytes(payload, position)
        header, position = _bytes(payload, position)
        headers.append(((name or b"").decode(errors="surrogateescape"), header))
    if position != end:
        raise ValueError(f"a record of {length} bytes takes {length + position - end}")
    record = ConsumerRecord(
        partition.topic,
        partition.partition,
        base_offset + offset_delta,
        first_ms + delta_ms if append_ms is None else append_ms,
        0 if append_ms is None else 1,
        key,
        value,
        None,
        -1 if key is None else len(key),
        -1 if value is None else len(value),
        tuple(headers),
    )
    return record, end


def _bytes(payload: bytes, position: int) -> tuple[bytes | None, int]:
    length, position = decode_varint(payload, position)
    if length < 0:
        return None, position
    if position + length > len(payload):
        raise ValueError("a record is longer than its batch")
    return payload[position : position + length], position + length
