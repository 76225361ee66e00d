"""From a batch's state to a verdict for each phase, and the compact summary that resolution reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bcs.domain.facts import Outcome
from bcs.domain.state import BatchState, Mark


@dataclass(frozen=True, slots=True)
class PhaseVerdict:
    """Whether a phase is complete for a batch, and the counts behind it.

    :param completed: essays for which the phase is effectively completed.
    :param failed: essays for which it effectively failed.
    """

    complete: bool
    completed: int
    failed: int


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """All that resolution needs to know of a batch; its size does not grow with the number of essays.

    :param version: rises with every commit to the batch.
    :param known: how many essays are known to belong to the batch.
    :param expected: how many it was registered with; None when it never was.
    :param verdicts: the phases that anything is known about. All others are incomplete.
    """

    version: int = 0
    known: int = 0
    expected: int | None = None
    verdicts: Mapping[str, PhaseVerdict] = field(default_factory=dict)

    def complete(self, phase: str) -> bool:
        """Whether a phase is complete."""
        verdict = self.verdicts.get(phase)
        return verdict is not None and verdict.complete


def effective_mark(state: BatchState, phase: str, essay_id: str) -> Mark | None:
    """How a phase ended for an essay: by its own mark or by the batch's, whichever is newer.

    A batch mark speaks only for essays that had joined by then; at the same instant, the essay's own mark counts.
    """
    own = state.essay_marks.get(phase, {}).get(essay_id)
    whole = state.batch_marks.get(phase)
    if whole is None or state.known_since_us.get(essay_id, whole.at_us + 1) > whole.at_us:
        return own
    if own is None or whole.at_us > own.at_us:
        return whole
    return own


def judge(state: BatchState, phase: str) -> PhaseVerdict:
    """Whether a phase is complete: for every essay that is known, and no essay may be missing.

    With fewer essays known than expected, only a batch mark can speak for the missing ones, and only if every known
    essay had joined by then: a later joiner shows that the batch was still growing when the mark was made.
    """
    whole = state.batch_marks.get(phase)
    whole_completed = whole is not None and whole.outcome is Outcome.COMPLETED
    known = state.known_since_us
    if not known:
        return PhaseVerdict(whole_completed, 0, 0)
    completed = failed = 0
    for essay_id in known:
        mark = effective_mark(state, phase, essay_id)
        if mark is not None:
            if mark.outcome is Outcome.COMPLETED:
                completed += 1
            else:
                failed += 1
    none_missing = state.expected is None or len(known) >= state.expected.count
    covered = whole is not None and whole_completed and max(known.values()) <= whole.at_us
    return PhaseVerdict(completed == len(known) and (none_missing or covered), completed, failed)


def summarize(state: BatchState, version: int) -> BatchSummary:
    """The summary of a state."""
    return BatchSummary(
        version,
        len(state.known_since_us),
        state.expected.count if state.expected else None,
        {phase: judge(state, phase) for phase in sorted(state.phases)},
    )
