"""Time limits, kept by one task: a timer or a scope for each request would cost more than to answer the request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel

T = TypeVar("T")

# A limit is looked at so often within its time, and no less often than this.
_LOOKS_PER_LIMIT = 50
_LONGEST_STEP_SECONDS = 0.1
# A loop that was held up for more steps than these was late itself, and nobody else.
_STEPS_COUNTED = 5
# Thousands of idle connections may be overdue at once.
_ENDED_AT_A_TIME = 50


class LoopClock:
    """Time that goes on only while the event loop does.

    While the loop is held up it reads nothing, so no caller may count as late for that.

    :param shortest_seconds: the shortest time limit that goes by this clock.
    """

    def __init__(self, shortest_seconds: float) -> None:
        self.now = 0.0
        self.step_seconds = min(shortest_seconds / _LOOKS_PER_LIMIT, _LONGEST_STEP_SECONDS)
        self._at_each_step: list[Callable[[], bool]] = []

    def at_each_step(self, look: Callable[[], bool]) -> None:
        """Have something called whenever the time has changed; again, after others had their turns, if it is True."""
        self._at_each_step.append(look)

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            began = time.perf_counter()
            await anyio.sleep(self.step_seconds)
            self.now += min(time.perf_counter() - began, self.step_seconds * _STEPS_COUNTED)
            for look in self._at_each_step:
                while look():
                    await anyio.lowlevel.checkpoint()


class Deadlines(Generic[T]):
    """Everything that has one and the same time limit, in the order in which its time began.

    :param seconds: the limit; at most two steps of the clock are added to it.
    :param end: called with what has used up its time; the second argument is True where it is ended before its time, as
        there is no room. It is no longer watched then.
    """

    def __init__(self, clock: LoopClock, seconds: float, end: Callable[[T, bool], object]) -> None:
        self._clock = clock
        self._seconds = seconds + clock.step_seconds
        self._end = end
        self._began: dict[T, float] = {}
        clock.at_each_step(self._look)

    def __len__(self) -> int:
        return len(self._began)

    def watch(self, one: T) -> None:
        """Its time begins now."""
        self._began[one] = self._clock.now

    def forget(self, one: T) -> bool:
        """It was in time.

        :returns: False when it is not watched, as it was ended.
        """
        return self._began.pop(one, None) is not None

    def waited_seconds(self) -> float:
        """How long the oldest has been watched; -1 where there is none."""
        return self._clock.now - next(iter(self._began.values())) if self._began else -1.0

    def end_oldest(self, *, early: bool = True) -> T:
        """End what is watched longest.

        :returns: which that is.
        """
        oldest = next(iter(self._began))
        del self._began[oldest]
        self._end(oldest, early)
        return oldest

    def _look(self) -> bool:
        """End some of what is overdue; True if there is more."""
        for _ in range(_ENDED_AT_A_TIME):
            if self.waited_seconds() < self._seconds:
                return False
            self.end_oldest(early=False)
        return True


def task_deadlines(clock: LoopClock, seconds: float) -> Deadlines[asyncio.Task[object]]:
    """Deadlines that cancel tasks.

    aiohttp's tasks are asyncio's own, and cancelled as such. No other request suffers from that: what they have in
    common goes on.
    """
    return Deadlines(clock, seconds, lambda task, _: task.cancel())
