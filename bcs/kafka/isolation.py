"""A consumer in which a problem of one partition affects only that partition.

aiokafka's own consumer stops reading all partitions because of one: its poll raises where a record can't be decoded or
a topic may not be read, and it requests the starting positions of all partitions of a broker at once, which fails for
all of them where one is refused (aiokafka 0.14, `consumer/fetcher.py`). In this consumer such a partition stalls: it is
not read, and is retried with exponential back-off.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import UNKNOWN_OFFSET, Fetcher, FetchResult, OffsetResetStrategy
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    NoError,
    NotCoordinatorForGroupError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
    for_code,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest

import bcs.kafka.connecting
import bcs.kafka.topic_creation  # noqa: F401 (no consumer creates topics)
from bcs.kafka.causes import refusal_of
from bcs.kafka.records import TolerantRecords

_FIRST_RETRY_SECONDS = 0.5
# Reads are also refused a few times while a leader moves; only a stall that lasts is reported.
_TRIES_BEFORE_REPORTED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A partition that can't be read any further.

    :param offset: the first offset that can't be read; None where the broker refuses the partition as a whole.
    :param last_offset: the last offset of the unreadable record batch; None where that is unknown.
    :param cause: why, in a few words.
    :param lasting: True if a retry alone is not expected to help, or several retries did not help.
    :param tries: how often the read was tried.
    :param retry_at: the time of the next retry, in seconds of the event loop's clock.
    """

    offset: int | None
    last_offset: int | None
    cause: str
    lasting: bool
    tries: int
    retry_at: float


@dataclass(frozen=True, slots=True)
class MissedRange:
    """A range of a partition that was never read, because Kafka removed it before.

    :param from_offset: the first offset that was not read.
    :param to_offset: the offset at which reading continues.
    """

    topic: str
    partition: int
    from_offset: int
    to_offset: int


