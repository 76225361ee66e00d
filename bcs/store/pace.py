"""Runs long calculations beside everything else that the event loop has to do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import TypeVar

import anyio

from bcs.domain.slices import Sliced

T = TypeVar("T")

_TURN_SECONDS = 0.002
# An answer takes several rounds of the event loop: with a turn in each, it would take as many turns longer.
_REST_SECONDS = 0.002


class Pace:
    """Lets all else run for 2 ms after each 2 ms. However many calculations there are, one goes on in such a turn."""

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
            await anyio.sleep(_REST_SECONDS)
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
