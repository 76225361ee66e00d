"""What an explanation says of a phase: the causes, the essays and the fact that decided, as data and as a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

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
from bcs.domain.progress import PhaseExplanation
from bcs.domain.resolution import Decision
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
