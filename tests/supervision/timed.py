"""What the tests share that depend on time."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from bcs.supervision import Backoff
from tests.supervision.harness import Recorder, until

# Of the backends in conftest.py only trio has a clock that jumps, so that times can be told exactly.
ON_TRIO = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)


class Timed(Recorder):
    """An observer that notes the time, from its first event on."""

    def times(self, kind: str) -> list[float]:
        return [
            round(at - self.stamps[0], 6)
            for at, event in zip(self.stamps, self.events, strict=True)
            if event[0] == kind
        ]

    def __init__(self) -> None:
        super().__init__()
        self.stamps: list[float] = []

    def actor_started(self, path: str, incarnation: int) -> None:
        super().actor_started(path, incarnation)
        self.stamps.append(anyio.current_time())

    def actor_ended(self, path: str, incarnation: int, reason: str, error: BaseException | None) -> None:
        super().actor_ended(path, incarnation, reason, error)
        self.stamps.append(anyio.current_time())

    def actor_restarting(self, path: str, delay_seconds: float) -> None:
        super().actor_restarting(path, delay_seconds)
        self.stamps.append(anyio.current_time())

    def actor_unresponsive(self, path: str) -> None:
        super().actor_unresponsive(path)
        self.stamps.append(anyio.current_time())


PLAIN = Backoff(initial_seconds=1.0, factor=2.0, maximum_seconds=5.0, jitter=0.0, reset_after_seconds=10.0)


async def later(condition: Callable[[], object]) -> None:
    """As `until`, for what comes after many seconds."""
    await until(condition, seconds=1_000, step=0.01)


async def ignore_cancellation(seconds: float) -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(seconds)
