"""What rows measure, and how they tell it."""

from collections.abc import Callable, Sequence
from math import ceil

# Takes the number of a row in docs/guarantees.md, and a text; see the fixture ``note_figure``.
Note = Callable[[int, str], None]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that so many percent of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, ceil(len(values) * percent / 100) - 1)]
