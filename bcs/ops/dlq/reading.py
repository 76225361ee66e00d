"""Reads dead-letter topics from their beginning to their present end, without a consumer group."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import starmap

import anyio
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from bcs.config.settings import Settings
from bcs.errors import KafkaUnavailable, PartitionStalled, UnreadableDeadLetter
from bcs.kafka.causes import cause_of, is_refusal, start
from bcs.kafka.clients import KafkaClients
from bcs.kafka.isolation import IsolatingConsumer, Stall
from bcs.kafka.status import close
from bcs.ops.dlq.selection import Selection
from bcs.wire.dead_letters.decode import (
    DeadLetter,
    DeadLetterPosition,
    is_erasing_tombstone,
    purged_offset,
    read_dead_letter,
    replayed_offset,
)

_POLL_MS = 300
_FETCH_WAIT_MS = 50
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Junk:
    """A record on a dead-letter topic that is not a readable dead letter.

    :param problem: the reason.
    :param timestamp_ms: the time of the Kafka record.
    """

    problem: str
    timestamp_ms: int


@dataclass(slots=True)
class DeadLetterIndex:
    """The contents of dead-letter topics.

    :param dead_letters: the readable dead letters, without the values of their originals, which may be many and large.
    :param unreadable: the records that are not readable dead letters.
    :param replayed: the dead letters with a replay marker.
    :param stalled: the partitions that could not be read to their ends.
    :param total: the number of records that are not markers, selected or not.
    :param keys: the keys of the records that are readable dead letters.
    """

    dead_letters: dict[DeadLetterPosition, DeadLetter] = field(default_factory=dict)
    unreadable: dict[DeadLetterPosition, Junk] = field(default_factory=dict)
    replayed: set[DeadLetterPosition] = field(default_factory=set)
    stalled: tuple[PartitionStalled, ...] = ()
    total: int = 0
    _: KW_ONLY
    keys: dict[DeadLetterPosition, bytes | None] = field(default_factory=dict)

    def take(self, record: ConsumerRecord) -> None:
        """Add a record. The records of a partition must be added in their order."""
        marked = replayed_offset(record.key, record.value)
        purged = purged_offset(record.key, record.value)
        if marked is not None:
            self.replayed.add(DeadLetterPosition(record.topic, record.partition, marked))
        elif is_erasing_tombstone(record.key, record.value, record.headers):
            for position in [
                where
                for where in self.dead_letters
                if self.keys[where] == record.key and (where.topic, where.partition) == (record.topic, record.partition)
            ]:
                del self.dead_letters[position]
        elif purged is not None:
            for position in [
                each for each in (*self.dead_letters, *self.unreadable) if _is_purged(each, record, purged)
            ]:
                self.dead_letters.pop(position, None)
                self.unreadable.pop(position, None)
        else:
            position = position_of(record)
            try:
                self.dead_letters[position] = _without_value(dead_letter_of(record))
                self.keys[position] = record.key
            except UnreadableDeadLetter as error:
                self.unreadable[position] = Junk(error.problem, record.timestamp)

    def of(self, selection: Selection) -> DeadLetterIndex:
        """The selected part of the index. Unreadable records can only be selected by their topic."""
        dead_letters = {
            where: dead_letter for where, dead_letter in self.dead_letters.items() if selection.takes(dead_letter)
        }
        by_topic_only = replace(selection, topics=frozenset()).empty
        return DeadLetterIndex(
            dead_letters, dict(self.unreadable) if by_topic_only else {}, self.replayed, self.stalled, self.total
        )


class DeadLetterReader:
    """Reads dead-letter topics.

    :param consumer: a started consumer without a group.
    :param admin: a started admin client.
    """

    def __init__(self, consumer: IsolatingConsumer, admin: AIOKafkaAdminClient, request_timeout_seconds: float) -> None:
        self._consumer = consumer
        self._admin = admin
        self._timeout_seconds = request_timeout_seconds

    async def index(
        self, topics: Collection[str], since: Mapping[TopicPartition, int] | None = None
    ) -> DeadLetterIndex:
        """Read the topics once, and index all records.

        :param since: see `records`.
        :raises KafkaUnavailable: Kafka does not answer.
        """
        found = DeadLetterIndex()
        async for record in self.records(topics, since):
            found.take(record)
        found.stalled = self.stalled
        found.total = len(found.dead_letters) + len(found.unreadable)
        return found

    @property
    def stalled(self) -> tuple[PartitionStalled, ...]:
        """The partitions that can't be read to their ends."""
        return tuple(starmap(_stalled, sorted(self._consumer.stalled.items())))

    async def records(
        self, topics: Collection[str], since: Mapping[TopicPartition, int] | None = None
    ) -> AsyncIterator[ConsumerRecord]:
        """All readable records of these topics, each partition in its order.

        :param since: only these partitions, each from this offset on; None for all partitions from their beginnings.
        :raises KafkaUnavailable: Kafka does not answer.
        """
        partitions = [key for key in await self.partitions(topics) if since is None or key in since]
        if not partitions:
            return
        with kafka_answers():
            with anyio.fail_after(self._timeout_seconds):
                self._consumer.assign(partitions)
                first = await self._consumer.beginning_offsets(partitions)
                ends = await self._consumer.end_offsets(partitions)
            if since is not None:
                first = {key: max(offset, since[key]) for key, offset in first.items()}
            # Empty partitions are left out, because a poll of an empty partition waits for its full time.
            ends = {key: end for key, end in ends.items() if first[key] < end}
            if not ends:
                return
            self._consumer.assign(list(ends))
            for key in ends:
                self._consumer.seek(key, first[key])
        last_progress_at = anyio.current_time()
        reached = False
        while True:
            with kafka_answers():
                polled = await self._consumer.getmany(timeout_ms=_POLL_MS)
            for records in polled.values():
                for record in records:
                    yield record
            if reached:
                # This poll comes after the ends, because the embedded broker reports some ends that are too low. There
                # is only one such poll, because a producer may be writing all the time.
                return
            with kafka_answers(), anyio.fail_after(self._timeout_seconds):
                stalled = self._consumer.stalled
                reached = all(
                    [key in stalled or await self._consumer.position(key) >= end for key, end in ends.items()]
                )
            if polled or reached:
                last_progress_at = anyio.current_time()
            elif anyio.current_time() > last_progress_at + self._timeout_seconds:
                # aiokafka itself would wait forever for a broker.
                raise KafkaUnavailable(f"no message arrived for {self._timeout_seconds:g} s, although there are more")

    async def extent(self, topics: Collection[str]) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """The first offset of each partition of the existing topics, and the offset behind its last record.

        :raises KafkaUnavailable: Kafka does not answer.
        """
        partitions = await self.partitions(topics)
        if not partitions:
            return {}, {}
        with kafka_answers(), anyio.fail_after(self._timeout_seconds):
            self._consumer.assign(partitions)
            return await self._consumer.beginning_offsets(partitions), await self._consumer.end_offsets(partitions)

    async def between(
        self, ranges: Mapping[TopicPartition, tuple[int, int]], *, most_bytes: int, to_present_end: bool
    ) -> list[ConsumerRecord] | None:
        """The readable records of parts of partitions, each partition in its order.

        :param ranges: the first offset of each part, and the offset behind it.
        :param to_present_end: also take what lies behind, because the embedded broker reports some ends that are too
            low.
        :returns: None if the values have more bytes.
        :raises KafkaUnavailable: Kafka does not answer.
        """
        found: list[ConsumerRecord] = []
        with kafka_answers():
            self._consumer.assign(list(ranges))
            for key, (begin, _) in ranges.items():
                self._consumer.seek(key, begin)
            reached = False
            while True:
                polled = await self._consumer.getmany(timeout_ms=_POLL_MS)
                for key, records in polled.items():
                    found += [one for one in records if to_present_end or one.offset < ranges[key][1]]
                if sum(len(record.value or b"") for record in found) > most_bytes:
                    return None
                if reached:
                    return found
                stalled = self._consumer.stalled
                reached = all(
                    [key in stalled or await self._consumer.position(key) >= end for key, (_, end) in ranges.items()]
                )
                if reached and not to_present_end:
                    return found

    async def record_at(self, topic: str, partition: int, offset: int) -> ConsumerRecord | None:
        """The record at a position; None if the record no longer exists.

        :raises KafkaUnavailable: Kafka does not answer.
        :raises PartitionStalled: the record can't be read.
        """
        place = TopicPartition(topic, partition)
        if place not in await self.partitions([topic]):
            return None
        with kafka_answers(), anyio.fail_after(self._timeout_seconds):
            self._consumer.assign([place])
            first, end = (
                (await self._consumer.beginning_offsets([place]))[place],
                (await self._consumer.end_offsets([place]))[place],
            )
            if not first <= offset < end:
                return None
            self._consumer.seek(place, offset)
            polled: list[ConsumerRecord] = []
            # The consumer skips a record of an aborted transaction, and never returns it.
            while not polled and await self._consumer.position(place) <= offset:
                polled = (await self._consumer.getmany(place, timeout_ms=_POLL_MS, max_records=1)).get(place, [])
                if place in self._consumer.stalled:
                    raise _stalled(place, self._consumer.stalled[place])
        return polled[0] if polled and polled[0].offset == offset else None

    async def partitions(self, topics: Collection[str]) -> list[TopicPartition]:
        """The partitions of the existing topics."""
        with kafka_answers(), anyio.fail_after(self._timeout_seconds):
            return await existing_partitions(self._admin, topics)


