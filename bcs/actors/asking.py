"""Asks an actor, and again when the actor died before it replied."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from bcs.supervision import ActorDied

T = TypeVar("T")

_PAUSE_SECONDS = 0.01


async def ask_with_retry(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is a reply; only the deadline of `ask` itself ends this.

    :param ask: must be harmless to repeat.
    """
    # No tenacity: it takes 30 us, and every event is asked for.
    while True:
        try:
            return await ask()
        except ActorDied:
            await anyio.sleep(_PAUSE_SECONDS)
