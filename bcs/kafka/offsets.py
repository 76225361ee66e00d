"""Reads the first and last offsets of partitions, and a group's committed offsets, from the brokers.

A separate client is used, so that the result does not depend on a consumer: a paused, stuck or refused consumer does
not notice new messages. aiokafka's consumers and its admin client fail for all partitions because of one
(aiokafka 0.14); here each partition succeeds or fails alone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import BrokerResponseError, KafkaError, NoError, RequestTimedOutError, for_code
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.offset import OffsetRequest, OffsetResetStrategy

import bcs.kafka.connecting  # noqa: F401 (a look that is cancelled leaves no connection behind)
from bcs.kafka.causes import bootstrap, cause_of
from bcs.kafka.clients import KafkaClients

_CLOSE_SECONDS = 1.0
_READ_UNCOMMITTED = 0  # messages after an open transaction count as waiting, too
_MISSED_SHOWN_MS = 24 * 3_600_000


@dataclass(frozen=True, slots=True)
class CommitNote:
    """A note in the metadata of a committed offset, which the next owner of the partition can read.

    :param written_ms: the Kafka timestamp of the last message before the offset, in milliseconds since 1970 UTC; None
        where that is unknown.
    :param missed: how many offsets of the partition were removed before the group had read them, in the period for
        which BCS reports that.
    :param missed_at_ms: when BCS last found such a removal, in milliseconds since 1970 UTC.
    """

    written_ms: int | None = None
    missed: int = 0
    missed_at_ms: int | None = None

    def with_missed(self, missed: int, now_ms: int) -> CommitNote:
        """This note after `missed` more offsets were missed."""
        return replace(self, missed=self.missed_lately(now_ms) + missed, missed_at_ms=now_ms)

    def missed_lately(self, now_ms: int) -> int:
        """How many offsets were missed; 0 when the last removal was found more than a day ago."""
        return self.missed if self.missed_at_ms is not None and now_ms < self.missed_at_ms + _MISSED_SHOWN_MS else 0

    def encode(self) -> str:
        """The note as text for the metadata."""
        document: dict[str, int] = {}
        if self.written_ms is not None:
            document["written_ms"] = self.written_ms
        if self.missed_at_ms is not None:
            document |= {"missed": self.missed, "missed_at_ms": self.missed_at_ms}
        return json.dumps(document, separators=(",", ":")) if document else ""

    @classmethod
    def decode(cls, text: str | None) -> CommitNote:
        """The note that `encode` made text of; an empty note for any other text, such as that of operators' tools."""
        try:
            document = json.loads(text or "{}")
            fields = {name: document.get(name) for name in ("written_ms", "missed", "missed_at_ms")}
        except (ValueError, AttributeError, RecursionError):
            return cls()
        written_ms, missed, missed_at_ms = (value if type(value) is int else None for value in fields.values())
        return cls(written_ms, missed or 0, missed_at_ms if missed else None)


@dataclass(frozen=True, slots=True)
class Offsets:
    """The first offset, the end and the group's committed offset of one partition.

    :param committed: None where the group has committed nothing.
    """

    first: int
    end: int
    committed: int | None
    note: CommitNote = CommitNote()

    def lag(self, *, from_earliest: bool) -> int:
        """How many messages the group has still to read.

        :param from_earliest: a group that has committed nothing starts at the first message; if False, at the end.
        """
        start = (self.first if from_earliest else self.end) if self.committed is None else self.committed
        return max(0, self.end - max(start, self.first))

    @property
    def removed_unread(self) -> int:
        """How many offsets after the committed offset Kafka has removed, which the group will never read."""
        return 0 if self.committed is None else max(0, self.first - self.committed)


