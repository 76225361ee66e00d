"""Limits the work of one step, by weight and not by the number of items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

_GROWTH = 1.05


def portions(items: Iterable[T], weigh: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Items in groups with a limited weight. An item that exceeds the limit has its own group.

    :param weigh: returns the weight of an item.
    :param most: the largest weight of a group.
    """
    group: list[T] = []
    size = 0
    for item in items:
        more = weigh(item)
        if group and size + more > most:
            yield group
            group, size = [], 0
        group.append(item)
        size += more
    if group:
        yield group


@dataclass(slots=True)
class Amount:
    """An adaptive size of a step: halved after a failure, and slowly larger after successes.

    :param most: the first and the largest size.
    """

    most: int
    _now: float = field(init=False)

    def __post_init__(self) -> None:
        self._now = self.most

    @property
    def now(self) -> int:
        """The size of the next step."""
        return int(self._now)

    def was_too_much(self, tried: int) -> None:
        """Reduce the size after a step of this size failed."""
        self._now = max(1.0, min(self._now, tried / 2))

    def was_taken(self) -> None:
        """Increase the size after a successful step."""
        self._now = min(float(self.most), self._now * _GROWTH)
