"""Runs long calculations beside everything else that the event loop has to do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import TypeVar

import anyio
from anyio.lowlevel import RunVar

from bcs.domain.slices import Sliced

T = TypeVar("T")

# An answer takes several rounds of the event loop, and may wait for a turn in each. So a turn is short, and others have
# as much time behind it. With a longer rest large batches took twice as long, and answers about small ones no less.
_TURN_SECONDS = 0.001
_PAUSE_SECONDS = 0.001

# All calculations of a loop share it, whoever runs them.
_turns: RunVar[anyio.Lock] = RunVar("turns")


async def paced(calculation: Sliced[T], paused: Callable[[], AbstractContextManager[None]] = nullcontext) -> T:
    """Run a calculation in turns of a millisecond, with a rest for all else behind each.

    However many calculations there are, one of them goes on in such a turn. Most are short, and over in their first.

    :param paused: entered where it takes longer, for a deadline that does not count this.
    """
    try:
        _work(calculation)
    except StopIteration as ended:
        result: T = ended.value
        return result
    with paused():
        return await _finish(calculation)


async def _finish(calculation: Sliced[T]) -> T:
    turns = _turns.get(None)
    if turns is None:
        turns = anyio.Lock()
        _turns.set(turns)
    while True:
        async with turns:
            await anyio.sleep(_PAUSE_SECONDS)
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
