"""What every actor needs from its process: one value instead of the same five parameters everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from bcs.config.settings import Settings
from bcs.observability.telemetry import Telemetry
from bcs.observability.waits import Waits


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The settings, metrics, clock and ids of one process.

    :param waits: what each actor waits for at present.
    :param now: wall-clock time.
    :param new_id: makes random ids.
    """

    settings: Settings
    telemetry: Telemetry
    waits: Waits
    now: Callable[[], datetime]
    new_id: Callable[[], UUID]
