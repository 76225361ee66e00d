"""What was dead, as it came: put back where it came from, or asked again."""

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
from bcs.http.requests import FAILURES_SAID, FIRST_FAILURE_SAID, LETTER_WRITTEN
from bcs.kafka.broker_errors import TOO_LARGE
from bcs.kafka.causes import cause_of
from bcs.ops.dlq.reading import DeadLetterReader
from bcs.wire.dead_letters.decode import DeadLetter
from bcs.wire.dead_letters.encode import (
    FAILURES,
    FIRST_FAILURE,
    ORIGINAL_TIMESTAMP,
    REPLAYED_FROM,
    original_headers,
    original_time_ms,
)
from bcs.wire.published import Headers

_DEFINE = "/internal/v1/pipelines/define"


@dataclass(frozen=True, slots=True)
class Original:
    """A message as it came.

    :param timestamp_ms: Kafka's time of it; None where it had none.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int | None


async def original_of(dead_letter: DeadLetter, source: DeadLetterReader) -> Original:
    """The original of a letter, from where it lay if the letter has only its beginning, or nothing of it.

    :raises OriginalGone: it no longer lies there, or can't be read there.
    """
    if not dead_letter.truncated:
        return Original(dead_letter.key, dead_letter.value, dead_letter.headers, dead_letter.source_timestamp_ms)
    where = f"{dead_letter.source_topic}/{dead_letter.source_partition}/{dead_letter.source_offset}"
    has = "nothing of its original" if dead_letter.unread else "only the beginning of its original"
    if dead_letter.source_partition is None or dead_letter.source_offset is None:
        raise OriginalGone(str(dead_letter.position), f"the letter has {has}, and does not say where it lay")
    try:
        record = await source.record_at(
            dead_letter.source_topic, dead_letter.source_partition, dead_letter.source_offset
        )
    except PartitionStalled as error:
        problem = f"the letter has {has}, and {where} can't be read: {error.cause}"
        raise OriginalGone(str(dead_letter.position), problem) from error
    if record is None:
        raise OriginalGone(str(dead_letter.position), f"the letter has {has}, and {where} no longer exists (retention)")
    own_headers = original_headers(record.headers)
    if dead_letter.unread:
        written_at_ms = original_time_ms(record.headers)
        return Original(
            record.key, record.value, own_headers, record.timestamp if written_at_ms is None else written_at_ms
        )
    digest = None if record.value is None else hashlib.sha256(record.value).hexdigest()
    if digest != dead_letter.value_sha256:
        raise OriginalGone(str(dead_letter.position), f"what lies at {where} now is another message")
    return Original(record.key, record.value, own_headers, dead_letter.source_timestamp_ms)


async def republish(
    producer: AIOKafkaProducer, dead_letter: DeadLetter, original: Original, *, as_new: bool = False
) -> asyncio.Future[object]:
    """Hand an original to the producer, for the partition where it lay, with the time that it had.

    Its time can be what orders it among other facts, so it must not become a newer one. Should it fail again, its new
    letter goes on counting.

    :param as_new: Kafka's time of it is now, for a topic that refuses old ones. A header has the original's time.
    :returns: the acknowledgement to come; of an original that is too large for the producer, one that failed.
    :raises ReplayFailed: it was not taken.
    """
    headers = [
        *original.headers,
        (FAILURES, str(dead_letter.failures).encode()),
        (FIRST_FAILURE, dead_letter.first_failure.encode()),
        (REPLAYED_FROM, str(dead_letter.position).encode()),
    ]
    topic, partition, time_ms = dead_letter.source_topic, dead_letter.source_partition, original.timestamp_ms
    if time_ms is not None and time_ms >= 0:
        # A topic with LogAppendTime stamps it anew.
        headers.append((ORIGINAL_TIMESTAMP, str(time_ms).encode()))
    if as_new:
        time_ms = None
    try:
        known = await producer.partitions_for(topic)
        if partition not in known:
            partition = None  # there are fewer now
        if original.key is None and original.value is None:
            # aiokafka refuses to send() what Kafka and its own batches take: a message with neither key nor value.
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


async def republish_alone(producer: AIOKafkaProducer, dead_letter: DeadLetter, original: Original) -> None:
    """Put back an original in a batch of its own, and wait for the acknowledgement.

    :param producer: is not idempotent, or what was refused would leave it out of step.
    :raises ReplayFailed: it was not taken.
    :raises KafkaError: the broker refuses it, or gives no answer.
    """
    try:
        await (await republish(producer, dead_letter, original))
    except InvalidTimestampError:
        await (await republish(producer, dead_letter, original, as_new=True))


async def resolve_again(session: aiohttp.ClientSession, url: str, dead_letter: DeadLetter, original: Original) -> None:
    """Have the running service resolve a request once more that it could not.

    It is told how often that failed before. If it fails again the service writes a letter that goes on counting, and
    says so; then this one has done its duty, as one has whose message fails again after it was put back.

    :raises ReplayFailed: nobody resolved it, nor wrote a letter.
    """
    headers = {
        "Content-Type": "application/json",
        FAILURES_SAID: str(dead_letter.failures),
        FIRST_FAILURE_SAID: dead_letter.first_failure,
    }
    where = str(dead_letter.position)
    try:
        # Redirected, it would be asked of somebody else.
        async with session.post(
            f"{url.rstrip('/')}{_DEFINE}", data=original.value, headers=headers, allow_redirects=False
        ) as response:
            body = await response.read()
            if response.headers.get(LETTER_WRITTEN) or (response.status == HTTPStatus.OK and _is_answer(body)):
                return
            said = body[:300].decode(errors="replace").strip()
            raise ReplayFailed(where, f"{url} answered {response.status}: {said}")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ReplayFailed(where, f"{url}: {type(error).__name__}: {error}") from error


def _is_answer(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body)["final_pipeline"], list)
    except (ValueError, LookupError, TypeError):
        return False
