"""Explains a resolution from the state of the batch: for each phase the causes, the essays, and the fact that decided.

The data alone imply the decision: `tests/support/explanation_checker.py` decides again from nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter

from bcs.domain.explained import (
    Cause,
    DecidingFact,
    ExplainedPhase,
    FactKind,
    PhaseCause,
)
from bcs.domain.facts import (
    Outcome,
)
from bcs.domain.pipelines import Phase
from bcs.domain.progress import BlockingEssay, Evaluation, PhaseExplanation, Standing
from bcs.domain.resolution import Decision, Reason
from bcs.domain.slices import Sliced, in_slices
from bcs.domain.state import BatchState, Ending, Mark

_AGAIN = {
    Reason.FORCED: Cause.FORCED,
    Reason.DOWNSTREAM_OF_FORCED: Cause.DOWNSTREAM_OF_FORCED,
    Reason.DEPENDENCY_RUNS_AGAIN: Cause.DEPENDENCY_RUNS_AGAIN,
}
_INSTEAD = {
    Reason.NOT_SELECTED: Cause.NOT_SELECTED,
    Reason.ASSUMED_COMPLETED: Cause.ASSUMED_COMPLETED,
    Reason.ASSUMED_FAILED: Cause.ASSUMED_FAILED,
}
_OF_STANDING = {
    Standing.FAILED: Cause.ESSAYS_FAILED,
    Standing.FAILED_BEFORE: Cause.ESSAYS_FAILED_BEFORE,
    Standing.LEFT_OUT: Cause.ESSAYS_NOT_IN_OUTCOME,
    Standing.JOINED_AFTER_REPORT: Cause.NEW_ESSAYS,
}


def explaining_phase(
    evaluation: Evaluation, state: BatchState, phase: Phase, decision: Decision
) -> Sliced[ExplainedPhase]:
    """Explain the decision about one phase, in slices.

    :param evaluation: of the state, under the law of the definitions that decided.
    :param decision: made from the summary of the same state.
    """
    facts = yield from evaluation.explaining(phase.name)
    progress = facts.progress
    causes: list[PhaseCause] = []
    decided_by: DecidingFact | None = None
    assumed = None
    if decision.reason in _INSTEAD:
        causes.append(PhaseCause(cause=_INSTEAD[decision.reason]))
        if decision.reason is not Reason.NOT_SELECTED:
            assumed = Outcome.FAILED if decision.reason is Reason.ASSUMED_FAILED else Outcome.COMPLETED
    else:
        if decision.reason in _AGAIN:
            causes.append(PhaseCause(cause=_AGAIN[decision.reason], phases=decision.run_again_after))
        outdated = progress.older is not None and decision.changed is None
        if decision.complete and (outdated or not progress.complete):
            # A forced phase may be assumed to be complete, too; then its definition does not count, either.
            assumed = Outcome.COMPLETED
            causes.append(PhaseCause(cause=Cause.ASSUMED_COMPLETED))
        elif progress.complete:
            found = yield from _completed(evaluation, state, phase, facts)
            causes += _about_definition(state, phase, decision)
            causes += found[0]
            decided_by = found[1]
        else:
            incomplete = yield from _incomplete(evaluation, state, phase, facts)
            causes += incomplete[0]
            decided_by = incomplete[1]
    expected = state.expected.count if state.expected else 0
    return ExplainedPhase(
        phase=phase,
        decision=decision,
        total=max(len(state.first_seen_us), expected),
        assumed=assumed,
        facts=facts,
        causes=tuple(causes),
        decided_by=decided_by,
    )


def _about_definition(state: BatchState, phase: Phase, decision: Decision) -> list[PhaseCause]:
    """What the definition of a complete phase has to do with the decision."""
    changed = decision.changed
    if changed is not None:
        return [
            PhaseCause(
                cause=Cause.DEFINITION_CHANGED,
                count=changed.completed_since,
                at_us=changed.at_us,
                definitions=(changed.before, changed.after),
            )
        ]
    if phase.rerun_when_changed and not state.definitions.get(phase.name):
        return [PhaseCause(cause=Cause.DEFINITION_UNKNOWN)]
    return []


def _completed(
    evaluation: Evaluation, state: BatchState, phase: Phase, facts: PhaseExplanation
) -> Sliced[tuple[list[PhaseCause], DecidingFact | None]]:
    """The causes of a complete phase, and the newest of the facts that completed it."""
    report, marks = facts.report, evaluation.marks(phase.name)
    endings = {ending.at_us: ending for ending in state.outcomes.get(phase.name, {}).values()}
    by_outcome: dict[int, int] = {}
    by_report = by_essay = 0
    last: tuple[int, str] | None = None
    for some in in_slices(marks.items()):
        for essay_id, mark in some:
            if mark.outcome is not Outcome.COMPLETED:
                continue
            if mark is report:
                by_report += 1
            elif mark.at_us in endings:
                by_outcome[mark.at_us] = by_outcome.get(mark.at_us, 0) + 1
            else:
                by_essay += 1
                last = max(last or (mark.at_us, essay_id), (mark.at_us, essay_id))
        yield
    causes: list[PhaseCause] = []
    newest: list[DecidingFact] = []
    if not state.first_seen_us:
        return _completed_without_essays(phase.name, facts)
    progress = facts.progress
    if progress.completed < len(state.first_seen_us):
        causes.append(PhaseCause(cause=Cause.SETTLED, count=progress.completed))
        causes += yield from _unsuccessful(evaluation, phase.name, facts)
    if last is not None:
        causes.append(PhaseCause(cause=Cause.COMPLETED_BY_ESSAYS, count=by_essay, at_us=last[0]))
        kind = FactKind.ESSAY_PHASE_ENDED
        newest.append(DecidingFact(kind=kind, phase=phase.name, essay_id=last[1], at_us=last[0]))
    for at_us, count in sorted(by_outcome.items()):
        causes.append(_by_outcome(endings[at_us], count))
        newest.append(DecidingFact(kind=FactKind.PHASE_OUTCOME, phase=phase.name, at_us=at_us))
    if report is not None and (by_report or (progress.covered and not by_essay and not by_outcome)):
        causes.append(PhaseCause(cause=Cause.COMPLETED_BY_REPORT, count=by_report, at_us=report.at_us))
        newest.append(DecidingFact(kind=FactKind.PHASE_REPORTED, phase=phase.name, at_us=report.at_us))
    return causes, max(newest, key=lambda fact: fact.at_us, default=None)


def _completed_without_essays(phase: str, facts: PhaseExplanation) -> tuple[list[PhaseCause], DecidingFact | None]:
    report, ending = facts.report, facts.outcome
    if ending is not None and ending.speaks_for_all and (report is None or ending.at_us > report.at_us):
        decided_by = DecidingFact(kind=FactKind.PHASE_OUTCOME, phase=phase, at_us=ending.at_us)
        return [_by_outcome(ending, 0)], decided_by
    assert report is not None  # noqa: S101 (nothing else completes a phase of a batch without essays)
    decided_by = DecidingFact(kind=FactKind.PHASE_REPORTED, phase=phase, at_us=report.at_us)
    return [PhaseCause(cause=Cause.COMPLETED_BY_REPORT, count=0, at_us=report.at_us)], decided_by


def _by_outcome(ending: Ending, count: int) -> PhaseCause:
    return PhaseCause(cause=Cause.COMPLETED_BY_OUTCOME, count=count, at_us=ending.at_us, status=ending.status)


def _unsuccessful(evaluation: Evaluation, phase: str, facts: PhaseExplanation) -> Sliced[list[PhaseCause]]:
    """The essays that did not complete a phase that is settled all the same."""
    standing = evaluation.standings(phase)
    groups: dict[Cause, list[str]] = {}
    for some in in_slices(evaluation.essays):
        for essay_id in some:
            cause = _OF_STANDING.get(standing(essay_id))
            if cause is not None:
                groups.setdefault(cause, []).append(essay_id)
        yield
    return [_about(cause, essays, facts) for cause, essays in groups.items()]


def _incomplete(
    evaluation: Evaluation, state: BatchState, phase: Phase, facts: PhaseExplanation
) -> Sliced[tuple[list[PhaseCause], DecidingFact | None]]:
    """The causes of a phase that is not complete, and the newest fact that keeps it from that.

    No fact decided where only something is missing.
    """
    groups: dict[Cause, list[str]] = {}
    newest_us = max(_times(facts), default=None)
    newest_of: dict[Cause, BlockingEssay] = {}
    for some in in_slices(facts.held_back_by):
        for essay in some:
            cause = _OF_STANDING.get(essay.why)
            if cause is None:
                joined_later = newest_us is not None and essay.first_seen_us > newest_us
                cause = Cause.NEW_ESSAYS if joined_later else Cause.ESSAYS_MISSING
            groups.setdefault(cause, []).append(essay.essay_id)
            if cause not in newest_of or _decided_us(essay) > _decided_us(newest_of[cause]):
                newest_of[cause] = essay
        yield
    known, invalidations = len(state.first_seen_us), state.invalidations.get(phase.name)
    causes: list[PhaseCause] = []
    if invalidations:
        causes.append(PhaseCause(cause=Cause.INVALIDATED, at_us=max(invalidations.values())))
    elif newest_us is None and Cause.ESSAYS_FAILED_BEFORE not in groups:
        return [PhaseCause(cause=Cause.NEVER_RECORDED, count=known)], None
    causes += [_about(cause, groups[cause], facts, newest_us) for cause in Cause if cause in groups]
    if not known and facts.report is not None:
        causes.append(PhaseCause(cause=Cause.REPORTED_FAILED, at_us=facts.report.at_us))
    if facts.missing:
        causes.append(PhaseCause(cause=Cause.ESSAYS_NOT_NAMED, count=facts.missing))
    elif not known and facts.report is None:
        causes.append(PhaseCause(cause=Cause.NO_ESSAYS))
    if state.expected is None and known and not groups:
        causes.append(PhaseCause(cause=Cause.NOT_REGISTERED, count=known))
    decided = _decided_incomplete(evaluation, state, phase, facts, newest_of)
    return causes, max(decided, key=lambda fact: fact.at_us, default=None)


def _decided_us(essay: BlockingEssay) -> int:
    """The time of the fact that makes an essay block the phase, of essays with the same cause."""
    return essay.mark.at_us if essay.mark is not None else essay.first_seen_us


def _about(cause: Cause, essays: Sequence[str], facts: PhaseExplanation, newest_us: int | None = None) -> PhaseCause:
    at_us, status = None, None
    if cause is Cause.ESSAYS_NOT_IN_OUTCOME and facts.outcome is not None:
        at_us, status = facts.outcome.at_us, facts.outcome.status
    elif cause is Cause.NEW_ESSAYS:
        at_us = facts.report.at_us if facts.report is not None else newest_us
    return PhaseCause(cause=cause, count=len(essays), essays=tuple(essays), at_us=at_us, status=status)


def _times(facts: PhaseExplanation) -> Iterable[int]:
    """The times of the phase's newest facts that count."""
    known: list[Mark | Ending | None] = [facts.newest, facts.report, facts.outcome]
    return [one.at_us for one in known if one is not None]


