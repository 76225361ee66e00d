"""Runs long calculations without blocking the event loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import TypeVar

import anyio
from anyio.lowlevel import RunVar

from bcs.domain.slices import Sliced

T = TypeVar("T")

# An HTTP answer takes several rounds of the event loop, and may wait for a turn in each. So a turn is short, and other
# tasks get as much time after it. With longer pauses, answers about large batches took twice as long, and answers about
# small ones were not faster.
_TURN_SECONDS = 0.001
_PAUSE_SECONDS = 0.001

# All calculations of an event loop share this lock.
_turns: RunVar[anyio.Lock] = RunVar("turns")


async def paced(calculation: Sliced[T], paused: Callable[[], AbstractContextManager[None]] = nullcontext) -> T:
    """Run a calculation in turns of a millisecond, with a pause for other tasks after each.

    Only one calculation of the event loop runs in a turn. Most calculations end in their first turn.

    :param paused: a context for the further turns, which stops a deadline.
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
    """Work for one turn.

    :raises StopIteration: the calculation has ended; the value is its result.
    """
    turn_ends = perf_counter() + _TURN_SECONDS
    next(calculation)
    while perf_counter() < turn_ends:
        next(calculation)
