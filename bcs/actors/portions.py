"""How much is done at a time, where what weighs is not the number of items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

_GROWTH = 1.05


def portions(items: Iterable[T], weigh: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Items in groups, each of them as heavy as allowed at most. An item that is heavier is alone.

    :param weigh: how heavy an item is.
    :param most: how heavy a group may be.
    """
    portion: list[T] = []
    size = 0
    for item in items:
        more = weigh(item)
        if portion and size + more > most:
            yield portion
            portion, size = [], 0
        portion.append(item)
        size += more
    if portion:
        yield portion


@dataclass(slots=True)
class Amount:
    """How much is tried at a time: half of what was too much, and slowly more again.

    :param most: how much at most, and at first.
    """

    most: int
    _now: float = field(init=False)

    def __post_init__(self) -> None:
        self._now = self.most

    @property
    def now(self) -> int:
        """How much to try."""
        return int(self._now)

    def was_too_much(self, tried: int) -> None:
        """So much was tried, and failed."""
        self._now = max(1.0, min(self._now, tried / 2))

    def was_taken(self) -> None:
        """A try went well."""
        self._now = min(float(self.most), self._now * _GROWTH)
