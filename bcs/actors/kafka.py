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

import bcs.kafka.topic_creation  # noqa: F401 (no producer creates topics)
from bcs.kafka.isolation import Stall
from bcs.supervision import describe

log = structlog.stdlib.get_logger("bcs.kafka")

_STEP_SECONDS = 0.5


@dataclass(slots=True)
class KafkaStatus:
    """What is known of Kafka, for health and metrics. Written by the intake and the publisher, read by others.

    :param connected: whether the last sign of life came; None before the first attempt.
    :param problem: why not, in a few words.
    :param lag: topic and partition to the number of messages not yet durable here.
    :param in_flight: messages read and not yet durable.
    :param stalled: topic and partition to what keeps the intake from reading on there.
    :param unwritable: topic to why messages for it wait in the outbox.
    :param missing: topics that the intake reads, and that Kafka does not have or does not show.
    :param waits_for: what the intake waits for although Kafka answers; None where it waits for nothing.
    """

    connected: bool | None = None
    problem: str = "not connected yet"
    lag: dict[tuple[str, int], int] = field(default_factory=dict)
    in_flight: int = 0
    stalled: dict[tuple[str, int], Stall] = field(default_factory=dict)
    unwritable: dict[str, str] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    waits_for: str | None = None
    _failures_said: set[tuple[str, str]] = field(default_factory=set, init=False)

    @property
    def trouble(self) -> str | None:
        """What can't be read or written, although Kafka answers; None where that is nothing."""
        stalled = self.stalled.items()
        problems = [f"{topic}/{partition}{_at(stall)}: {stall.cause}" for (topic, partition), stall in stalled]
        problems += [f"{topic} does not exist, or may not be seen (DESCRIBE)" for topic in sorted(self.missing)]
        problems += [f"messages for {topic} wait: {cause}" for topic, cause in sorted(self.unwritable.items())]
        if self.waits_for is not None:
            problems.append(f"the intake waits: {self.waits_for}")
        return "; ".join(problems) or None

    def write_failed(self, topic: str, error: BaseException) -> None:
        """A message could not be published. Said once for each topic and kind of error, until one is published."""
        kind = type(error).__name__
        if (topic, kind) not in self._failures_said:
            self._failures_said.add((topic, kind))
            log.warning("publish_failed", topic=topic, error=describe(error)[:300])
        self.unwritable[topic] = describe(error)[:300]

    def written(self, topic: str) -> None:
        """A message was published."""
        if topic in self.unwritable:
            del self.unwritable[topic]
            self._failures_said = {said for said in self._failures_said if said[0] != topic}
            log.info("publish_succeeds_again", topic=topic)

    def miss(self, missing: frozenset[str]) -> None:
        """Kafka shows all consumed topics but these. Said once for each."""
        if added := missing - self.missing:
            log.warning("topics_missing", topics=sorted(added))
        self.missing = missing

    def up(self) -> None:
        """Kafka answered."""
        if not self.connected:
            log.info("kafka_connected")
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
            log.info("partition_goes_on", topic=topic, partition=partition)
        self.stalled = {(topic, partition): stall for (topic, partition), stall in stalled.items()}

    def wait_for(self, problem: str) -> None:
        """The intake reads nothing for now. Said once for each reason."""
        if self.waits_for != problem:
            log.warning("intake_waits", problem=problem)
        self.waits_for = problem

    def go_on(self) -> None:
        """The intake reads again."""
        if self.waits_for is not None:
            log.info("intake_goes_on")
        self.waits_for = None

    def down(self, error: BaseException) -> None:
        """Kafka did not answer."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        problem = describe(error)[:300]
        if self.connected is not False:
            log.warning("kafka_unreachable", error=problem)
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