@dataclass(slots=True)
class OffsetsMeasurement:
    """The brokers' answers to one round of requests.

    :param topics: all topics that the user may see.
    :param bounds: partition to its first offset and its end, where the broker answered.
    :param committed: partition to the group's offset (None where the group has committed nothing) and its note.
    :param problems: why some answers are missing, in a few words each.
    :param lost: True if a connection failed.
    """

    topics: frozenset[str]
    bounds: dict[TopicPartition, tuple[int, int]] = field(default_factory=dict)
    committed: dict[TopicPartition, tuple[int | None, CommitNote]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    lost: bool = False


class OffsetReader:
    """Reads offsets from the brokers. After an error call `aclose`: the next call then uses new connections.

    :param clients: how to connect.
    :param options: the other options of `AIOKafkaClient`.
    """

    def __init__(self, *, clients: KafkaClients, **options: Any) -> None:
        self._clients = clients
        self._options = options
        self._client: Any = None
        self._coordinator: int | None = None

    async def measure(self, group: str, consumed: Collection[str], others: Collection[str]) -> OffsetsMeasurement:
        """Request the offsets. Partitions without an answer are left out of the result.

        :param consumed: topics whose committed offsets are requested, too.
        :param others: topics without committed offsets.
        :raises KafkaError, OSError: no broker answers.
        """
        if self._client is not None:
            # Brokers end connections that are idle, or whose login is old. So a lost one is no outage by itself.
            try:
                measurement = await self._measure(group, consumed, others)
                if not measurement.lost:
                    return measurement
            except (KafkaError, OSError):
                await self.aclose()
        return await self._measure(group, consumed, others)

    async def _measure(self, group: str, consumed: Collection[str], others: Collection[str]) -> OffsetsMeasurement:
        if self._client is None:
            self._client = AIOKafkaClient(**self._clients.options(), **self._options)
            await bootstrap(self._client, self._clients.servers)
        # The metadata of all topics, because a request for a missing topic can create it on the broker.
        cluster = await self._client.fetch_all_metadata()
        measurement = OffsetsMeasurement(frozenset(cluster.topics()))
        keys = [
            TopicPartition(topic, partition)
            for topic in (*consumed, *others)
            for partition in cluster.partitions_for_topic(topic) or ()
        ]
        async with anyio.create_task_group() as questions:
            questions.start_soon(
                self._request_committed, measurement, group, [key for key in keys if key.topic in consumed]
            )
            for node, partitions in _by_leader(measurement, cluster, keys).items():
                questions.start_soon(self._request_bounds, measurement, node, partitions)
        if measurement.lost:
            await self.aclose()
        return measurement

    async def aclose(self) -> None:
        """Close all connections."""
        client, self._client, self._coordinator = self._client, None, None
        if client is not None:
            with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
                await client.close()

    async def _request_bounds(self, measurement: OffsetsMeasurement, node: int, keys: Iterable[TopicPartition]) -> None:
        with _as_problem(measurement):
            first = await self._request_offsets(measurement, node, keys, OffsetResetStrategy.EARLIEST)
            end = await self._request_offsets(measurement, node, first, OffsetResetStrategy.LATEST)
            measurement.bounds.update({key: (first[key], end[key]) for key in end})

    async def _request_offsets(
        self, measurement: OffsetsMeasurement, node: int, keys: Iterable[TopicPartition], strategy: int
    ) -> dict[TopicPartition, int]:
        requested = [(topic, [(number, strategy) for number in numbers]) for topic, numbers in _by_topic(keys).items()]
        answer = await self._client.send(node, OffsetRequest(-1, _READ_UNCOMMITTED, requested))
        offsets: dict[TopicPartition, int] = {}
        for topic, partitions in answer.topics:
            for partition, code, *others in partitions:
                # The oldest version of the response has a list.
                found = others[0][0] if answer.API_VERSION == 0 and others[0] else others[-1]
                if for_code(code) is NoError and isinstance(found, int) and found >= 0:
                    offsets[TopicPartition(topic, partition)] = found
                else:
                    measurement.problems.append(_refused(f"{topic}/{partition}", code))
        return offsets

    async def _request_committed(
        self, measurement: OffsetsMeasurement, group: str, keys: Iterable[TopicPartition]
    ) -> None:
        with _as_problem(measurement):
            if self._coordinator is None:
                self._coordinator = await self._client.coordinator_lookup(CoordinationType.GROUP, group)
            request = OffsetFetchRequest(group, list(_by_topic(keys).items()))
            answer = await self._client.send(self._coordinator, request, group=ConnectionGroup.COORDINATION)
            if code := getattr(answer, "error_code", 0):
                self._coordinator = None  # another broker may be the coordinator by now
                measurement.problems.append(_refused(f"the group {group}", code))
            for topic, partitions in answer.topics:
                for partition, offset, metadata, partition_code in partitions:
                    key = TopicPartition(topic, partition)
                    if for_code(partition_code) is NoError and not code:
                        measurement.committed[key] = None if offset < 0 else offset, CommitNote.decode(metadata)
                    elif partition_code:
                        self._coordinator = None
                        measurement.problems.append(
                            _refused(f"the group's offset of {topic}/{partition}", partition_code)
                        )


@contextmanager
def _as_problem(measurement: OffsetsMeasurement) -> Iterator[None]:
    """Turn an error of the block into a problem of the measurement, which then lacks a part."""
    try:
        yield
    except (KafkaError, OSError, NotImplementedError) as error:
        measurement.problems.append(cause_of(error))
        # aiokafka makes a broker's response of a request that had no response in time.
        measurement.lost |= not isinstance(error, BrokerResponseError) or isinstance(error, RequestTimedOutError)


def _by_leader(
    measurement: OffsetsMeasurement, cluster: Any, keys: Iterable[TopicPartition]
) -> Mapping[int, list[TopicPartition]]:
    led: dict[int, list[TopicPartition]] = defaultdict(list)
    for key in keys:
        leader = cluster.leader_for_partition(key)
        if leader is None or leader < 0:
            measurement.problems.append(f"{key.topic}/{key.partition} has no leader")
        else:
            led[leader].append(key)
    return led


def _by_topic(keys: Iterable[TopicPartition]) -> Mapping[str, list[int]]:
    by_topic: dict[str, list[int]] = defaultdict(list)
    for key in keys:
        by_topic[key.topic].append(key.partition)
    return by_topic


def _refused(subject: str, code: int) -> str:
    error = for_code(code)
    return f"the broker does not report {subject}: {error.message if error.errno == code else 'error'} ({code})"
