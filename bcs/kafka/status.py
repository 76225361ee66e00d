"""The status of Kafka for health and metrics, and a reliable way to close a client of aiokafka."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.consumer.group_coordinator import NoGroupCoordinator
from aiokafka.errors import KafkaConnectionError, KafkaError

import bcs.kafka.connecting
import bcs.kafka.topic_creation  # noqa: F401 (no producer creates topics)
from bcs.kafka.causes import cause_of, is_refusal
from bcs.kafka.isolation import Stall
from bcs.kafka.lag_age import IntakeLag, LagAge
from bcs.kafka.offsets import Offsets, OffsetsMeasurement
from bcs.observability.logged_causes import LoggedCauses
from bcs.supervision import describe
from bcs.wire import topics

log = structlog.stdlib.get_logger("bcs.kafka")

_STEP_SECONDS = 0.5
_MOST_PROBLEMS = 5


@dataclass(slots=True, kw_only=True)
class KafkaStatus:
    """The status of Kafka, for health and metrics. The intake, the publisher and the metrics actor write it.

    :param connected: whether the last probe succeeded; None before the first probe.
    :param problem: why Kafka is not connected, in a few words.
    :param from_earliest: a group that has committed nothing starts at the first message; if False, at the end.
    :param offsets: topic and partition, consumed ones only, to their last measured offsets.
    :param unmeasured: why some of these offsets are older than the last probe; None where all are new.
    :param dead_letters: topic and partition of dead letters to their number of messages.
    :param assigned: the partitions that are assigned to this replica.
    :param stalled: topic and partition to the reason why the intake can't read on there.
    :param unwritable: topic to the reason why messages for it wait in the outbox.
    :param missing: consumed topics that Kafka does not have or does not show.
    :param waits_for: why the intake waits although Kafka answers; None where it does not wait.
    :param servers: the bootstrap servers.
    """

    connected: bool | None = None
    problem: str = "not connected yet"
    from_earliest: bool = True
    offsets: dict[tuple[str, int], Offsets] = field(default_factory=dict)
    unmeasured: str | None = None
    dead_letters: dict[tuple[str, int], int] = field(default_factory=dict)
    assigned: frozenset[tuple[str, int]] = frozenset()
    stalled: dict[tuple[str, int], Stall] = field(default_factory=dict)
    unwritable: dict[str, str] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    waits_for: str | None = None
    servers: str = ""
    _lag_age: LagAge = field(default_factory=LagAge, init=False)
    _measured_ms: int | None = field(default=None, init=False)
    _missed: dict[tuple[str, int], int] = field(default_factory=dict, init=False)
    _removal_logged: set[tuple[str, int]] = field(default_factory=set, init=False)
    _unmeasured_logged: bool = field(default=False, init=False)
    _causes_logged: LoggedCauses = field(default_factory=LoggedCauses, init=False)

    @property
    def trouble(self) -> str | None:
        """What can't be read or written although Kafka answers; None without such a problem."""
        stalled = self.stalled.items()
        problems = [f"{topic}/{partition}{_at(stall)}: {stall.cause}" for (topic, partition), stall in stalled]
        problems += [
            f"{topic}/{partition}: {missed} messages were removed before they were read, now or within the last day"
            for (topic, partition), missed in sorted(self._missed.items())
        ]
        problems += [f"{topic} does not exist, or may not be seen (DESCRIBE)" for topic in sorted(self.missing)]
        problems += [f"messages for {topic} wait: {cause}" for topic, cause in sorted(self.unwritable.items())]
        if self.unmeasured is not None:
            problems.append(f"the lag can't be measured: {self.unmeasured}")
        if self.waits_for is not None:
            problems.append(f"the intake waits: {self.waits_for}")
        return "; ".join(problems) or None

    @property
    def measured_now(self) -> bool:
        """True if the last measurement included all known partitions."""
        seen = {topic for topic, _ in self.offsets}
        return bool(self.connected) and self.unmeasured is None and not seen & self.missing

    def lag(self) -> dict[tuple[str, int], int]:
        """Topic and partition to the number of messages that are not durable in BCS yet."""
        return {key: offsets.lag(from_earliest=self.from_earliest) for key, offsets in self.offsets.items()}

    def intake_lag(self, now_ms: int) -> IntakeLag:
        """How far the intake of all replicas is behind, as far as the last measurements show.

        While the offsets can't be measured, events may have waited since the last measurement.

        :param now_ms: milliseconds since 1970 UTC.
        """
        if self._measured_ms is None:
            return IntakeLag(None, None, None)
        oldest_ms = self._lag_age.oldest_ms()
        since_ms = [] if oldest_ms is None else [oldest_ms]
        if not self.measured_now:
            since_ms.append(self._measured_ms)
        waited_ms = now_ms - min(since_ms, default=now_ms)
        return IntakeLag(sum(self.lag().values()), max(0, waited_ms) / 1000, self._measured_ms)

    def dead_letters_waiting(self) -> dict[str, int]:
        """Topic of dead letters to its number of messages."""
        waiting: dict[str, int] = {}
        for (topic, _), count in self.dead_letters.items():
            waiting[topic] = waiting.get(topic, 0) + count
        return waiting

    def measured(self, measurement: OffsetsMeasurement, now_ms: int) -> None:
        """Take over a new measurement. Values that it lacks stay as they are."""
        for key, (first, end) in measurement.bounds.items():
            known = self.offsets.get(key)
            if key in measurement.committed:
                self.offsets[key] = Offsets(first, end, *measurement.committed[key])
            elif known is not None:
                self.offsets[key] = Offsets(first, end, known.committed, known.note)
            elif key.topic in topics.DEAD_LETTERS:
                self.dead_letters[key] = end - first
        for key, lag in self.lag().items():
            self._lag_age.note(key, self.offsets[key], lag, now_ms)
        self._set_unmeasured("; ".join(measurement.problems[:_MOST_PROBLEMS]) or None)
        if self.measured_now:
            self._measured_ms = now_ms
        self._missed = {
            key: missed
            for key, offsets in self.offsets.items()
            if (missed := offsets.removed_unread + offsets.note.missed_lately(now_ms))
        }
        removed = {key: offsets for key, offsets in self.offsets.items() if offsets.removed_unread}
        for (topic, partition), offsets in removed.items():
            if (topic, partition) not in self._removal_logged:
                log.warning(
                    "events_removed_unread",
                    topic=topic,
                    partition=partition,
                    from_offset=offsets.committed,
                    to_offset=offsets.first,
                )
        self._removal_logged = set(removed)

    def _set_unmeasured(self, problem: str | None) -> None:
        # A request is also refused while a leader moves. Only a problem that lasts longer is logged, and once.
        lasts = problem is not None and problem == self.unmeasured
        if lasts and not self._unmeasured_logged:
            log.warning("lag_measurement_failed", problem=problem)
        elif problem is None and self._unmeasured_logged:
            log.info("lag_measurement_resumed")
        self._unmeasured_logged = lasts or (problem is not None and self._unmeasured_logged)
        self.unmeasured = problem

    def write_failed(self, topic: str, error: BaseException) -> None:
        """Note that a message for a topic could not be published."""
        self.unwritable[topic] = cause_of(error)

    def written(self, topic: str) -> None:
        """Note that a message for a topic was published."""
        self.unwritable.pop(topic, None)

    def set_missing(self, missing: frozenset[str]) -> None:
        """Set the consumed topics that Kafka does not show; each is logged once."""
        if added := missing - self.missing:
            log.warning("topics_missing", topics=sorted(added))
        self.missing = missing

    def mark_connected(self) -> None:
        """Note that Kafka answered."""
        if not self.connected:
            log.info("kafka_connected")
            self._causes_logged.clear()
        self.connected, self.problem = True, ""

    def set_stalled(self, stalled: Mapping[TopicPartition, Stall]) -> None:
        """Set the stalled partitions; each partition and cause is logged once."""
        for (topic, partition), stall in stalled.items():
            before = self.stalled.get((topic, partition))
            if before is None or (before.offset, before.cause) != (stall.offset, stall.cause):
                log.warning(
                    "partition_stalled",
                    topic=topic,
                    partition=partition,
                    offset=stall.offset,
                    last_offset=stall.last_offset,
                    cause=stall.cause,
                )
        for topic, partition in self.stalled.keys() - stalled.keys():
            log.info("partition_resumed", topic=topic, partition=partition)
        self.stalled = {(topic, partition): stall for (topic, partition), stall in stalled.items()}

    def begin_wait(self, problem: str) -> None:
        """Note that the intake waits; each reason is logged once."""
        if self.waits_for != problem:
            log.warning("intake_waits", problem=problem)
        self.waits_for = problem

    def end_wait(self) -> None:
        """Note that the intake reads again."""
        if self.waits_for is not None:
            log.info("intake_resumed")
        self.waits_for = None

    def mark_disconnected(self, error: BaseException) -> None:
        """Note that Kafka did not answer, or refused; each cause is logged once."""
        problem = cause_of(error)
        if self._causes_logged.note(problem):
            event = "kafka_refuses" if is_refusal(error) else "kafka_unreachable"
            log.warning(event, address=self.servers, error=problem)
        self.connected, self.problem = False, problem


