"""Asks an actor, and repeats the ask if the actor died before its reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from bcs.supervision import ActorDied

T = TypeVar("T")

_PAUSE_SECONDS = 0.01


async def ask_with_retry(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is a reply. Only the deadline of `ask` limits the time.

    :param ask: makes one ask; may be repeated without harm.
    """
    # Without tenacity, which takes 30 us for each call, and there is a call for every event.
    while True:
        try:
            return await ask()
        except ActorDied:
            await anyio.sleep(_PAUSE_SECONDS)
