"""Runs long calculations beside everything else that the event loop has to do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import TypeVar

import anyio

from bcs.domain.slices import Sliced

T = TypeVar("T")

_TURN_SECONDS = 0.005


class Pace:
    """Lets all else run after each 5 ms. However many calculations there are, one of them goes on in such a turn."""

    def __init__(self) -> None:
        self._turns = anyio.Lock()

    async def run(self, calculation: Sliced[T], paused: Callable[[], AbstractContextManager[None]] = nullcontext) -> T:
        """Run a calculation. Most are short, and over in their first turn.

        :param paused: entered where it takes longer, for a deadline that does not count this.
        """
        try:
            _work(calculation)
        except StopIteration as ended:
            result: T = ended.value
            return result
        with paused():
            return await self._finish(calculation)

    async def _finish(self, calculation: Sliced[T]) -> T:
        while True:
            # To take it gives way to others, also where nobody else wants it.
            async with self._turns:
                try:
                    _work(calculation)
                except StopIteration as ended:
                    result: T = ended.value
                    return result


def _work(calculation: Sliced[T]) -> None:
    """Work for a turn.

    :raises StopIteration: it has ended, with its result.
    """
    turn_ends = perf_counter() + _TURN_SECONDS
    next(calculation)
    while perf_counter() < turn_ends:
        next(calculation)
