"""What entries of the history can be found by."""

from __future__ import annotations

from dataclasses import dataclass

FACTS, RESOLUTION, ERASURE = "facts", "resolution", "erasure"
"""The kinds of entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFilter:
    """What an entry must be like to be found; None for any.

    :param since_us: recorded then or later, in microseconds since 1970 UTC.
    :param until_us: recorded then or earlier.
    :param entry_type: `FACTS`, `RESOLUTION`, `ERASURE`, or the event type of an entry with facts.
    """

    since_us: int | None = None
    until_us: int | None = None
    correlation_id: str | None = None
    entry_type: str | None = None

    @property
    def empty(self) -> bool:
        """True if each entry is found."""
        return self == HistoryFilter()