def _at(stall: Stall) -> str:
    if stall.offset is None:
        return ""
    if stall.last_offset in (None, stall.offset):
        return f" can't be read at offset {stall.offset}"
    return f" can't be read at offsets {stall.offset} to {stall.last_offset}"


def _send(connection: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:
    try:
        return _send_of_aiokafka(connection, request, expect_response)
    except (KafkaError, NotImplementedError):
        raise  # RuntimeErrors, too: aiokafka's own errors, and that for a broker without a common version
    except RuntimeError as error:
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"connection to {connection.host}:{connection.port} is lost: {error}") from error


# On a write to a lost connection asyncio does nothing, but uvloop raises RuntimeError, which ends aiokafka's own tasks
# for good: without its fetcher a consumer waits for messages for ever, and stays a member of the group.
_send_of_aiokafka = AIOKafkaConnection.send
AIOKafkaConnection.send = _send


async def close(client: AIOKafkaConsumer | AIOKafkaProducer, budget_seconds: float) -> None:
    """Stop a consumer or producer in any state, within a budget.

    Cancellation waits until this is done, because an unfinished stop would leave connections and tasks behind.
    """
    if await _done_within(budget_seconds, client.stop):
        return
    # The tasks of a half-stopped client go on and open new connections: a heartbeat would keep the partitions of a
    # member that does not poll any more. aiokafka has no other way to end these tasks.
    for step in _remaining_steps(client):
        await _done_within(_STEP_SECONDS, step)


