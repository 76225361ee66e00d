"""What batches can be found by: the condition of their phases, and the time of their last change."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from bcs.domain.law import CompleteWhen, CompletionLaw
from bcs.domain.progress import BatchSummary


class Condition(StrEnum):
    """How a batch stands. Several conditions can hold at the same time."""

    BLOCKED = "blocked"
    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    STALE = "stale"
    UNREGISTERED = "unregistered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """What a batch must be like to be found.

    :param condition: None for any.
    :param phases: the phases that count; None for all that a batch has facts about.
    :param since_us: the last change was not earlier, in microseconds since 1970 UTC; None for any time.
    :param until_us: the last change was not later; None for any time.
    :param stale_us: an incomplete batch is stale after this time without a change.
    """

    condition: Condition | None
    phases: tuple[str, ...] | None
    since_us: int | None
    until_us: int | None
    stale_us: int

    def are_met_by(self, summary: BatchSummary, conditions: Collection[Condition], changed_at_us: int) -> bool:
        """True if a batch is found.

        :param conditions: all that hold, see `conditions_of`.
        """
        if self.since_us is not None and changed_at_us < self.since_us:
            return False
        if self.until_us is not None and changed_at_us > self.until_us:
            return False
        if self.condition is not None and self.condition not in conditions:
            return False
        if self.phases is None or self.condition not in (None, Condition.UNREGISTERED):
            return True
        return not summary.progress.keys().isdisjoint(self.phases)


def conditions_of(
    summary: BatchSummary, law: CompletionLaw, criteria: Criteria, *, changed_at_us: int, now_us: int
) -> list[Condition]:
    """All conditions that hold for a batch.

    :param changed_at_us: the batch's last change.
    """
    phases = summary.progress if criteria.phases is None else criteria.phases
    complete = bool(phases) and all(map(summary.complete, phases))
    holds = {
        Condition.BLOCKED: any(is_blocked_by_failures(summary, law, phase) for phase in phases),
        Condition.COMPLETE: complete,
        Condition.INCOMPLETE: not complete,
        Condition.STALE: not complete and now_us - changed_at_us > criteria.stale_us,
        Condition.UNREGISTERED: not summary.registered,
    }
    return [condition for condition, true in holds.items() if true]


def is_blocked_by_failures(summary: BatchSummary, law: CompletionLaw, phase: str) -> bool:
    """True if a phase can't become complete by essays that are still to end, because others have failed."""
    progress = summary.progress.get(phase)
    if progress is None or progress.complete:
        return False
    failed = progress.failed + progress.failed_before
    if law.policy(phase) is CompleteWhen.EVERY_ESSAY_COMPLETED:
        return failed > 0
    # A settled phase only needs one essay that completed it.
    return failed > 0 and not progress.completed and failed + progress.left_out == summary.known
