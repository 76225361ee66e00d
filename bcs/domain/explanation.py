"""Explains a resolution from the state of the batch: for each phase the causes, the essays, and the fact that decided.

The data alone imply the decision: `tests/support/explanation_checker.py` decides again from nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import itemgetter

from bcs.domain.facts import (
    EssayPhaseEnded,
    EssaysRegistered,
    Fact,
    Outcome,
    PhaseInvalidated,
    PhaseOutcome,
    PhaseReported,
)
from bcs.domain.pipelines import Phase
from bcs.domain.progress import BlockingEssay, Evaluation, PhaseExplanation, Standing
from bcs.domain.resolution import Decision, Reason, Resolution
from bcs.domain.slices import Sliced, at_once, in_slices
from bcs.domain.state import BatchState, Ending, Mark
from bcs.domain.times import format_timestamp

_NAMED = 5
"""How many essays a sentence names."""


class Cause(StrEnum):
    """A cause of the decision about a phase; several can hold at once."""

    NEVER_RECORDED = "never_recorded"
    """No fact about the phase is known."""
    ESSAYS_FAILED = "essays_failed"
    """The newest mark of these essays is that they failed in the phase."""
    ESSAYS_FAILED_BEFORE = "essays_failed_before"
    """These essays failed in a phase that this one requires."""
    ESSAYS_NOT_IN_OUTCOME = "essays_not_in_outcome"
    """The newest outcome of the phase does not list these essays, and they had joined before it."""
    NEW_ESSAYS = "new_essays"
    """These essays joined after the newest fact about the phase, or after the phase report."""
    ESSAYS_MISSING = "essays_missing"
    """No mark of the phase counts for these essays."""
    ESSAYS_NOT_NAMED = "essays_not_named"
    """More essays are expected than events have named."""
    NOT_REGISTERED = "not_registered"
    """The batch is not registered, so it may have more essays."""
    REPORTED_FAILED = "reported_failed"
    """The phase was reported to have failed, and no essay of the batch is known."""
    NO_ESSAYS = "no_essays"
    """No essay of the batch is known."""
    INVALIDATED = "invalidated"
    """Older facts about the phase no longer count."""
    SETTLED = "settled"
    """The phase is done under its policy, although not every essay completed it."""
    COMPLETED_BY_ESSAYS = "completed_by_essays"
    """These many essays completed the phase by their own events."""
    COMPLETED_BY_OUTCOME = "completed_by_outcome"
    """An outcome of the phase counts for these many essays."""
    COMPLETED_BY_REPORT = "completed_by_report"
    """The phase report counts for these many essays."""
    FORCED = "forced"
    """The request forces the phase to run."""
    DOWNSTREAM_OF_FORCED = "downstream_of_forced"
    """The phase runs again after phases that run because of what the request forces."""
    DEPENDENCY_RUNS_AGAIN = "dependency_runs_again"
    """The phase runs again after phases that it requires."""
    DEFINITION_CHANGED = "definition_changed"
    """The definition of the phase has changed since the phase completed; these many essays completed it later."""
    DEFINITION_UNKNOWN = "definition_unknown"
    """Under which definition the phase completed is not known; it counts as unchanged."""
    ASSUMED_COMPLETED = "assumed_completed"
    """The request assumes that the phase is complete."""
    ASSUMED_FAILED = "assumed_failed"
    """The request assumes that every essay failed in the phase."""
    NOT_SELECTED = "not_selected"
    """The request leaves the phase out."""


class FactKind(StrEnum):
    """The kind of a fact that decided."""

    ESSAY_PHASE_ENDED = "essay_phase_ended"
    PHASE_OUTCOME = "phase_outcome"
    PHASE_REPORTED = "phase_reported"
    PHASE_INVALIDATED = "phase_invalidated"
    ESSAY_JOINED = "essay_joined"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidingFact:
    """The fact that decided about a phase, as far as the state has it.

    :param phase: the phase of the fact; of `ESSAY_JOINED`, the explained phase.
    :param essay_id: the essay of the fact; None where the fact is not about a single essay.
    :param at_us: microseconds since 1970 UTC.
    """

    kind: FactKind
    phase: str
    essay_id: str | None = None
    at_us: int

    def is_in(self, facts: Iterable[Fact]) -> bool:
        """True if one of the facts can have set this value in the state."""
        return any(self._is(fact) for fact in facts)

    def _is(self, fact: Fact) -> bool:
        if fact.at_us != self.at_us:
            return False
        match self.kind:
            case FactKind.ESSAY_PHASE_ENDED if isinstance(fact, EssayPhaseEnded):
                return (fact.phase, fact.essay_id) == (self.phase, self.essay_id)
            case FactKind.ESSAY_PHASE_ENDED | FactKind.PHASE_OUTCOME if isinstance(fact, PhaseOutcome):
                named = self.essay_id is None or self.essay_id in fact.completed or self.essay_id in fact.failed
                return fact.phase == self.phase and named
            case FactKind.PHASE_INVALIDATED if isinstance(fact, PhaseInvalidated):
                return (fact.phase, fact.essay_id) == (self.phase, self.essay_id)
            case FactKind.ESSAY_JOINED:
                return self.essay_id in _essays_in(fact)
            case FactKind.PHASE_REPORTED if isinstance(fact, PhaseReported):
                return fact.phase == self.phase
        return False


def _essays_in(fact: Fact) -> Sequence[str]:
    if isinstance(fact, EssaysRegistered):
        return fact.essay_ids
    if isinstance(fact, PhaseOutcome):
        return (*fact.completed, *fact.failed)
    return (fact.essay_id,) if isinstance(fact, EssayPhaseEnded) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseCause:
    """A cause with its data. A field is None, or empty, where the cause has no such data.

    :param count: how many essays the cause is about.
    :param essays: their ids, sorted, where the cause is about particular essays.
    :param at_us: the time of the fact, or of the newest of several, in microseconds since 1970 UTC.
    :param status: the status of an outcome.
    :param phases: the required phases that run again.
    :param definitions: the hashes of the phase's definition before and now.
    """

    cause: Cause
    count: int | None = None
    essays: tuple[str, ...] = ()
    at_us: int | None = None
    status: str | None = None
    phases: tuple[str, ...] = ()
    definitions: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedPhase:
    """The decision about a phase, with everything that implies it.

    :param phase: the definition of the phase.
    :param total: how many essays are known, or expected if that is more.
    :param assumed: how the request assumes that the phase ended; None without such an assumption.
    :param facts: the progress of the phase, and the facts behind it.
    :param causes: the most important one first.
    :param decided_by: None where no single fact decided.
    """

    phase: Phase
    decision: Decision
    total: int
    assumed: Outcome | None
    facts: PhaseExplanation
    causes: tuple[PhaseCause, ...]
    decided_by: DecidingFact | None

    @property
    def since_us(self) -> int | None:
        """Since when the phase is complete, in microseconds since 1970 UTC; None where it is not."""
        if not self.facts.progress.complete:
            return None
        return max(
            (one.at_us for one in self.causes if one.cause in _COMPLETED and one.at_us is not None), default=None
        )

    @property
    def sentence(self) -> str:
        """The decision and its causes in a sentence, for a person."""
        what = "runs" if self.decision.runs else "is pruned" if self.decision.selected else "is left out"
        return f"{self.phase.name} {what}: {'; '.join(self._parts())}."

    def _parts(self) -> list[str]:
        causes = {one.cause: one for one in self.causes}
        parts: list[str] = []
        completed = [one for one in self.causes if one.cause in _COMPLETED]
        counted = bool(causes.keys() & _ABOUT_ESSAYS) and Cause.NEVER_RECORDED not in causes
        if Cause.SETTLED in causes or (counted and not causes.keys() & _BEFORE_ESSAYS):
            done = f"{self.facts.progress.completed} of {_essays(self.total)}"
            parts.append(f"settled, {done} completed it" if Cause.SETTLED in causes else f"{done} completed it")
        parts += [_text(one) for one in self.causes if one.cause not in _COMPLETED | {Cause.SETTLED}]
        if completed and self.since_us is not None:
            by = " and ".join(_completed_by(one, alone=len(completed) == 1) for one in completed)
            since = format_timestamp(self.since_us)
            parts.append(f"complete since {since} {by}")
        return parts


_COMPLETED = frozenset({Cause.COMPLETED_BY_ESSAYS, Cause.COMPLETED_BY_OUTCOME, Cause.COMPLETED_BY_REPORT})
_ABOUT_ESSAYS = frozenset(
    {
        Cause.ESSAYS_FAILED,
        Cause.ESSAYS_FAILED_BEFORE,
        Cause.ESSAYS_NOT_IN_OUTCOME,
        Cause.NEW_ESSAYS,
        Cause.ESSAYS_MISSING,
        Cause.ESSAYS_NOT_NAMED,
        Cause.NOT_REGISTERED,
        Cause.INVALIDATED,
    }
)
_BEFORE_ESSAYS = frozenset({Cause.ASSUMED_FAILED, Cause.NOT_SELECTED})
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


def explain_phase(evaluation: Evaluation, state: BatchState, phase: Phase, decision: Decision) -> ExplainedPhase:
    """See `explaining_phase`."""
    return at_once(explaining_phase(evaluation, state, phase, decision))


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


def _completed_by(cause: PhaseCause, *, alone: bool) -> str:
    """What completed the phase, as part of a sentence.

    :param alone: True if nothing else did; then the time is that since when the phase is complete.
    """
    count, at = cause.count or 0, "" if alone else f" at {format_timestamp(cause.at_us or 0)}"
    match cause.cause:
        case Cause.COMPLETED_BY_ESSAYS:
            return f"by the events of {_essays(count)}{at and f', the last one{at}'}"
        case Cause.COMPLETED_BY_OUTCOME:
            return f"by the outcome {cause.status}{at}{f' for {_essays(count)}' if count else ''}"
    return f"as reported{at}{f' for {_essays(count)}' if count else ''}"


def _text(one: PhaseCause) -> str:
    count, at = one.count or 0, format_timestamp(one.at_us) if one.at_us is not None else ""
    named = _names(one.essays)
    match one.cause:
        case Cause.NEVER_RECORDED:
            return "nothing was ever recorded about it"
        case Cause.ESSAYS_FAILED:
            return f"failed: {named}"
        case Cause.ESSAYS_FAILED_BEFORE:
            return f"failed in a phase that it requires: {named}"
        case Cause.ESSAYS_NOT_IN_OUTCOME:
            return f"not in the outcome {one.status} of {at}: {named}"
        case Cause.NEW_ESSAYS:
            return f"new since {at}: {named}"
        case Cause.ESSAYS_MISSING:
            return f"missing: {named}"
        case Cause.ESSAYS_NOT_NAMED:
            more = "1 more essay is" if count == 1 else f"{count} more essays are"
            return f"{more} expected, which no event has named"
        case Cause.NOT_REGISTERED:
            return f"the batch is not registered, and may have more than {_essays(count)}"
        case Cause.REPORTED_FAILED:
            return f"reported as failed at {at}"
        case Cause.NO_ESSAYS:
            return "no essay of the batch is known"
        case Cause.INVALIDATED:
            return f"facts before {at} no longer count"
        case Cause.FORCED:
            return "the request forces it to run"
        case Cause.DOWNSTREAM_OF_FORCED:
            return f"it must follow {' and '.join(one.phases)}, because of what the request forces"
        case Cause.DEPENDENCY_RUNS_AGAIN:
            return f"it must follow {' and '.join(one.phases)}, which {'run' if len(one.phases) > 1 else 'runs'} again"
        case Cause.DEFINITION_CHANGED if one.definitions is not None:
            before, after = one.definitions
            since = f", and {_essays(count)} completed it since" if count else ""
            return f"its definition changed since {at} ({before} → {after}){since}"
        case Cause.DEFINITION_UNKNOWN:
            return "under which definition it completed is not known, so it counts as unchanged"
        case Cause.ASSUMED_COMPLETED:
            return "it is assumed to be complete"
        case Cause.ASSUMED_FAILED:
            return "it is assumed to have failed"
    return "the request leaves it out"


def _names(essays: Sequence[str]) -> str:
    shown = ", ".join(essays[:_NAMED])
    return shown if len(essays) <= _NAMED else f"{shown} and {len(essays) - _NAMED} more"


def _essays(count: int) -> str:
    return f"{count} essay" if count == 1 else f"{count} essays"


def explain(
    evaluation: Evaluation, state: BatchState, phases: Sequence[Phase], resolution: Resolution
) -> tuple[ExplainedPhase, ...]:
    """Explain a whole resolution.

    :param phases: the phases of the requested pipeline, in order.
    """
    return tuple(
        explain_phase(evaluation, state, phase, decision)
        for phase, decision in zip(phases, resolution.decisions, strict=True)
    )
