"""Replays dead letters: republishes an original, waits for the acknowledgement, then writes a replay marker.

The marker is in the same partition as the dead letter, so both exist equally long. A stop at any point loses nothing.
If the process is killed, at most one group is published and not marked. The next run publishes this group again, which
changes nothing, because facts merge. An orderly stop first writes the markers of all acknowledged originals.

The broker accepts or refuses a batch as a whole. The originals of a refused batch are republished again, each one
alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import anyio
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, KafkaTimeoutError

from bcs.actors.spans import BATCH_ID, KAFKA
from bcs.config.settings import Settings
from bcs.errors import DeadLetterError, KafkaUnavailable, ReplayFailed
from bcs.kafka.broker_errors import may_be_about_one_record
from bcs.kafka.causes import cause_of, start
from bcs.kafka.clients import KafkaClients
from bcs.observability.tracing import NO_TRACER, Span, SpanDescription, SpanKind, Tracer
from bcs.ops.dlq.originals import Original, original_of, republish, republish_alone
from bcs.ops.dlq.reading import DeadLetterReader, dead_letter_of, kafka_answers, position_of
from bcs.wire.dead_letters.decode import DeadLetter, DeadLetterPosition, replay_marker_key
from bcs.wire.dead_letters.encode import TRACE
from bcs.wire.tracing import TraceContext, trace_in

_GROUP = 100
_GROUP_BYTES = 4 * 1024 * 1024
_NO_LIMIT_BYTES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Replayed:
    """The result for a dead letter.

    :param problem: the reason why the replay failed; None if the dead letter was replayed.
    :param away: True if Kafka did not answer, so the next dead letter would fail too.
    """

    dead_letter: DeadLetter
    problem: str | None = None
    away: bool = False


@dataclass(frozen=True, slots=True)
class _Sent:
    """A dead letter whose original is sent.

    :param acknowledgement: the future acknowledgement; None if there is nothing to wait for.
    """

    dead_letter: DeadLetter
    original: Original
    acknowledgement: asyncio.Future[object] | None


class Replayer:
    """Replays dead letters.

    :param dead_letters: reads the dead letters.
    :param source: reads originals that a dead letter does not contain.
    :param resolve: asks the service again for a failed resolution, with its original and the context of its replay;
        raises `ReplayFailed`.
    :param rate: how many dead letters in a second at most; None for no limit.
    :param notify: called with the result of each dead letter.
    :param by: who replays, for the header of the originals.
    :param tracer: begins a span for each dead letter.
    """

    def __init__(
        self,
        dead_letters: DeadLetterReader,
        source: DeadLetterReader,
        producer: AIOKafkaProducer,
        *,
        resolve: Callable[[DeadLetter, Original, TraceContext | None], Awaitable[None]],
        rate: float | None,
        settings: Settings,
        notify: Callable[[Replayed], None],
        by: str,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._dead_letters = dead_letters
        self._source = source
        self._producer = producer
        self._resolve = resolve
        self._rate = rate
        self._notify = notify
        self._settings = settings
        self._tracer = tracer
        self._by = by
        self._unwritable: dict[str, str] = {}
        self._started_at: float | None = None
        self._started = 0

    async def replay(self, wanted: Collection[DeadLetterPosition]) -> None:
        """Replay these dead letters, in the order of their partitions.

        After a cancellation, a dead letter is either marked or can be replayed again.

        :raises KafkaUnavailable: Kafka does not answer.
        """
        group: list[DeadLetter] = []
        size, most = 0, _GROUP if self._rate is None else min(_GROUP, max(1, int(self._rate)))
        left = len(wanted)
        since: dict[TopicPartition, int] = {}
        for each in wanted:
            key = TopicPartition(each.topic, each.partition)
            since[key] = min(each.offset, since.get(key, each.offset))
        async for record in self._dead_letters.records({key.topic for key in since}, since):
            if position_of(record) not in wanted:
                continue
            dead_letter = dead_letter_of(record)
            group.append(dead_letter)
            # If the dead letter is truncated, the original may have any size.
            size += _GROUP_BYTES if dead_letter.truncated else len(record.value or b"")
            left -= 1
            if len(group) == most or size >= _GROUP_BYTES or not left:
                await self._replay_group(group)
                group, size = [], 0
            if not left:
                return
        await self._replay_group(group)

    async def _replay_group(self, group: list[DeadLetter]) -> None:
        with ExitStack() as ends:
            spans = {}
            for dead_letter in group:
                spans[dead_letter.position] = span = self._tracer.span(_about_replay, dead_letter)
                ends.callback(span.end)
            await self._replay_traced(group, spans)

    async def _replay_traced(self, group: list[DeadLetter], spans: Mapping[DeadLetterPosition, Span]) -> None:
        in_flight: list[_Sent] = []
        results: list[Replayed] = []
        acknowledged: list[DeadLetter] = []
        try:
            for dead_letter in group:
                await self._keep_to_rate()
                try:
                    in_flight.append(await self._send(dead_letter, spans[dead_letter.position].context))
                except DeadLetterError as error:
                    results.append(Replayed(dead_letter, error.problem))
        finally:
            # A stop must not skip this: acknowledged originals without a marker would be replayed twice. The time is
            # longer than the producer itself waits for an acknowledgement.
            longest_seconds = 2 * self._settings.kafka_request_timeout_seconds
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + longest_seconds):
                refused: list[_Sent] = []
                for sent in in_flight:
                    problem = await _failure_of(sent)
                    if problem is None:
                        acknowledged.append(sent.dead_letter)
                    elif may_be_about_one_record(problem):
                        refused.append(sent)
                    else:
                        results.append(_not_accepted(sent.dead_letter, problem))
                if refused:
                    await self._republish_each_alone(refused, acknowledged, results)
                await self._mark(acknowledged)
                results += map(Replayed, acknowledged)
            decided = {replayed.dead_letter.position for replayed in results}
            late = [sent.dead_letter for sent in in_flight if sent.dead_letter.position not in decided]
            results += [Replayed(dead_letter, "no acknowledgement in time", away=True) for dead_letter in late]
            for replayed in results:
                self._notify(replayed)
            for dead_letter in group:
                if dead_letter not in acknowledged:
                    spans[dead_letter.position].fail(ReplayFailed.__name__)
        if group and all(replayed.away for replayed in results):
            raise KafkaUnavailable(results[-1].problem or "")

    async def _send(self, dead_letter: DeadLetter, trace: TraceContext | None) -> _Sent:
        if dead_letter.source_topic in self._unwritable:
            raise ReplayFailed(str(dead_letter.position), self._unwritable[dead_letter.source_topic])
        original = await original_of(dead_letter, self._source)
        if trace is not None:
            original = replace(original, headers=(*original.headers, (TRACE, trace.traceparent.encode())))
        if dead_letter.is_resolution:
            await self._resolve(dead_letter, original, trace)
            return _Sent(dead_letter, original, None)
        try:
            return _Sent(dead_letter, original, await republish(self._producer, dead_letter, original, by=self._by))
        except ReplayFailed as error:
            # A failed lookup of a topic takes until a deadline, so each topic is looked up only once.
            self._unwritable[dead_letter.source_topic] = error.problem
            raise

    async def _republish_each_alone(
        self, refused: Sequence[_Sent], acknowledged: list[DeadLetter], results: list[Replayed]
    ) -> None:
        try:
            async with operators_producer(self._settings, each_alone=True) as producer:
                for sent in refused:
                    try:
                        await republish_alone(producer, sent.dead_letter, sent.original, by=self._by)
                    except DeadLetterError as error:
                        results.append(Replayed(sent.dead_letter, error.problem))
                    except (KafkaError, OSError) as error:
                        results.append(_not_accepted(sent.dead_letter, error))
                    else:
                        acknowledged.append(sent.dead_letter)
        except KafkaUnavailable as error:
            results += [Replayed(sent.dead_letter, error.cause, away=True) for sent in refused]

    async def _mark(self, acknowledged: list[DeadLetter]) -> None:
        with kafka_answers():
            markers = [
                await self._producer.send(
                    dead_letter.position.topic,
                    None,
                    replay_marker_key(dead_letter.position),
                    dead_letter.position.partition,
                )
                for dead_letter in acknowledged
            ]
            for marker in markers:
                await marker

    async def _keep_to_rate(self) -> None:
        now = anyio.current_time()
        if self._started_at is None:
            self._started_at = now
        if self._rate is not None:
            await anyio.sleep_until(self._started_at + self._started / self._rate)
        self._started += 1


def _about_replay(dead_letter: DeadLetter) -> SpanDescription:
    cause = dead_letter.trace or trace_in(dead_letter.headers)
    attributes = {
        "messaging.destination.name": dead_letter.source_topic,
        "bcs.dead_letter": str(dead_letter.position),
        "bcs.dead_letter.reason": dead_letter.reason,
        **({BATCH_ID: dead_letter.batch_id} if dead_letter.batch_id else {}),
    }
    if dead_letter.is_resolution:
        kind = SpanKind.CLIENT
    else:
        kind = SpanKind.PRODUCER
        attributes |= {**KAFKA, "messaging.operation.type": "send", "messaging.operation.name": "replay"}
    return SpanDescription(
        name=f"replay {dead_letter.source_topic}", kind=kind, attributes=attributes, causes=[cause] if cause else []
    )


async def _failure_of(sent: _Sent) -> KafkaError | OSError | None:
    try:
        if sent.acknowledgement is not None:
            await sent.acknowledgement
    except (KafkaError, OSError) as error:
        return error
    return None


def _not_accepted(dead_letter: DeadLetter, error: KafkaError | OSError) -> Replayed:
    return Replayed(dead_letter, cause_of(error), away=isinstance(error, KafkaTimeoutError))


@asynccontextmanager
async def operators_producer(settings: Settings, *, each_alone: bool = False) -> AsyncIterator[AIOKafkaProducer]:
    """A connected producer.

    :param each_alone: True for originals of a refused batch. The producer is not idempotent, so a refusal does not
        break its sequence. The producer compresses, because an original above `BCS_KAFKA_MAX_MESSAGE_BYTES` must have
        been compressed when it came.
    :raises KafkaUnavailable: Kafka does not answer.
    """
    producer = AIOKafkaProducer(
        **KafkaClients.of(settings).options(),
        client_id="batch-conductor-dlq",
        acks="all",
        enable_idempotence=settings.kafka_enable_idempotence and not each_alone,
        request_timeout_ms=int(settings.kafka_request_timeout_seconds * 1000),
        max_request_size=_NO_LIMIT_BYTES if each_alone else settings.kafka_max_message_bytes,
        compression_type="gzip" if each_alone else None,
    )
    try:
        with kafka_answers():
            timeout_seconds = settings.kafka_request_timeout_seconds
            idempotent = settings.kafka_enable_idempotence and not each_alone
            await start(producer, settings.kafka_bootstrap_servers, timeout_seconds, idempotent=idempotent)
        yield producer
    finally:
        with anyio.CancelScope(shield=True):
            await producer.stop()
