"""Record batches as bytes, for what no client can be made to produce: any header names, any codec, a wrong checksum."""

import gzip
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import NoError, NotLeaderForPartitionError, for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c, encode_varint

from tests.support.waiting import wait_until

GZIP = 1
_ATTRIBUTES_AT, _PAYLOAD_AT = 21, 61
_ATTRIBUTES_AND_MORE = struct.Struct(">hiqqqhii")
_BEFORE_ATTRIBUTES = struct.Struct(">qiibI")


@dataclass(frozen=True)
class RawRecord:
    """A record before it is encoded."""

    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[bytes, bytes | None], ...] = ()


def record_batch(records: Sequence[RawRecord], *, base_offset: int = 0, codec: int = 0, at_ms: int = 1000) -> bytes:
    """A batch of format 2, with the checksum that belongs to it.

    :param codec: the number of the codec that the batch names; only `GZIP` is also carried out.
    """
    payload = b"".join(_encoded(number, record) for number, record in enumerate(records))
    if codec == GZIP:
        payload = gzip.compress(payload)
    last = len(records) - 1
    rest = _ATTRIBUTES_AND_MORE.pack(codec, last, at_ms, at_ms, -1, -1, -1, len(records)) + payload
    return _BEFORE_ATTRIBUTES.pack(base_offset, len(rest) + 9, 0, 2, calc_crc32c(rest)) + rest


def with_attributes(batch: bytes, attributes: int) -> bytes:
    """The same batch with other attributes, and the checksum that belongs to it."""
    rest = struct.pack(">h", attributes) + batch[_ATTRIBUTES_AT + 2 :]
    return batch[: _ATTRIBUTES_AT - 4] + struct.pack(">I", calc_crc32c(rest)) + rest


def damaged(batch: bytes) -> bytes:
    """The same batch with a wrong checksum."""
    return batch[:-1] + bytes([batch[-1] ^ 0xFF])


def _encoded(number: int, record: RawRecord) -> bytes:
    body = bytearray(1)  # attributes
    write = body.append
    encode_varint(0, write)  # the time after the batch's first
    encode_varint(number, write)
    _add(body, record.key)
    _add(body, record.value)
    encode_varint(len(record.headers), write)
    for name, value in record.headers:
        _add(body, name)
        _add(body, value)
    length = bytearray()
    encode_varint(len(body), length.append)
    return bytes(length + body)


def _add(body: bytearray, part: bytes | None) -> None:
    encode_varint(-1 if part is None else len(part), body.append)
    body += part or b""


async def send_batch(bootstrap_servers: str, topic: str, partition: int, batch: bytes) -> None:
    """Have a broker append a batch as it is."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers)
    await producer.start()
    try:
        # A topic that is new may refuse the first tries.
        await wait_until(partial(_is_taken, producer, topic, partition, batch), ignoring=(NotLeaderForPartitionError,))
    finally:
        await producer.stop()


async def _is_taken(producer: AIOKafkaProducer, topic: str, partition: int, batch: bytes) -> bool:
    await producer.partitions_for(topic)
    leader = producer.client.cluster.leader_for_partition(TopicPartition(topic, partition))
    response = await producer.client.send(leader, ProduceRequest(None, -1, 10_000, [(topic, [(partition, batch)])]))
    for _, partitions in response.topics:
        for _, code, *_ in partitions:
            if code != NoError.errno:
                raise for_code(code)
    return True


@contextmanager
def damaged_on_disk(log: Path, value: bytes) -> Iterator[None]:
    """A byte of a value is another one in a partition's log file while the block lasts, as if the disk failed."""
    at = log.read_bytes().index(value)
    _flip(log, at)
    try:
        yield
    finally:
        _flip(log, at)


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))
