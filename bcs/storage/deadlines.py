"""Deadlines for the answers of others, to which this process's own slowness does not count.

While the event loop is busy with one thing, or the machine with other processes, an answer may lie in the socket's
buffer unread. When the loop goes on at last, timers may run before sockets are read: whoever goes by the clock alone
then declares away what answered long ago. So the time for which the loop stood still is measured and given back.
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
# To read what has come while the loop stood still. The beat, by which that is measured, may have missed so much.
_GRACE_SECONDS = 0.05


class LoopLag:
    """How much time an event loop lost: it was late by so much, over all beats of a timer."""

    def __init__(self) -> None:
        self._lost_seconds = 0.0
        self._wait(asyncio.get_running_loop())

    def lost_seconds(self, now: float) -> float:
        """How much until now. Only the difference of two of these means anything.

        :param now: of the loop's clock.
        """
        return self._lost_seconds + max(0.0, now - self._due - _SLACK_SECONDS)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._lost_seconds = self.lost_seconds(loop.time())
        self._wait(loop)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        # The loop is not kept in here: then it could never be freed.
        self._due = loop.time() + _TICK_SECONDS
        loop.call_at(self._due, self._tick)


_lags: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopLag] = WeakKeyDictionary()


def _lag_of(loop: asyncio.AbstractEventLoop) -> LoopLag:
    lag = _lags.get(loop)
    if lag is None:
        lag = _lags[loop] = LoopLag()
    return lag


class Due:
    """When an answer is due.

    :param seconds: from now.
    :param at: the time at which to look whether it is over, of the loop's clock.
    """

    __slots__ = ("_lag", "_lost_seconds", "_was_late", "at")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        now = loop.time()
        self.at = now + seconds
        self._lag = lag = _lag_of(loop)
        self._lost_seconds = lag.lost_seconds(now)
        self._was_late = False

    def put_off(self, now: float) -> bool:
        """Called when it is due: True if the loop lost time since, and `at` is later by that.

        :param now: of the loop's clock.
        """
        late = now - self.at > _SLACK_SECONDS
        self._give_back(now)
        if late and not self._was_late:
            # Once only: a loop that is always late would put it off for ever.
            self._was_late = True
            self.at = max(self.at, now + _GRACE_SECONDS)
        return self.at > now

    def left_seconds(self, now: float) -> float:
        """How much time is left.

        :param now: of the loop's clock.
        """
        self._give_back(now)
        return self.at - now

    def _give_back(self, now: float) -> None:
        lost_seconds = self._lag.lost_seconds(now)
        self.at += lost_seconds - self._lost_seconds
        self._lost_seconds = lost_seconds


class Deadline:
    """Ends a block by cancellation once its time is over, without an error; see `expired`.

    For asyncio only. Not `anyio.CancelScope` with a deadline, which goes by the clock alone.

    :param seconds: for the block.
    :param shield: cancellation from outside waits until the block has ended.
    """

    __slots__ = ("_due", "_loop", "_scope", "_seconds", "_timer")

    def __init__(self, seconds: float, *, shield: bool = False) -> None:
        self._seconds = seconds
        self._scope = anyio.CancelScope(shield=shield)

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._due = Due(self._loop, self._seconds)
        self._scope.__enter__()
        self._timer = self._loop.call_at(self._due.at, self._look)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._timer.cancel()
        return bool(self._scope.__exit__(kind, error, traceback))

    @property
    def expired(self) -> bool:
        """True once the block was ended because its time was over."""
        return self._scope.cancelled_caught

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that passes in here does not count."""
        self._timer.cancel()
        left_seconds = self._due.left_seconds(self._loop.time())
        try:
            yield
        finally:
            self._due = Due(self._loop, left_seconds)
            self._timer = self._loop.call_at(self._due.at, self._look)

    def _look(self) -> None:
        if self._due.put_off(self._loop.time()):
            self._timer = self._loop.call_at(self._due.at, self._look)
        else:
            self._scope.cancel()
