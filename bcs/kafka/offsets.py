"""Where partitions begin and end, and how far a group has come, as the brokers say.

A client of its own asks, so that the answer does not depend on a consumer: one that is paused, stuck or refused learns
nothing of what comes in behind. aiokafka's consumers and its administrator give up all partitions for the trouble of
one (aiokafka 0.14); here each partition has its own answer, or none.
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

_CLOSE_SECONDS = 1.0
_READ_UNCOMMITTED = 0  # what waits behind an open transaction waits, too
_MISSED_SHOWN_MS = 24 * 3_600_000


@dataclass(frozen=True, slots=True)
class CommitNote:
    """What stands beside a committed offset, in the place that Kafka has for that: it outlives whoever committed.

    :param written_ms: the Kafka time of the last message before the offset, in milliseconds since 1970 UTC; None where
        that is unknown.
    :param missed: how many offsets of the partition were gone before the group had read them, in the time for which
        that is told.
    :param missed_at_ms: when that was last found, in milliseconds since 1970 UTC.
    """

    written_ms: int | None = None
    missed: int = 0
    missed_at_ms: int | None = None

    def with_missed(self, missed: int, now_ms: int) -> CommitNote:
        """The same, after so many more were missed."""
        return replace(self, missed=self.missed_lately(now_ms) + missed, missed_at_ms=now_ms)

    def missed_lately(self, now_ms: int) -> int:
        """How many were missed within the last day before something else was found."""
        return self.missed if self.missed_at_ms is not None and now_ms < self.missed_at_ms + _MISSED_SHOWN_MS else 0

    def encode(self) -> str:
        """As text."""
        document: dict[str, int] = {}
        if self.written_ms is not None:
            document["written_ms"] = self.written_ms
        if self.missed_at_ms is not None:
            document |= {"missed": self.missed, "missed_at_ms": self.missed_at_ms}
        return json.dumps(document, separators=(",", ":")) if document else ""

    @classmethod
    def decode(cls, text: str | None) -> CommitNote:
        """What `encode` gave; of any other text, as operators' tools write it, an empty note."""
        try:
            document = json.loads(text or "{}")
            fields = {name: document.get(name) for name in ("written_ms", "missed", "missed_at_ms")}
        except (ValueError, AttributeError, RecursionError):
            return cls()
        written_ms, missed, missed_at_ms = (value if type(value) is int else None for value in fields.values())
        return cls(written_ms, missed or 0, missed_at_ms if missed else None)


@dataclass(frozen=True, slots=True)
class Offsets:
    """Where one partition begins and ends, and how far the group has come.

    :param committed: None where the group has committed nothing.
    """

    first: int
    end: int
    committed: int | None
    note: CommitNote = CommitNote()

    def lag(self, *, from_earliest: bool) -> int:
        """How many messages are still to be read.

        :param from_earliest: where a group that has committed nothing begins: at the first message, else at the end.
        """
        start = (self.first if from_earliest else self.end) if self.committed is None else self.committed
        return max(0, self.end - max(start, self.first))

    @property
    def removed_unread(self) -> int:
        """How many offsets behind the committed one are gone: the group has not read them, and never will."""
        return 0 if self.committed is None else max(0, self.first - self.committed)


