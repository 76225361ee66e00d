"""Long calculations in short slices, so that the event loop can do other work between the slices.

Such a calculation is a generator: it yields every few milliseconds, and returns its result. The values that it reads
must not change before it has ended.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

Sliced = Generator[None, None, T]

SLICE = 250
"""How many essays a slice works on, about."""


def at_once(calculation: Sliced[T]) -> T:
    """Run a calculation to its end without a pause, and return its result."""
    try:
        while True:
            next(calculation)
    except StopIteration as ended:
        result: T = ended.value
        return result


def in_slices(items: Iterable[T], length: int = SLICE) -> Iterator[list[T]]:
    """The items in lists of at most `length`."""
    waiting = iter(items)
    while some := list(islice(waiting, length)):
        yield some
