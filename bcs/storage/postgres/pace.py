"""How long PostgreSQL may take for what is large. Pure."""

from __future__ import annotations

# Ten times what a fact takes where nothing else is done.
_SECONDS_OF_A_FACT = 0.0002
# What takes longer can wait in the queue before the record, where nobody waits for it.
_LONGEST_SECONDS = 10.0


def extra_seconds(facts: int) -> float:
    """How much longer than a small amount so many facts may take.

    :param facts: see `bcs.domain.history.weight`.
    """
    return min(facts * _SECONDS_OF_A_FACT, _LONGEST_SECONDS)
