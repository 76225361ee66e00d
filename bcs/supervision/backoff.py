"""How long to wait before a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with jitter and a cap, as in Akka's BackoffSupervisor.

    :param initial_seconds: the wait before the first restart
    :param factor: the wait is multiplied by this factor for each further restart
    :param maximum_seconds: the upper limit of the wait
    :param jitter: the wait is shortened by a random part of up to this fraction, so that actors that crashed together
        do not restart together
    :param reset_after_seconds: after an attempt that was ready for this time, the next wait is the initial one again
    :raises ValueError: for invalid values
    """

    initial_seconds: float = 0.05
    factor: float = 2.0
    maximum_seconds: float = 5.0
    jitter: float = 0.2
    reset_after_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.initial_seconds < 0 or self.maximum_seconds < 0 or self.factor < 1 or not 0 <= self.jitter <= 1:
            raise ValueError(f"invalid back-off: {self}")

    def delay(self, step: int, random: Callable[[], float]) -> float:
        """The wait before a restart, in seconds.

        :param step: the number of consecutive restarts before this one
        :param random: returns a new random number from 0.0 to 1.0
        """
        try:
            grown = self.initial_seconds * self.factor**step
        except OverflowError:
            grown = self.maximum_seconds if self.initial_seconds else 0.0
        return min(grown, self.maximum_seconds) * (1.0 - self.jitter * random())


DEFAULT_BACKOFF: Final = Backoff()
