"""The runtime value of a process that is only a test."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from bcs.actors.runtime import Runtime
from bcs.config.settings import Settings
from bcs.observability.telemetry import Telemetry
from bcs.observability.waits import Waits


def now() -> datetime:
    """The wall-clock time."""
    return datetime.now(UTC)


def runtime_with(**overrides: object) -> Runtime:
    """A runtime value of its own.

    :param overrides: settings that differ from the defaults.
    """
    return Runtime(
        settings=Settings.model_validate(overrides), telemetry=Telemetry(), waits=Waits(now), now=now, new_id=uuid.uuid4
    )
