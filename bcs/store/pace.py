"""Runs long calculations beside everything else that the event loop has to do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Generic, TypeVar

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
        running = _Running(calculation)
        if not running.go_on():
            with paused():
                ended = False
                while not ended:
                    # To take it gives way to others, also where nobody else wants it.
                    async with self._turns:
                        ended = running.go_on()
        return running.result


class _Running(Generic[T]):
    """A calculation, and its result once it has ended."""

    result: T

    def __init__(self, calculation: Sliced[T]) -> None:
        self._calculation = calculation

    def go_on(self) -> bool:
        """Work for a turn; True if it ended."""
        turn_ends = perf_counter() + _TURN_SECONDS
        try:
            next(self._calculation)
            while perf_counter() < turn_ends:
                next(self._calculation)
        except StopIteration as ended:
            self.result = ended.value
            return True
        return False