def _decided_incomplete(
    evaluation: Evaluation,
    state: BatchState,
    phase: Phase,
    facts: PhaseExplanation,
    newest_of: Mapping[Cause, BlockingEssay],
) -> Iterator[DecidingFact]:
    """The newest fact of each cause.

    :param newest_of: the essay with the newest fact, for each cause.
    """
    name, report = phase.name, facts.report
    failed = newest_of.get(Cause.ESSAYS_FAILED)
    if failed is not None and failed.mark is not None:
        at_us = failed.mark.at_us
        if failed.mark is report:
            yield DecidingFact(kind=FactKind.PHASE_REPORTED, phase=name, at_us=at_us)
        else:
            by_outcome = any(ending.at_us == at_us for ending in state.outcomes.get(name, {}).values())
            kind = FactKind.PHASE_OUTCOME if by_outcome else FactKind.ESSAY_PHASE_ENDED
            yield DecidingFact(kind=kind, phase=name, essay_id=failed.essay_id, at_us=at_us)
    if Cause.ESSAYS_NOT_IN_OUTCOME in newest_of and facts.outcome is not None:
        yield DecidingFact(kind=FactKind.PHASE_OUTCOME, phase=name, at_us=facts.outcome.at_us)
    if Cause.ESSAYS_FAILED_BEFORE in newest_of:
        yield from _failed_before(evaluation, newest_of[Cause.ESSAYS_FAILED_BEFORE].essay_id, phase)
    if Cause.NEW_ESSAYS in newest_of:
        essay = newest_of[Cause.NEW_ESSAYS]
        kind, at_us = FactKind.ESSAY_JOINED, essay.first_seen_us
        yield DecidingFact(kind=kind, phase=name, essay_id=essay.essay_id, at_us=at_us)
    if not state.first_seen_us and report is not None:
        yield DecidingFact(kind=FactKind.PHASE_REPORTED, phase=name, at_us=report.at_us)
    if invalidations := state.invalidations.get(name):
        essay_or_all, at_us = max(invalidations.items(), key=itemgetter(1))
        yield DecidingFact(kind=FactKind.PHASE_INVALIDATED, phase=name, essay_id=essay_or_all, at_us=at_us)


def _failed_before(evaluation: Evaluation, essay_id: str, phase: Phase) -> list[DecidingFact]:
    for required in evaluation.upstream(phase.name):
        mark = evaluation.marks(required).get(essay_id)
        if mark is not None and mark.outcome is Outcome.FAILED:
            kind = FactKind.ESSAY_PHASE_ENDED
            return [DecidingFact(kind=kind, phase=required, essay_id=essay_id, at_us=mark.at_us)]
    return []