async def existing_partitions(admin: AIOKafkaAdminClient, topics: Collection[str]) -> list[TopicPartition]:
    """The partitions of the existing topics. A consumer would know only the topics of its subscription."""
    # Some brokers create a missing topic if a client asks about it.
    existing = set(topics) & set(await admin.list_topics())
    described = await admin.describe_topics(sorted(existing)) if existing else []
    return [
        TopicPartition(topic["topic"], partition["partition"])
        for topic in described
        if not topic["error_code"]
        for partition in topic["partitions"]
    ]


@contextmanager
def kafka_answers() -> Iterator[None]:
    """A block in which Kafka must answer.

    :raises KafkaUnavailable: Kafka does not answer, or refuses.
    """
    try:
        yield
    except (KafkaError, OSError) as error:
        raise KafkaUnavailable(cause_of(error), answered=is_refusal(error)) from error


@asynccontextmanager
async def dead_letter_reader(settings: Settings) -> AsyncIterator[DeadLetterReader]:
    """A connected reader.

    :raises KafkaUnavailable: Kafka does not answer.
    """
    async with reading_clients(settings, "batch-conductor-dlq") as (consumer, admin):
        yield DeadLetterReader(consumer, admin, settings.kafka_request_timeout_seconds)


@asynccontextmanager
async def reading_clients(
    settings: Settings, client_id: str
) -> AsyncIterator[tuple[IsolatingConsumer, AIOKafkaAdminClient]]:
    """A consumer without a group, and an admin client, both connected.

    :raises KafkaUnavailable: Kafka does not answer.
    """
    clients = KafkaClients.of(settings)
    consumer = IsolatingConsumer(
        partition_retry_maximum_seconds=settings.kafka_partition_retry_maximum_seconds,
        **clients.options(),
        client_id=client_id,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        isolation_level="read_committed",
        # A fetch that waits at the end of one partition delays the other partitions of the same broker.
        fetch_max_wait_ms=_FETCH_WAIT_MS,
        max_partition_fetch_bytes=max(1024 * 1024, 2 * settings.kafka_max_message_bytes),
    )
    admin = AIOKafkaAdminClient(**clients.options())
    try:
        with kafka_answers():
            for client in (consumer, admin):
                await start(client, settings.kafka_bootstrap_servers, settings.kafka_request_timeout_seconds)
        yield consumer, admin
    finally:
        with anyio.CancelScope(shield=True):
            # The stop of the consumer itself lets cancellations escape if the broker is down.
            await close(consumer, _CLOSE_SECONDS)
            await admin.close()


def _stalled(key: TopicPartition, stall: Stall) -> PartitionStalled:
    return PartitionStalled(key.topic, key.partition, stall.offset, stall.cause)


def ensure_none_stalled(consumer: IsolatingConsumer) -> None:
    """Make sure that a reader can read all records.

    :raises PartitionStalled: a partition can't be read further.
    """
    for key, stall in sorted(consumer.stalled.items()):
        raise _stalled(key, stall)


def position_of(record: ConsumerRecord) -> DeadLetterPosition:
    """The position of a record."""
    return DeadLetterPosition(record.topic, record.partition, record.offset)


def dead_letter_of(record: ConsumerRecord) -> DeadLetter:
    """The dead letter in a record.

    :raises UnreadableDeadLetter: the record is not a readable dead letter.
    """
    return read_dead_letter(position_of(record), record.key, record.value, record.headers)


def _is_purged(position: DeadLetterPosition, marker: ConsumerRecord, last: int) -> bool:
    return (position.topic, position.partition) == (marker.topic, marker.partition) and position.offset <= last


def _without_value(dead_letter: DeadLetter) -> DeadLetter:
    return replace(dead_letter, value=None, headers=())
