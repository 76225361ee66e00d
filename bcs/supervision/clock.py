"""The clock of the event loop, with a fast read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import current_token

if TYPE_CHECKING:
    from collections.abc import Callable


class LoopClock:
    """Returns the same time as `anyio.current_time`, for one event loop: the loop of the first call.

    `anyio.current_time` looks up the running loop on each call, which is slower than to put an envelope into a mailbox.
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
