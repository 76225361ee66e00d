"""What `/metrics` shows, and the actor that samples what no other actor owns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
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
from bcs.supervision import ActorContext, Snapshot

_FIRST_PROBE_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsPage:
    """The registry as text. It asks nobody and waits for nothing, so it can be had whatever hangs.

    :param archive: None where there is none.
    :param in_flight: how many messages were read and are not yet durable.
    :param snapshot: a picture of the supervision tree.
    :param circuit: the state of the circuit breaker before the store.
    :param redis_problem: why Redis counts as away; None where there is no Redis.
    """

    runtime: Runtime
    archive: Archive | None
    kafka: KafkaStatus
    outbox: OutboxWatch
    in_flight: Callable[[], int]
    snapshot: Callable[[], Snapshot]
    circuit: Callable[[], str]
    redis_problem: Callable[[], str] | None

    def render(self) -> bytes:
        """What is cheap to know is as fresh as the request for it; the rest is the metrics actor's last sample."""
        self._sample_now()
        return generate_latest(self.runtime.telemetry.registry)

    def _sample_now(self) -> None:
        """What is cheap to know is as fresh as the request for it."""
        telemetry = self.runtime.telemetry
        for path, node in self.snapshot().iter_flat():
            if node.kind == "dynamic":
                telemetry.batch_actors.set(node.total_children)
            elif path.count("/") > 0 or node.mailbox_capacity is None:
                continue  # a batch's actor would make its id a label
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
        telemetry.circuit.labels("redis").set(CIRCUIT_STATES[self.circuit()])

    def _sample_kafka(self) -> None:
        telemetry, kafka = self.runtime.telemetry, self.kafka
        telemetry.kafka_up.set(kafka.measured_now)
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
    """Samples at intervals. The registry outlives it, and so do all counters, and what is known of others.

    :param archive: None where there is none.
    :param redis: is kept up to date.
    :param kafka: keeps what is known of Kafka up to date.
    """

    runtime: Runtime
    store: StateStore
    outbox: OutboxWatch
    archive: Archive | None
    redis: RedisStatus
    kafka: KafkaWatch

    async def run(self, context: ActorContext[Any]) -> None:
        """Sample until asked to stop."""
        await hit(FailPoint.STARTING, context.name)
        probed = anyio.Event()
        async with anyio.create_task_group() as group:
            interval_seconds = self.runtime.settings.redis_probe_interval_seconds
            group.start_soon(probe_redis, self.store, self.redis, interval_seconds, probed.set)
            # So that readiness is known when the process has started; it starts all the same where Redis is silent.
            with anyio.move_on_after(_FIRST_PROBE_SECONDS):
                await probed.wait()
            context.ready()
            group.start_soon(self.kafka.run)
            group.start_soon(self._sample_backlog)
            group.start_soon(self._measure_loop_lag)
            await context.wait_stopping()
            group.cancel_scope.cancel()

    async def _sample_backlog(self) -> None:
        while True:
            await self.outbox.measure()
            if self.archive:
                # While the store is away the last figure stands; the circuit breaker's state tells why.
                with suppress(StoreError):
                    waiting = await self.archive.waiting() + await self.archive.explanations.backlog()
                    self.runtime.telemetry.archive_backlog.set(waiting)
            await anyio.sleep(self.runtime.settings.metrics_interval_seconds)

    async def _measure_loop_lag(self) -> None:
        while True:
            due = anyio.current_time() + self.runtime.settings.metrics_interval_seconds
            await anyio.sleep_until(due)
            self.runtime.telemetry.event_loop_lag.set(max(0.0, anyio.current_time() - due))
