"""Asking an actor that may die over it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from bcs.supervision import ActorDied

T = TypeVar("T")

_PAUSE_SECONDS = 0.01


async def ask_again(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask once more whenever the actor died before it replied; the request's deadline ends it.

    :param ask: must be harmless to repeat.
    """
    # By hand: tenacity took 30 us, and this is asked for every event.
    while True:
        try:
            return await ask()
        except ActorDied:
            await anyio.sleep(_PAUSE_SECONDS)
