"""Long calculations that can be left and gone on with, for whoever has other things to do meanwhile.

Such a calculation is a generator: it yields, at most some milliseconds after it yielded before, and returns its result.
What it reads must not change before it has ended.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

Sliced = Generator[None, None, T]

SLICE = 250
"""About so many essays are a slice."""


def at_once(calculation: Sliced[T]) -> T:
    """Run a calculation to its end."""
    try:
        while True:
            next(calculation)
    except StopIteration as ended:
        result: T = ended.value
        return result


def in_slices(items: Iterable[T], length: int = SLICE) -> Iterator[list[T]]:
    """Items in lists of so many at most."""
    waiting = iter(items)
    while some := list(islice(waiting, length)):
        yield some
