"""The page `/metrics`, and the actor that samples the values that no other actor has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import nan
from typing import Any

import anyio
from prometheus_client import generate_latest

from bcs.actors.kafka_watch import KafkaWatch
from bcs.actors.outbox_watch import OutboxWatch
from bcs.actors.redis_probe import RedisStatus, probe_redis
from bcs.actors.runtime import Runtime
from bcs.errors import StoreError
from bcs.kafka.status import KafkaStatus
from bcs.observability.failpoints import FailPoint, hit
from bcs.observability.telemetry import CIRCUIT_STATES
from bcs.observability.waits import WAITING_ACTORS
from bcs.storage.archive import Archive
from bcs.storage.ports import StateStore
from bcs.storage.redis.batch_index import RedisBatchIndex
from bcs.supervision import ActorContext, Snapshot

_FIRST_PROBE_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsPage:
    """The registry as text. The page makes no request and waits for nothing, so it works whatever else hangs.

    :param archive: None if there is no archive.
    :param in_flight: the number of messages that were read and are not durable yet.
    :param snapshot: the present state of the supervision tree.
    :param circuit: the state of the circuit breaker before the store.
    :param credentials: the settings of files of callers and certificates, each with what is wrong, or "".
    :param redis_problem: why Redis counts as unreachable, empty if it does not; None without Redis.
    """

    runtime: Runtime
    archive: Archive | None
    kafka: KafkaStatus
    outbox: OutboxWatch
    in_flight: Callable[[], int]
    snapshot: Callable[[], Snapshot]
    circuit: Callable[[], str]
    credentials: Callable[[], Mapping[str, str]]
    redis_problem: Callable[[], str] | None

    def render(self) -> bytes:
        """Sample the cheap values now; the other values are the last samples of the metrics actor."""
        self.sample(self.snapshot())
        return generate_latest(self.runtime.telemetry.registry)

    def sample(self, tree: Snapshot) -> None:
        """Sample what costs little.

        :param tree: the supervision tree now.
        """
        telemetry = self.runtime.telemetry
        telemetry.restart_intensity_used.labels(tree.name).set(tree.intensity_used)
        for path, node in tree.iter_flat():
            if node.kind == "dynamic":
                telemetry.batch_actors.set(node.total_children)
                telemetry.restart_intensity_used.labels(path).set(node.intensity_used)
            elif path.count("/") > 0 or node.mailbox_capacity is None:
                continue  # an actor of a batch would make its id a label
            telemetry.mailbox_depth.labels(path).set(node.mailbox_depth)
            telemetry.mailbox_oldest.labels(path).set(node.oldest_message_seconds)
        self._sample_kafka()
        telemetry.outbox_backlog.set(self.outbox.count)
        telemetry.outbox_oldest.set(self.outbox.oldest_seconds)
        telemetry.intake_in_flight.set(self.in_flight())
        if self.archive:
            telemetry.archive_up.labels("postgresql").set(self.archive.postgres.reachable)
        if self.redis_problem:
            telemetry.redis_up.labels("redis").set(not self.redis_problem())
        for actor in WAITING_ACTORS:
            telemetry.actor_waits.labels(actor).set(self.runtime.waits.longest_seconds(actor))
        for setting, problem in self.credentials().items():
            telemetry.credentials_refused.labels(setting).set(bool(problem))
        telemetry.circuit.labels("redis").set(CIRCUIT_STATES[self.circuit()])

    def _sample_kafka(self) -> None:
        telemetry, kafka = self.runtime.telemetry, self.kafka
        telemetry.kafka_up.set(kafka.measured_now)
        lag_seconds = kafka.intake_lag(int(self.runtime.now().timestamp() * 1000)).seconds
        telemetry.intake_lag.set(nan if lag_seconds is None else lag_seconds)
        for key, lag in kafka.lag().items():
            telemetry.consumer_lag.labels(*key).set(lag)
            written_ms = kafka.offsets[key].note.written_ms
            if written_ms is not None:
                telemetry.committed_timestamp.labels(*key).set(written_ms / 1000)
        for topic, count in kafka.dead_letters_waiting().items():
            telemetry.dead_letters_waiting.labels(topic).set(count)
        telemetry.partition_stalled.clear()
        for key in kafka.assigned | kafka.stalled.keys():
            telemetry.partition_stalled.labels(*key).set(key in kafka.stalled)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsActor:
    """Samples at intervals. The registry, its counters, and the status of Redis and Kafka outlive the actor.

    :param archive: None if there is no archive.
    :param redis: the status that this actor updates.
    :param kafka: updates the status of Kafka.
    :param index: the index that this actor writes at intervals; None where there is none in Redis.
    """

    runtime: Runtime
    store: StateStore
    outbox: OutboxWatch
    archive: Archive | None
    redis: RedisStatus
    kafka: KafkaWatch
    index: RedisBatchIndex | None = None

    async def run(self, context: ActorContext[Any]) -> None:
        """Sample until a stop is requested."""
        await hit(FailPoint.STARTING, context.name)
        probed = anyio.Event()
        async with anyio.create_task_group() as group:
            interval_seconds = self.runtime.settings.redis_probe_interval_seconds
            group.start_soon(probe_redis, self.store, self.redis, interval_seconds, probed.set)
            # Readiness should be known when the process has started. A silent Redis does not prevent the start.
            with anyio.move_on_after(_FIRST_PROBE_SECONDS):
                await probed.wait()
            context.ready()
            group.start_soon(self.kafka.run)
            group.start_soon(self._sample_backlog)
            group.start_soon(self._measure_loop_lag)
            if self.index:
                group.start_soon(self.index.run)
            await context.wait_stopping()
            group.cancel_scope.cancel()
        # All that wrote batches has stopped before.
        if self.index:
            await self.index.flush()

    async def _sample_backlog(self) -> None:
        while True:
            await self.outbox.measure()
            if self.archive:
                # While the store is unreachable, the last value stays; the circuit breaker's metric shows the reason.
                with suppress(StoreError):
                    waiting = await self.archive.backlog.backlog() + await self.archive.explanations.backlog()
                    self.runtime.telemetry.archive_backlog.set(waiting)
            await anyio.sleep(self.runtime.settings.metrics_interval_seconds)

    async def _measure_loop_lag(self) -> None:
        while True:
            due = anyio.current_time() + self.runtime.settings.metrics_interval_seconds
            await anyio.sleep_until(due)
            self.runtime.telemetry.event_loop_lag.set(max(0.0, anyio.current_time() - due))
