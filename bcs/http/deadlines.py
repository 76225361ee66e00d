"""Time limits. One task checks all of them: a timer for each request would cost more than the response itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel

T = TypeVar("T")

# A limit is checked this many times within its time. Two checks are at most this far apart.
_CHECKS_PER_LIMIT = 50
_LONGEST_STEP_SECONDS = 0.1
# A longer delay of the event loop does not count as the callers' time.
_STEPS_COUNTED = 5
# Thousands of idle connections may be overdue at once.
_ENDED_AT_A_TIME = 50


class LoopClock:
    """A clock that stops while the event loop is blocked.

    A blocked loop does not read from sockets, so this time must not make a caller late.

    :param shortest_seconds: the shortest time limit that uses this clock.
    """

    def __init__(self, shortest_seconds: float) -> None:
        self.now = 0.0
        self.step_seconds = min(shortest_seconds / _CHECKS_PER_LIMIT, _LONGEST_STEP_SECONDS)
        self._at_each_step: list[Callable[[], bool]] = []

    def at_each_step(self, check: Callable[[], bool]) -> None:
        """Call `check` at each step of the clock, and again after other tasks had a turn while `check` returns True."""
        self._at_each_step.append(check)

    async def run(self) -> None:
        """Run the clock until the task is cancelled."""
        while True:
            began = time.perf_counter()
            await anyio.sleep(self.step_seconds)
            self.now += min(time.perf_counter() - began, self.step_seconds * _STEPS_COUNTED)
            for check in self._at_each_step:
                while check():
                    await anyio.lowlevel.checkpoint()


class Deadlines(Generic[T]):
    """Items that have the same time limit, in the order in which their time began.

    :param seconds: the limit. The clock adds at most two steps.
    :param end: called with an item that is no longer watched. The second argument is False if the time of the item is
        over, and True if the item is ended early because there is no room.
    """

    def __init__(self, clock: LoopClock, seconds: float, end: Callable[[T, bool], object]) -> None:
        self._clock = clock
        self._seconds = seconds + clock.step_seconds
        self._end = end
        self._began: dict[T, float] = {}
        clock.at_each_step(self._end_overdue)

    def __len__(self) -> int:
        return len(self._began)

    def watch(self, item: T) -> None:
        """Start the time of an item now."""
        self._began[item] = self._clock.now

    def unwatch(self, item: T) -> bool:
        """Stop watching an item, because the item was in time.

        :returns: False if the item is not watched, because it was ended before.
        """
        return self._began.pop(item, None) is not None

    def waited_seconds(self) -> float:
        """How long the oldest item has been watched; -1 if no item is watched."""
        return self._clock.now - next(iter(self._began.values())) if self._began else -1.0

    def has_waited(self, item: T, seconds: float) -> bool:
        """True if an item has been watched for that long."""
        began = self._began.get(item)
        return began is not None and self._clock.now - began >= seconds

    def __contains__(self, item: object) -> bool:
        return item in self._began

    def end_oldest(self, *, early: bool = True) -> T:
        """End the item that has been watched longest.

        :returns: this item.
        """
        oldest = next(iter(self._began))
        self.end(oldest, early=early)
        return oldest

    def end(self, item: T, *, early: bool = True) -> None:
        """End an item that is watched."""
        del self._began[item]
        self._end(item, early)

    def _end_overdue(self) -> bool:
        """End some of the overdue items; True if more items are overdue."""
        for _ in range(_ENDED_AT_A_TIME):
            if self.waited_seconds() < self._seconds:
                return False
            self.end_oldest(early=False)
        return True


def task_deadlines(clock: LoopClock, seconds: float) -> Deadlines[asyncio.Task[object]]:
    """Deadlines that cancel tasks.

    The tasks of aiohttp are tasks of asyncio, so `Task.cancel` ends them. Other requests are not affected: the work
    that requests share goes on.
    """
    return Deadlines(clock, seconds, lambda task, _: task.cancel())