def _remaining_steps(client: AIOKafkaConsumer | AIOKafkaProducer) -> list[Callable[[], Awaitable[None]]]:
    """The remaining steps of `stop`, in its order."""
    inner: Any = client
    if isinstance(client, AIOKafkaProducer):
        return [*([inner._sender.close] if inner._sender else []), inner.client.close]
    steps: list[Callable[[], Awaitable[None]]] = []
    coordinator = inner._coordinator
    if isinstance(coordinator, NoGroupCoordinator):
        steps += [coordinator.close]
    elif coordinator:
        steps += [coordinator._stop_heartbeat_task, coordinator._stop_commit_offsets_refresh_task]
        steps += [coordinator._maybe_leave_group]
    if inner._fetcher:
        steps += [inner._fetcher.close]
    return [*steps, inner._client.close]


async def _done_within(seconds: float, step: Callable[[], Awaitable[None]]) -> bool:
    with anyio.move_on_after(seconds, shield=True) as scope:
        try:
            await step()
        except Exception as error:  # noqa: BLE001 (the other steps must follow after any error)
            log.debug("kafka_client_stop_failed", error=describe(error))
            return False
        except anyio.get_cancelled_exc_class():
            # While the broker is away, aiokafka cancels its own tasks, and stop() raises their cancellation. No
            # cancellation from outside gets through the shield, so any but that of our deadline must be swallowed.
            if scope.cancel_called:
                raise
            return False
        return True
    return False
