"""How many restarts are too many."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class RestartIntensity:
    """OTP's restart intensity: more than so many restarts within a period, and a supervisor gives up.

    :param max_restarts: how many are still fine
    :param period_seconds: the length of the sliding window
    :raises ValueError: for values that make no sense
    """

    max_restarts: int = 10
    period_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.max_restarts < 0 or not self.period_seconds > 0:
            raise ValueError(f"not an intensity: {self}")


DEFAULT_INTENSITY: Final = RestartIntensity()


class RestartWindow:
    """Counts restarts in a sliding window.

    :param intensity: the limit
    """

    __slots__ = ("_intensity", "_restarts")

    def __init__(self, intensity: RestartIntensity) -> None:
        self._intensity = intensity
        self._restarts: deque[float] = deque()

    def allow(self, now: float) -> bool:
        """Whether one more restart is fine; if so, it is counted.

        :param now: the present, in seconds of a monotonic clock
        """
        while self._restarts and self._restarts[0] <= now - self._intensity.period_seconds:
            self._restarts.popleft()
        if len(self._restarts) >= self._intensity.max_restarts:
            return False
        self._restarts.append(now)
        return True
