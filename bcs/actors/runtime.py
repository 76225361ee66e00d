"""The settings, metrics, clock and ids that every actor needs, as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from bcs.config.settings import Settings
from bcs.kafka.clients import KafkaClients
from bcs.observability.telemetry import Telemetry
from bcs.observability.tracing import NO_TRACER, Tracer
from bcs.observability.waits import Waits


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The settings, metrics, clock and ids of one process.

    :param kafka: how clients of Kafka connect.
    :param waits: the operations for which each actor waits at present.
    :param now: wall-clock time.
    :param new_id: makes random ids.
    """

    settings: Settings
    kafka: KafkaClients
    telemetry: Telemetry
    waits: Waits
    now: Callable[[], datetime]
    new_id: Callable[[], UUID]
    tracer: Tracer = NO_TRACER
