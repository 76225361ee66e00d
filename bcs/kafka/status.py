"""What intake and publisher share of aiokafka: closing a client for certain, and knowing whether Kafka is there."""

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
from bcs.kafka.offsets import Look, Offsets
from bcs.observability.logged_causes import LoggedCauses
from bcs.supervision import describe
from bcs.wire import topics

log = structlog.stdlib.get_logger("bcs.kafka")

_STEP_SECONDS = 0.5
_MOST_PROBLEMS = 5


@dataclass(slots=True, kw_only=True)
class KafkaStatus:
    """What is known of Kafka, for health and metrics. Written by the intake and the publisher, read by others.

    :param connected: whether the last sign of life came; None before the first attempt.
    :param problem: why not, in a few words.
    :param from_earliest: where a group that has committed nothing begins: at the first message, else at the end.
    :param offsets: topic and partition of what is consumed to where it begins and ends, and how far the group has come;
        while Kafka can't be asked, what was known last.
    :param unmeasured: why some of these are older than the last sign of life; None where none is.
    :param dead_letters: topic and partition of dead letters to how many messages lie there.
    :param assigned: the partitions that this replica has.
    :param stalled: topic and partition to what keeps the intake from reading on there.
    :param unwritable: topic to why messages for it wait in the outbox.
    :param missing: topics that the intake reads, and that Kafka does not have or does not show.
    :param waits_for: what the intake waits for although Kafka answers; None where it waits for nothing.
    :param servers: where the brokers are looked for.
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
    _missed: dict[tuple[str, int], int] = field(default_factory=dict, init=False)
    _removal_logged: set[tuple[str, int]] = field(default_factory=set, init=False)
    _lack_logged: bool = field(default=False, init=False)
    _causes_logged: LoggedCauses = field(default_factory=LoggedCauses, init=False)

    @property
    def trouble(self) -> str | None:
        """What can't be read or written, although Kafka answers; None where that is nothing."""
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
        """True if the last look told everything about the partitions that are known."""
        seen = {topic for topic, _ in self.offsets}
        return bool(self.connected) and self.unmeasured is None and not seen & self.missing

    def lag(self) -> dict[tuple[str, int], int]:
        """Topic and partition to how many messages the group has still to read and to make durable."""
        return {key: offsets.lag(from_earliest=self.from_earliest) for key, offsets in self.offsets.items()}

    def dead_letters_waiting(self) -> dict[str, int]:
        """Topic of dead letters to how many messages lie there."""
        waiting: dict[str, int] = {}
        for (topic, _), count in self.dead_letters.items():
            waiting[topic] = waiting.get(topic, 0) + count
        return waiting

    def measured(self, look: Look, now_ms: int) -> None:
        """The brokers have told this. What they did not tell stays as it was."""
        for key, (first, end) in look.bounds.items():
            known = self.offsets.get(key)
            if key in look.committed:
                self.offsets[key] = Offsets(first, end, *look.committed[key])
            elif known is not None:
                self.offsets[key] = Offsets(first, end, known.committed, known.note)
            elif key.topic in topics.DEAD_LETTERS:
                self.dead_letters[key] = end - first
        self._lack("; ".join(look.problems[:_MOST_PROBLEMS]) or None)
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

    def _lack(self, problem: str | None) -> None:
        # A leader that moves is refused once, too. What lasts longer is said once.
        lasts = problem is not None and problem == self.unmeasured
        if lasts and not self._lack_logged:
            log.warning("lag_measurement_failed", problem=problem)
        elif problem is None and self._lack_logged:
            log.info("lag_measurement_resumed")
        self._lack_logged = lasts or (problem is not None and self._lack_logged)
        self.unmeasured = problem

    def write_failed(self, topic: str, error: BaseException) -> None:
        """A message could not be published."""
        self.unwritable[topic] = cause_of(error)

    def written(self, topic: str) -> None:
        """A message was published."""
        self.unwritable.pop(topic, None)

    def miss(self, missing: frozenset[str]) -> None:
        """Kafka shows all consumed topics but these. Said once for each."""
        if added := missing - self.missing:
            log.warning("topics_missing", topics=sorted(added))
        self.missing = missing

    def up(self) -> None:
        """Kafka answered."""
        if not self.connected:
            log.info("kafka_connected")
            self._causes_logged.clear()
        self.connected, self.problem = True, ""

    def stall(self, stalled: Mapping[TopicPartition, Stall]) -> None:
        """These partitions can't be read on, and no others. Said once for each partition and reason."""
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

    def wait_for(self, problem: str) -> None:
        """The intake reads nothing for now. Said once for each reason."""
        if self.waits_for != problem:
            log.warning("intake_waits", problem=problem)
        self.waits_for = problem

    def go_on(self) -> None:
        """The intake reads again."""
        if self.waits_for is not None:
            log.info("intake_resumed")
        self.waits_for = None

    def down(self, error: BaseException) -> None:
        """Kafka did not answer."""
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
        raise  # aiokafka's own errors, and a broker that speaks none of its versions, are RuntimeErrors too
    except RuntimeError as error:
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"connection to {connection.host}:{connection.port} is lost: {error}") from error


# Where asyncio drops what is written to a connection that is lost, uvloop raises RuntimeError. That ends aiokafka's own
# tasks for good: without its fetcher a consumer waits for messages for ever, as a member of the group in good standing.
_send_of_aiokafka = AIOKafkaConnection.send
AIOKafkaConnection.send = _send


async def close(client: AIOKafkaConsumer | AIOKafkaProducer, budget_seconds: float) -> None:
    """Stop a consumer or producer, whatever state it is in, within a budget.

    Shielded, since an unfinished stop would leave connections and tasks behind: cancellation waits for it.
    """
    if await _done_within(budget_seconds, client.stop):
        return
    # Half stopped, aiokafka's tasks live on and open new connections: a heartbeat would keep the partitions of a member
    # that polls no more. It offers no way to end them but these.
    for step in _remaining_steps(client):
        await _done_within(_STEP_SECONDS, step)


def _remaining_steps(client: AIOKafkaConsumer | AIOKafkaProducer) -> list[Callable[[], Awaitable[None]]]:
    """What `stop` would have gone on to do, in its order."""
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
        except Exception as error:  # noqa: BLE001 (whatever it is, the other steps must follow)
            log.debug("kafka_client_stop_failed", error=describe(error))
            return False
        except anyio.get_cancelled_exc_class():
            # With the broker away, aiokafka cancels tasks of its own and lets their cancellation out of stop(). Nothing
            # from outside gets in here, so all but our own deadline is such a leak, and not ours to pass on.
            if scope.cancel_called:
                raise
            return False
        return True
    return False
