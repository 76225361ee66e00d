"""The runtime value of a process that is only a test."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from bcs.actors.runtime import Runtime
from bcs.config.settings import Settings
from bcs.kafka.clients import KafkaClients
from bcs.observability.telemetry import Telemetry
from bcs.observability.waits import Waits


def now() -> datetime:
    """The wall-clock time."""
    return datetime.now(UTC)


def runtime_with(**overrides: object) -> Runtime:
    """A runtime value of its own.

    :param overrides: settings that differ from the defaults.
    """
    settings = Settings.model_validate(overrides)
    return Runtime(
        settings=settings,
        kafka=KafkaClients.of(settings),
        telemetry=Telemetry(),
        waits=Waits(now),
        now=now,
        new_id=uuid.uuid4,
    )


async def nothing_erased(_batch_id: str) -> bool:
    """No batch was erased."""
    return False
