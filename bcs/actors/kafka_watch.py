"""Probes Kafka and measures the committed offsets of the group, independently of the intake."""

from __future__ import annotations

from dataclasses import dataclass

import anyio

from bcs.actors.runtime import Runtime
from bcs.kafka.offsets import OffsetReader
from bcs.kafka.status import KafkaStatus
from bcs.wire import topics


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaWatch:
    """Updates the status of Kafka.

    The status has all partitions of the consumed topics, also partitions of other replicas: a partition that no replica
    reads has a lag, too.
    """

    runtime: Runtime
    status: KafkaStatus

    async def run(self) -> None:
        """Measure at intervals until cancelled."""
        settings = self.runtime.settings
        reader = OffsetReader(
            clients=self.runtime.kafka,
            client_id="batch-conductor-service",
            request_timeout_ms=int(settings.kafka_request_timeout_seconds * 1000),
            metadata_max_age_ms=int(settings.kafka_metadata_max_age_seconds * 1000),
        )
        try:
            while True:
                await self._measure(reader)
                await anyio.sleep(settings.kafka_probe_interval_seconds)
        finally:
            await reader.aclose()

    async def _measure(self, reader: OffsetReader) -> None:
        settings = self.runtime.settings
        try:
            with anyio.fail_after(settings.kafka_request_timeout_seconds):
                measurement = await reader.measure(
                    settings.kafka_consumer_group_id, topics.CONSUMED, topics.DEAD_LETTERS
                )
        except Exception as error:  # noqa: BLE001 (a failed measurement is a result; a crash would not help)
            await reader.aclose()
            self.status.mark_disconnected(error)
            return
        self.status.mark_connected()
        self.status.set_missing(frozenset(topics.CONSUMED) - measurement.topics)
        self.status.measured(measurement, int(self.runtime.now().timestamp() * 1000))
