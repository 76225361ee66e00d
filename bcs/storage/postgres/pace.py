"""How long PostgreSQL may take for large writes. Pure."""

from __future__ import annotations

# Ten times the duration of a fact on an idle server.
_SECONDS_OF_A_FACT = 0.0002
# Larger writes can go through the archive queue, where no caller waits for them.
_LONGEST_SECONDS = 10.0


def extra_seconds(facts: int) -> float:
    """How much longer than a small write a write of so many facts may take.

    :param facts: see `bcs.domain.history.weight`.
    """
    return min(facts * _SECONDS_OF_A_FACT, _LONGEST_SECONDS)
