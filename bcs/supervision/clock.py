"""The clock of the event loop, quicker to read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import current_token

if TYPE_CHECKING:
    from collections.abc import Callable


class LoopClock:
    """Tells what `anyio.current_time` does, in one event loop: that of the first call.

    anyio finds out at each call which loop runs, which takes longer than to put an envelope into a mailbox.
    """

    __slots__ = ("_now",)

    def __init__(self) -> None:
        self._now: Callable[[], float] = self._find

    def __call__(self) -> float:
        """The time in seconds; only differences mean anything."""
        return self._now()

    def _find(self) -> float:
        loop = current_token().native_token
        self._now = loop.time if isinstance(loop, asyncio.AbstractEventLoop) else anyio.current_time
        return self._now()
