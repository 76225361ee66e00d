"""What intake and publisher share of aiokafka: closing a client for certain, and knowing whether Kafka is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anyio
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError

from bcs.supervision import describe

log = structlog.stdlib.get_logger("bcs.kafka")


@dataclass(slots=True)
class KafkaStatus:
    """What is known of the connection to Kafka, for health and metrics. Written by the intake, read by others.

    :param connected: whether the last sign of life came; None before the first attempt.
    :param problem: why not, in a few words.
    :param lag: topic and partition to the number of messages not yet durable here.
    :param in_flight: messages read and not yet durable.
    """

    connected: bool | None = None
    problem: str = "not connected yet"
    lag: dict[tuple[str, int], int] = field(default_factory=dict)
    in_flight: int = 0

    def up(self) -> None:
        """Kafka answered."""
        if not self.connected:
            log.info("kafka_connected")
        self.connected, self.problem = True, ""

    def down(self, error: BaseException) -> None:
        """Kafka did not answer."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        problem = describe(error)[:300]
        if self.connected is not False:
            log.warning("kafka_unreachable", error=problem)
        self.connected, self.problem = False, problem


async def close(client: AIOKafkaConsumer | AIOKafkaProducer, budget_seconds: float) -> None:
    """Stop a consumer or producer, whatever state it is in, within a budget.

    Shielded, since an unfinished stop would leave connections and tasks behind: cancellation waits for it.
    """
    stopped = False
    with anyio.move_on_after(budget_seconds, shield=True) as scope:
        try:
            await client.stop()
            stopped = True
        except KafkaError as error:
            log.debug("kafka_client_stop_failed", error=str(error))
        except anyio.get_cancelled_exc_class():
            # With the broker away, aiokafka cancels tasks of its own and lets their cancellation out of stop(). Nothing
            # from outside gets in here, so all but our own deadline is such a leak, and not ours to pass on.
            if scope.cancel_called:
                raise
    if not stopped:
        # Without its connections aiokafka lets go of its tasks by itself. It offers no other way to them.
        inner: Any = client._client if isinstance(client, AIOKafkaConsumer) else client.client
        with anyio.move_on_after(1.0, shield=True):
            await inner.close()
