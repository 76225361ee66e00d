"""The limit for the number of restarts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class RestartIntensity:
    """OTP's restart intensity: a supervisor gives up after too many restarts within a period.

    :param max_restarts: the number of restarts that are allowed within the period
    :param period_seconds: the length of the period, a sliding window
    :raises ValueError: for invalid values
    """

    max_restarts: int = 10
    period_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.max_restarts < 0 or not self.period_seconds > 0:
            raise ValueError(f"invalid intensity: {self}")


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
        """Count one more restart, and return True if it is allowed; a refused restart is not counted.

        :param now: the current time, in seconds of a monotonic clock
        """
        if self._within(now) >= self._intensity.max_restarts:
            return False
        self._restarts.append(now)
        return True

    def used(self, now: float) -> float:
        """The share of the limit that is used up: 1.0 if the next restart would be refused.

        :param now: the current time, in seconds of a monotonic clock
        """
        most = self._intensity.max_restarts
        return self._within(now) / most if most else 1.0

    def _within(self, now: float) -> int:
        while self._restarts and self._restarts[0] <= now - self._intensity.period_seconds:
            self._restarts.popleft()
        return len(self._restarts)
