"""Deadlines for answers over the network, which do not count the time for which this process itself was blocked.

While the event loop is blocked, or the machine is busy with other processes, an answer may be unread in the socket's
buffer. When the loop continues, timers may run before sockets are read, so a deadline by the clock alone would expire
although the answer is there. So the time for which the loop was blocked is measured, and added to the deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self
from weakref import WeakKeyDictionary

import anyio

_TICK_SECONDS = 0.05
# Timers are never quite on time.
_SLACK_SECONDS = 0.01
# Time to read answers that arrived while the loop was blocked. The measurement may be wrong by one tick.
_GRACE_SECONDS = 0.05


class LoopLag:
    """Measures how long an event loop was blocked: the sum of the delays of a periodic timer."""

    def __init__(self) -> None:
        self._lost_seconds = 0.0
        self._wait(asyncio.get_running_loop())

    def lost_seconds(self, now: float) -> float:
        """The time lost until now, in seconds. Only the difference of two results has a meaning.

        :param now: the time of the loop's clock.
        """
        return self._lost_seconds + max(0.0, now - self._due - _SLACK_SECONDS)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._lost_seconds = self.lost_seconds(loop.time())
        self._wait(loop)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        # This object must not refer to the loop, or the loop could never be freed.
        self._due = loop.time() + _TICK_SECONDS
        loop.call_at(self._due, self._tick)


_lags: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopLag] = WeakKeyDictionary()


def lag_of(loop: asyncio.AbstractEventLoop) -> LoopLag:
    """The measurement of a loop, which all its deadlines share."""
    lag = _lags.get(loop)
    if lag is None:
        lag = _lags[loop] = LoopLag()
    return lag


class Due:
    """The time at which an answer is due.

    :param seconds: how long from now.
    :param now: the time of the loop's clock.
    :ivar at: when to call `postpone`, by the loop's clock.
    """

    __slots__ = ("_lag", "_lost_seconds", "_was_late", "at")

    def __init__(self, lag: LoopLag, seconds: float, now: float) -> None:
        self.at = now + seconds
        self._lag = lag
        self._lost_seconds = lag.lost_seconds(now)
        self._was_late = False

    def postpone(self, now: float) -> bool:
        """Add the time that the loop has lost to `at`. Call this when `at` is reached.

        :param now: the time of the loop's clock.
        :returns: False if the answer is overdue.
        """
        late = now - self.at > _SLACK_SECONDS
        self._add_lost_time(now)
        if late and not self._was_late:
            # Once only, because a loop that is always late would postpone the deadline for ever.
            self._was_late = True
            self.at = max(self.at, now + _GRACE_SECONDS)
        return self.at > now

    def left_seconds(self, now: float) -> float:
        """How many seconds are left.

        :param now: the time of the loop's clock.
        """
        self._add_lost_time(now)
        return self.at - now

    def _add_lost_time(self, now: float) -> None:
        lost_seconds = self._lag.lost_seconds(now)
        self.at += lost_seconds - self._lost_seconds
        self._lost_seconds = lost_seconds


class Deadline:
    """Cancels a block once its time is over, without an error; see `expired`.

    For asyncio only. The deadline of `anyio.CancelScope` uses the clock alone, so it is not used here.

    :param seconds: the time for the block.
    :param shield: True if cancellation from outside waits until the block has ended.
    """

    __slots__ = ("_due", "_loop", "_scope", "_seconds", "_timer")

    def __init__(self, seconds: float, *, shield: bool = False) -> None:
        self._seconds = seconds
        self._scope = anyio.CancelScope(shield=shield)

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._due = Due(lag_of(self._loop), self._seconds, self._loop.time())
        self._scope.__enter__()
        self._timer = self._loop.call_at(self._due.at, self._check)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._timer.cancel()
        return bool(self._scope.__exit__(kind, error, traceback))

    @property
    def expired(self) -> bool:
        """True if the block was cancelled because its time was over."""
        return self._scope.cancelled_caught

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose time does not count."""
        self._timer.cancel()
        left_seconds = self._due.left_seconds(self._loop.time())
        try:
            yield
        finally:
            self._due = Due(lag_of(self._loop), left_seconds, self._loop.time())
            self._timer = self._loop.call_at(self._due.at, self._check)

    def _check(self) -> None:
        if self._due.postpone(self._loop.time()):
            self._timer = self._loop.call_at(self._due.at, self._check)
        else:
            self._scope.cancel()
