"""The originals of dead letters: republished to their topics, or requested again from the service."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp
from aiokafka import AIOKafkaProducer
from aiokafka.errors import InvalidTimestampError, KafkaError

from bcs.errors import OriginalGone, PartitionStalled, ReplayFailed
from bcs.http.requests import DEAD_LETTER_WRITTEN, FAILURES_HEADER, FIRST_FAILURE_HEADER, REPLAYED_FROM_HEADER
from bcs.kafka.broker_errors import TOO_LARGE
from bcs.kafka.causes import cause_of
from bcs.ops.dlq.reading import DeadLetterReader
from bcs.ops.operators import user_agent
from bcs.supervision.errors import describe
from bcs.wire.dead_letters.decode import DeadLetter
from bcs.wire.dead_letters.encode import (
    FAILURES,
    FIRST_FAILURE,
    ORIGINAL_TIMESTAMP,
    REPLAYED_BY,
    REPLAYED_FROM,
    original_headers,
    original_time_ms,
)
from bcs.wire.published import Headers
from bcs.wire.tracing import TraceContext

_DEFINE = "/internal/v1/pipelines/define"


@dataclass(frozen=True, slots=True)
class Original:
    """The original message of a dead letter.

    :param timestamp_ms: the time of the Kafka record; None if the record had none.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int | None


async def original_of(dead_letter: DeadLetter, source: DeadLetterReader) -> Original:
    """The original of a dead letter.

    If the dead letter does not contain the whole original, the original is read from its source topic.

    :raises OriginalGone: the original is no longer in its source topic, or can't be read there.
    """
    if not dead_letter.truncated:
        return Original(dead_letter.key, dead_letter.value, dead_letter.headers, dead_letter.source_timestamp_ms)
    where = f"{dead_letter.source_topic}/{dead_letter.source_partition}/{dead_letter.source_offset}"
    has = "nothing of its original" if dead_letter.unread else "only the beginning of its original"
    if dead_letter.source_partition is None or dead_letter.source_offset is None:
        raise OriginalGone(str(dead_letter.position), f"the dead letter has {has}, and does not have its position")
    try:
        record = await source.record_at(
            dead_letter.source_topic, dead_letter.source_partition, dead_letter.source_offset
        )
    except PartitionStalled as error:
        problem = f"the dead letter has {has}, and {where} can't be read: {error.cause}"
        raise OriginalGone(str(dead_letter.position), problem) from error
    if record is None:
        raise OriginalGone(
            str(dead_letter.position), f"the dead letter has {has}, and {where} no longer exists (retention)"
        )
    own_headers = original_headers(record.headers)
    if dead_letter.unread:
        written_at_ms = original_time_ms(record.headers)
        return Original(
            record.key, record.value, own_headers, record.timestamp if written_at_ms is None else written_at_ms
        )
    digest = None if record.value is None else hashlib.sha256(record.value).hexdigest()
    if digest != dead_letter.value_sha256:
        raise OriginalGone(str(dead_letter.position), f"there is another message at {where} now")
    return Original(record.key, record.value, own_headers, dead_letter.source_timestamp_ms)


async def republish(
    producer: AIOKafkaProducer, dead_letter: DeadLetter, original: Original, *, by: str, as_new: bool = False
) -> asyncio.Future[object]:
    """Give an original to the producer, for its source partition and with its own time.

    The time may order the original among other facts, so the time must not change. If the original fails again, the new
    dead letter continues the count of failures.

    :param by: who replays.
    :param as_new: the Kafka record gets the present time, for a topic that refuses old times. A header has the time of
        the original.
    :returns: the future acknowledgement. If the original is too large for the producer, this future has failed.
    :raises ReplayFailed: the producer did not accept the original.
    """
    headers = [
        *original.headers,
        (FAILURES, str(dead_letter.failures).encode()),
        (FIRST_FAILURE, dead_letter.first_failure.encode()),
        (REPLAYED_FROM, str(dead_letter.position).encode()),
        (REPLAYED_BY, by.encode(errors="replace")),
    ]
    topic, partition, time_ms = dead_letter.source_topic, dead_letter.source_partition, original.timestamp_ms
    if time_ms is not None and time_ms >= 0:
        # A topic with LogAppendTime replaces the time of the record.
        headers.append((ORIGINAL_TIMESTAMP, str(time_ms).encode()))
    if as_new:
        time_ms = None
    try:
        known = await producer.partitions_for(topic)
        if partition not in known:
            partition = None  # the topic has fewer partitions now
        if original.key is None and original.value is None:
            # aiokafka's send() refuses a message without key and value, although Kafka and aiokafka's batches accept
            # such messages.
            batch = producer.create_batch()
            batch.append(timestamp=time_ms, key=None, value=None, headers=headers)
            sending = producer.send_batch(batch, topic, partition=min(known) if partition is None else partition)
        else:
            sending = producer.send(topic, original.value, original.key, partition, time_ms, headers)
        acknowledgement: asyncio.Future[object] = await sending
    except TOO_LARGE as error:
        acknowledgement = asyncio.get_running_loop().create_future()
        acknowledgement.set_exception(error)
    except (KafkaError, OSError) as error:
        raise ReplayFailed(str(dead_letter.position), cause_of(error)) from error
    return acknowledgement


async def republish_alone(producer: AIOKafkaProducer, dead_letter: DeadLetter, original: Original, *, by: str) -> None:
    """Republish an original in a batch of its own, and wait for the acknowledgement.

    :param producer: must not be idempotent, because a refusal would break the sequence of an idempotent producer.
    :raises ReplayFailed: the producer did not accept the original.
    :raises KafkaError: the broker refuses the original, or does not answer.
    """
    try:
        await (await republish(producer, dead_letter, original, by=by))
    except InvalidTimestampError:
        await (await republish(producer, dead_letter, original, by=by, as_new=True))


async def resolve_again(
    session: aiohttp.ClientSession, url: str, dead_letter: DeadLetter, original: Original, trace: TraceContext | None
) -> None:
    """Send a failed resolution to the running service again.

    The headers contain the number of earlier failures. If the resolution fails again, the service writes a new dead
    letter that continues the count, and sets a header in its response. Then this dead letter counts as replayed, like
    the dead letter of a republished message that fails again.

    :param trace: the context of the replay.
    :raises ReplayFailed: the service did not resolve the request, and did not write a dead letter.
    """
    headers = {
        "Content-Type": "application/json",
        FAILURES_HEADER: str(dead_letter.failures),
        FIRST_FAILURE_HEADER: dead_letter.first_failure,
        REPLAYED_FROM_HEADER: str(dead_letter.position),
        "User-Agent": user_agent(),
        **(trace.fields if trace else {}),
    }
    where = str(dead_letter.position)
    try:
        # A redirect would send the request to another service.
        async with session.post(
            f"{url.rstrip('/')}{_DEFINE}", data=original.value, headers=headers, allow_redirects=False
        ) as response:
            body = await response.read()
            if response.headers.get(DEAD_LETTER_WRITTEN) or (response.status == HTTPStatus.OK and _is_answer(body)):
                return
            answered = body[:300].decode(errors="replace").strip()
            raise ReplayFailed(where, f"{url} answered {response.status}: {answered}")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ReplayFailed(where, f"{url}: {describe(error)}") from error


def _is_answer(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body)["final_pipeline"], list)
    except (ValueError, LookupError, TypeError):
        return False
