"""Asking an actor that may die over it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from tenacity import AsyncRetrying, retry_if_exception_type, wait_fixed

from bcs.supervision import ActorDied

T = TypeVar("T")

_PAUSE_SECONDS = 0.01


async def ask_again(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask once more whenever the actor died before it replied; the request's deadline ends it.

    :param ask: must be harmless to repeat.
    """
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(ActorDied), wait=wait_fixed(_PAUSE_SECONDS), sleep=anyio.sleep
    )

    # tenacity awaits only what is a coroutine function by itself.
    async def once() -> T:
        return await ask()

    return await retrying(once)