@dataclass(slots=True)
class Look:
    """What the brokers said.

    :param topics: all topics that may be seen.
    :param bounds: first offset and end of each partition that was asked for, where there was an answer.
    :param committed: of the group; None where it has committed nothing.
    :param problems: why some answers are missing, in a few words each.
    :param lost: whether a connection did not do what it should.
    """

    topics: frozenset[str]
    bounds: dict[TopicPartition, tuple[int, int]] = field(default_factory=dict)
    committed: dict[TopicPartition, tuple[int | None, CommitNote]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    lost: bool = False


class OffsetReader:
    """Asks the brokers. After a failure close it: then the next question is asked on new connections.

    :param options: of `AIOKafkaClient`.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._client: Any = None
        self._coordinator: int | None = None

    async def look(self, group: str, consumed: Collection[str], others: Collection[str]) -> Look:
        """Ask once.

        :param consumed: the topics whose committed offsets are asked for, too.
        :param others: more topics.
        :raises KafkaError, OSError: no broker answers.
        """
        if self._client is None:
            self._client = AIOKafkaClient(**self._options)
            await self._client.bootstrap()
        # Of all topics: to ask for one that is not there creates it on a broker that does so by itself.
        cluster = await self._client.fetch_all_metadata()
        look = Look(frozenset(cluster.topics()))
        keys = [
            TopicPartition(topic, partition)
            for topic in (*consumed, *others)
            for partition in cluster.partitions_for_topic(topic) or ()
        ]
        async with anyio.create_task_group() as questions:
            questions.start_soon(self._ask_committed, look, group, [key for key in keys if key.topic in consumed])
            for node, partitions in _by_leader(look, cluster, keys).items():
                questions.start_soon(self._ask_bounds, look, node, partitions)
        if look.lost:
            await self.aclose()
        return look

    async def aclose(self) -> None:
        """Close all connections."""
        client, self._client, self._coordinator = self._client, None, None
        if client is not None:
            with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
                await client.close()

    async def _ask_bounds(self, look: Look, node: int, keys: Iterable[TopicPartition]) -> None:
        with _noted(look):
            first = await self._ask_offsets(look, node, keys, OffsetResetStrategy.EARLIEST)
            end = await self._ask_offsets(look, node, first, OffsetResetStrategy.LATEST)
            look.bounds.update({key: (first[key], end[key]) for key in end})

    async def _ask_offsets(
        self, look: Look, node: int, keys: Iterable[TopicPartition], strategy: int
    ) -> dict[TopicPartition, int]:
        asked = [(topic, [(number, strategy) for number in numbers]) for topic, numbers in _by_topic(keys).items()]
        answer = await self._client.send(node, OffsetRequest(-1, _READ_UNCOMMITTED, asked))
        offsets: dict[TopicPartition, int] = {}
        for topic, partitions in answer.topics:
            for partition, code, *others in partitions:
                # The oldest version answers with a list.
                found = others[0][0] if answer.API_VERSION == 0 and others[0] else others[-1]
                if for_code(code) is NoError and isinstance(found, int) and found >= 0:
                    offsets[TopicPartition(topic, partition)] = found
                else:
                    look.problems.append(_refused(f"{topic}/{partition}", code))
        return offsets

    async def _ask_committed(self, look: Look, group: str, keys: Iterable[TopicPartition]) -> None:
        with _noted(look):
            if self._coordinator is None:
                self._coordinator = await self._client.coordinator_lookup(CoordinationType.GROUP, group)
            request = OffsetFetchRequest(group, list(_by_topic(keys).items()))
            answer = await self._client.send(self._coordinator, request, group=ConnectionGroup.COORDINATION)
            if code := getattr(answer, "error_code", 0):
                self._coordinator = None  # it may be another one by now
                look.problems.append(_refused(f"the group {group}", code))
            for topic, partitions in answer.topics:
                for partition, offset, metadata, partition_code in partitions:
                    key = TopicPartition(topic, partition)
                    if for_code(partition_code) is NoError and not code:
                        look.committed[key] = None if offset < 0 else offset, CommitNote.decode(metadata)
                    elif partition_code:
                        self._coordinator = None
                        look.problems.append(_refused(f"the group's offset of {topic}/{partition}", partition_code))


@contextmanager
def _noted(look: Look) -> Iterator[None]:
    """A block whose failure leaves a part of the answer out."""
    try:
        yield
    except (KafkaError, OSError, NotImplementedError) as error:
        look.problems.append(f"{type(error).__name__}: {error}"[:300])
        # aiokafka tells as if it were a broker's answer that there was none in time.
        look.lost |= not isinstance(error, BrokerResponseError) or isinstance(error, RequestTimedOutError)


def _by_leader(look: Look, cluster: Any, keys: Iterable[TopicPartition]) -> Mapping[int, list[TopicPartition]]:
    led: dict[int, list[TopicPartition]] = defaultdict(list)
    for key in keys:
        leader = cluster.leader_for_partition(key)
        if leader is None or leader < 0:
            look.problems.append(f"{key.topic}/{key.partition} has no leader")
        else:
            led[leader].append(key)
    return led


def _by_topic(keys: Iterable[TopicPartition]) -> Mapping[str, list[int]]:
    by_topic: dict[str, list[int]] = defaultdict(list)
    for key in keys:
        by_topic[key.topic].append(key.partition)
    return by_topic


def _refused(what: str, code: int) -> str:
    error = for_code(code)
    return f"the broker tells nothing of {what}: {error.message if error.errno == code else 'error'} ({code})"
