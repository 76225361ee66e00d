"""What can become known about a batch. Facts are never taken back; a newer one outweighs an older one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a phase ended, for an essay or for a whole batch. The values are what the store keeps."""

    COMPLETED = "c"
    FAILED = "f"


@dataclass(frozen=True, slots=True)
class EssayPhaseEnded:
    """A phase ended for one essay.

    :param at_us: when, in microseconds since 1970 UTC; from 0 to the end of the year 9999.
    """

    phase: str
    essay_id: str
    outcome: Outcome
    at_us: int


@dataclass(frozen=True, slots=True)
class BatchPhaseEnded:
    """A phase ended in the same way for every essay that had joined the batch by then.

    :param at_us: when, in microseconds since 1970 UTC; from 0 to the end of the year 9999.
    """

    phase: str
    outcome: Outcome
    at_us: int


@dataclass(frozen=True, slots=True)
class EssaysRegistered:
    """Essays belong to the batch, and so many are expected in all.

    :param at_us: when, in microseconds since 1970 UTC; from 0 to the end of the year 9999.
    """

    essay_ids: tuple[str, ...]
    expected_count: int
    at_us: int


Fact = EssayPhaseEnded | BatchPhaseEnded | EssaysRegistered