class IsolatingConsumer(AIOKafkaConsumer):  # type: ignore[misc] # aiokafka has no types
    """A consumer in which each partition stalls alone. Call `start` before you subscribe or assign partitions.

    :param partition_retry_maximum_seconds: the longest wait before a stalled partition is retried.
    :param jitter: returns random numbers from 0 to 1.
    :param options: the options of `AIOKafkaConsumer`.
    """

    _fetcher: Any

    def __init__(
        self,
        *,
        partition_retry_maximum_seconds: float,
        jitter: Callable[[], float] = random.random,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._retry_maximum_seconds = partition_retry_maximum_seconds
        self._jitter = jitter

    async def start(self) -> None:
        """See `AIOKafkaConsumer.start`."""
        await super().start()
        # No partition is assigned yet, so aiokafka's own fetcher has not started its work.
        await self._fetcher.close()
        self._fetcher = _IsolatingFetcher(self, self._coordinator, self._retry_maximum_seconds, self._jitter)

    @property
    def stalled(self) -> dict[TopicPartition, Stall]:
        """The partitions that are stalled for a lasting reason."""
        subscription = self._subscription.subscription
        if self._fetcher is None or subscription is None or subscription.assignment is None:
            return {}
        assignment = subscription.assignment
        return {
            key: stall
            for key, stall in self._fetcher.stalled.items()
            if stall.lasting and not _is_over(stall, key, assignment)
        }

    def take_missed(self) -> list[MissedRange]:
        """The ranges that were missed since the last call."""
        missed, self._fetcher.missed = self._fetcher.missed, []
        return list(missed)

    def committed_metadata(self, partition: TopicPartition) -> str | None:
        """The metadata of the group's committed offset when this member started to read the partition."""
        metadata: str | None = self._fetcher.committed_metadata.get(partition)
        return metadata

    def skip(self, partition: TopicPartition, offset: int) -> None:
        """Continue after an offset that can't be read."""
        self.seek(partition, offset + 1)
        self._fetcher.stalled.pop(partition, None)


class _IsolatingFetcher(Fetcher):  # type: ignore[misc] # aiokafka has no types
    """aiokafka's fetcher with its own handling of errors."""

    def __init__(
        self,
        consumer: Any,
        coordinator: Any,
        retry_maximum_seconds: float,
        jitter: Callable[[], float],
    ) -> None:
        self.stalled: dict[TopicPartition, Stall] = {}
        self.missed: list[MissedRange] = []
        self.committed_metadata: dict[TopicPartition, str | None] = {}
        # Positions outside their partitions, until the broker has sent the new positions.
        self._out_of_range: dict[TopicPartition, int] = {}
        # A consumer without a group has another kind of coordinator, which has no committed offsets.
        self._coordinator: Any = coordinator if isinstance(coordinator, GroupCoordinator) else None
        self._retry_maximum_seconds = retry_maximum_seconds
        self._jitter = jitter
        self._responses: dict[int, Any] = {}
        self._skipped_by_aiokafka: list[tuple[Any, int]] = []
        super().__init__(
            _ObservedClient(consumer._client, self._observe),
            consumer._subscription,
            fetch_min_bytes=consumer._fetch_min_bytes,
            fetch_max_bytes=consumer._fetch_max_bytes,
            fetch_max_wait_ms=consumer._fetch_max_wait_ms,
            max_partition_fetch_bytes=consumer._max_partition_fetch_bytes,
            check_crcs=consumer._check_crcs,
            fetcher_timeout=consumer._consumer_timeout,
            retry_backoff_ms=consumer._retry_backoff_ms,
            auto_offset_reset=consumer._auto_offset_reset,
            isolation_level=consumer._isolation_level,
            client_rack=consumer._client_rack,
        )

    def _get_actions_per_node(self, assignment: Any) -> Any:
        now = self._loop.time()
        self.stalled = {key: stall for key, stall in self.stalled.items() if not _is_over(stall, key, assignment)}
        excluded = {key for key, stall in self.stalled.items() if stall.retry_at > now}
        return super()._get_actions_per_node(_Without(assignment, excluded) if excluded else assignment)

    async def _proc_fetch_request(self, assignment: Any, node_id: int, request: Any) -> Any:
        try:
            woken = await super()._proc_fetch_request(assignment, node_id, request)
        finally:
            response = self._responses.pop(id(request), None)
            self._undo_skips()
        # No other task has run since the response came, so no task has started to read these records.
        for topic, partitions in response.topics if response else ():
            for partition, _code, _highwater, *parts in partitions:
                self._make_tolerant(TopicPartition(topic, partition), parts)
        return woken

    def _make_tolerant(self, key: TopicPartition, parts: list[Any]) -> None:
        result = self._records.get(key)
        if not isinstance(result, FetchResult) or isinstance(result._partition_records, TolerantRecords):
            return
        given = result._partition_records
        result._partition_records = TolerantRecords(
            key,
            parts[-1],
            given._aborted_transactions,
            given.next_fetch_offset,
            check_crcs=self._check_crcs,
            isolation_level=self._isolation_level,
            failed=self._unreadable,
        )

    def _unreadable(self, key: TopicPartition, offset: int, last_offset: int | None, error: Exception) -> None:
        self._stall(key, _plain(error), offset=offset, last_offset=last_offset)

    def _set_error(self, tp: TopicPartition, error: Exception) -> None:
        # aiokafka would raise this error from the next poll. `_observe` has already stalled what the broker refused.
        if isinstance(error, RecordTooLargeError):
            # The batch has no end, and aiokafka continues after its first record when this method returns.
            state = self._subscriptions.subscription.assignment.state_value(tp)
            self._skipped_by_aiokafka.append((state, state.position))
            self._stall(tp, "a record batch does not end where it should", offset=state.position)

    def _undo_skips(self) -> None:
        # Before another task runs, because it would treat the skipped records as read.
        for state, offset in self._skipped_by_aiokafka:
            if state.has_valid_position and state.position == offset + 1:
                state.seek(offset)
        self._skipped_by_aiokafka.clear()

    async def _update_fetch_positions(self, assignment: Any, node_id: int, tps: Iterable[TopicPartition]) -> Any:
        new = [
            key
            for key in tps
            if not (state := assignment.state_value(key)).has_valid_position and not state.awaiting_reset
        ]
        if new and self._coordinator is not None:
            if not await self._take_committed(assignment, new):
                return False
            # aiokafka would request the refused partitions once more, and wait for ever.
            tps = [
                key for key in tps if (state := assignment.state_value(key)).has_valid_position or state.awaiting_reset
            ]
        reset = [key for key in tps if assignment.state_value(key).awaiting_reset]
        woken = await super()._update_fetch_positions(assignment, node_id, tps)
        # No other task has run since the response came, so no record was read from the new positions.
        for key in reset if assignment.active else ():
            self._note_missed(key, assignment.state_value(key))
        return woken

    def _note_missed(self, key: TopicPartition, state: Any) -> None:
        if not state.has_valid_position:
            return  # aiokafka requests the position again
        wanted = self._out_of_range.pop(key, None)
        # A position after the end has missed nothing: the partition was created again, or truncated.
        if wanted is not None and wanted < state.position:
            self.missed.append(MissedRange(key.topic, key.partition, wanted, state.position))

    async def _take_committed(self, assignment: Any, keys: Iterable[TopicPartition]) -> bool:
        """Start each partition at the group's committed offset.

        :returns: False if the request has to be repeated.
        """
        by_topic: dict[str, list[int]] = defaultdict(list)
        for key in keys:
            by_topic[key.topic].append(key.partition)
        try:
            request = OffsetFetchRequest(self._coordinator.group_id, list(by_topic.items()))
            response = await self._coordinator._send_req(request)
        except KafkaError:
            await asyncio.sleep(self._retry_backoff)
            return False
        if code := getattr(response, "error_code", 0):
            # The error of the whole group; only newer versions of the response have this field.
            if for_code(code) is not GroupLoadInProgressError:
                self._coordinator.coordinator_dead()
            await asyncio.sleep(self._retry_backoff)
            return False
        for topic, partitions in response.topics:
            for partition, offset, metadata, code in partitions:
                key, error = TopicPartition(topic, partition), for_code(code)
                state = assignment.state_value(key)
                if error in (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError):
                    if error is not GroupLoadInProgressError:
                        self._coordinator.coordinator_dead()
                    await asyncio.sleep(self._retry_backoff)
                    return False
                if error is not NoError:
                    self._stall(key, refusal_of(code), retriable=error.retriable)
                elif state.has_valid_position or state.awaiting_reset:
                    pass  # another task has set a position meanwhile
                elif offset != UNKNOWN_OFFSET:
                    self.committed_metadata[key] = metadata
                    self._out_of_range.pop(key, None)
                    state.reset_to(offset)
                elif self._default_reset_strategy != OffsetResetStrategy.NONE:
                    state.await_reset(self._default_reset_strategy)
        return True

    def _observe(self, request: Any, response: Any) -> None:
        """Stall each partition that a broker refuses, and note positions that are out of range."""
        if isinstance(request, FetchRequest):
            self._responses[id(request)] = response
            for topic, partitions in response.topics:
                for partition, code, *_ in partitions:
                    key = TopicPartition(topic, partition)
                    if for_code(code) is OffsetOutOfRangeError:
                        self._out_of_range[key] = _fetched_from(request, key)
                    self._stall_or_clear(key, code)
        elif isinstance(request, OffsetRequest):
            for topic, partitions in response.topics:
                for partition, code, *_ in partitions:
                    self._stall_or_clear(TopicPartition(topic, partition), code)

    def _stall_or_clear(self, key: TopicPartition, code: int) -> None:
        error = for_code(code)
        if error is NoError:
            stall = self.stalled.get(key)
            if stall and stall.offset is None:
                del self.stalled[key]
        elif error is not OffsetOutOfRangeError:  # aiokafka requests another position
            self._stall(key, refusal_of(code), retriable=error.retriable)

    def _stall(
        self,
        key: TopicPartition,
        cause: str,
        *,
        retriable: bool = False,
        offset: int | None = None,
        last_offset: int | None = None,
    ) -> None:
        before = self.stalled.get(key)
        tries = before.tries + 1 if before and before.offset == offset else 1
        wait_seconds = min(self._retry_maximum_seconds, _FIRST_RETRY_SECONDS * 2 ** min(tries - 1, 20))
        lasting = not retriable or tries >= _TRIES_BEFORE_REPORTED
        self.stalled[key] = Stall(
            offset=offset,
            last_offset=last_offset,
            cause=cause,
            lasting=lasting,
            tries=tries,
            retry_at=self._loop.time() + wait_seconds * (0.5 + self._jitter() / 2),
        )


class _ObservedClient:
    """aiokafka's client; passes each response to an observer before the fetcher gets it.

    :param observe: gets a request and its response.
    """

    def __init__(self, client: Any, observe: Callable[[Any, Any], None]) -> None:
        self._client = client
        self._observe = observe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, node_id: int, request: Any) -> Any:
        response = await self._client.send(node_id, request)
        self._observe(request, response)
        return response


class _Without:
    """An assignment without some of its partitions."""

    def __init__(self, assignment: Any, excluded: set[TopicPartition]) -> None:
        self.tps = assignment.tps - excluded
        self.state_value = assignment.state_value


def _is_over(stall: Stall, key: TopicPartition, assignment: Any) -> bool:
    """True if the partition was revoked, or its position is not the unreadable offset any more.

    This is also the case after a rebalance, when uncommitted messages before the stall are read again first.
    """
    if key not in assignment.tps:
        return True
    if stall.offset is None:
        return False
    state = assignment.state_value(key)
    return not state.has_valid_position or bool(state.position != stall.offset)


def _fetched_from(request: FetchRequest, key: TopicPartition) -> int:
    """The offset from which a request fetched a partition's records."""
    offsets = {(topic, partition): offset for topic, asked in request.topics for partition, offset, _ in asked}
    return int(offsets[key])


def _plain(error: Exception) -> str:
    """The text of an error without the class and the number that aiokafka puts before it."""
    return (str(error.args[0]) if error.args else type(error).__name__)[:300]
