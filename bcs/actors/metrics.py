"""The metrics actor: samples what no other actor owns, and renders the registry."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import anyio
from prometheus_client import generate_latest

from bcs.actors.kafka import KafkaStatus
from bcs.actors.messages import RenderMetrics
from bcs.domain.errors import StoreError
from bcs.failpoints import FailPoint, Reach
from bcs.record.permanent import Permanent
from bcs.store.base import Outbox
from bcs.supervision import ActorContext, Snapshot
from bcs.telemetry import CIRCUIT_STATES, Telemetry


@dataclass(frozen=True, slots=True)
class MetricsActor:
    """Samples at intervals and answers requests in between. The registry outlives it, and so do all counters.

    :param permanent: None where there is none.
    :param interval_seconds: the time between two samples.
    :param snapshot: a picture of the supervision tree.
    :param circuit: the state of the circuit breaker before the store.
    :param reach: for chaos tests.
    """

    telemetry: Telemetry
    outbox: Outbox
    permanent: Permanent | None
    kafka: KafkaStatus
    interval_seconds: float
    snapshot: Callable[[], Snapshot]
    circuit: Callable[[], str]
    reach: Reach

    async def run(self, context: ActorContext[RenderMetrics]) -> None:
        """Sample and render until asked to stop."""
        await self.reach(FailPoint.STARTING, context.name)
        context.ready()
        async with anyio.create_task_group() as group:
            group.start_soon(self._sample_backlog)
            group.start_soon(self._measure_loop_lag)
            while letters := await context.receive():
                for letter in letters:
                    if not letter.abandoned:
                        self._sample_now()
                        letter.message.reply.send(generate_latest(self.telemetry.registry))
                context.settle(letters)
            group.cancel_scope.cancel()

    def _sample_now(self) -> None:
        """What is cheap to know is as fresh as the request for it."""
        telemetry = self.telemetry
        for path, node in self.snapshot().iter_flat():
            if node.kind == "dynamic":
                telemetry.batch_actors.set(node.total_children)
            elif path.count("/") > 0 or node.mailbox_capacity is None:
                continue  # a batch's actor would make its id a label
            telemetry.mailbox_depth.labels(path).set(node.mailbox_depth)
            telemetry.mailbox_oldest.labels(path).set(node.oldest_message_seconds)
        telemetry.consumer_lag.clear()
        for (topic, partition), lag in self.kafka.lag.items():
            telemetry.consumer_lag.labels(topic, partition).set(lag)
        telemetry.partition_stalled.clear()
        for topic, partition in self.kafka.stalled:
            telemetry.partition_stalled.labels(topic, partition).set(1)
        telemetry.intake_in_flight.set(self.kafka.in_flight)
        if self.permanent:
            telemetry.record_up.labels("postgresql").set(self.permanent.record.reachable)
        telemetry.circuit.labels("redis").set(CIRCUIT_STATES[self.circuit()])

    async def _sample_backlog(self) -> None:
        while True:
            # While the store is away the last figure stands; the circuit breaker's state tells why.
            with suppress(StoreError):
                self.telemetry.outbox_backlog.set(await self.outbox.backlog())
                if self.permanent:
                    backlog, explanations = self.permanent.backlog, self.permanent.explanations
                    self.telemetry.archive_backlog.set(await backlog.backlog() + await explanations.backlog())
            await anyio.sleep(self.interval_seconds)

    async def _measure_loop_lag(self) -> None:
        while True:
            due = anyio.current_time() + self.interval_seconds
            await anyio.sleep_until(due)
            self.telemetry.event_loop_lag.set(max(0.0, anyio.current_time() - due))
