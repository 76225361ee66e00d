"""Computes the progress of each phase from a batch's state, and the compact summary that resolution reads.

The rules are those of `docs/completion.md`: an outcome with lists counts for the essays that it lists; a report counts
for every essay that had joined by then; an outcome without lists counts for the essays that were due.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from enum import StrEnum
from functools import cached_property

from bcs.domain.facts import Outcome
from bcs.domain.law import CompleteWhen, CompletionLaw
from bcs.domain.slices import Sliced, at_once, in_slices
from bcs.domain.state import ALL_ESSAYS, BatchState, Ending, Mark

_NEVER = -1


@dataclass(frozen=True, slots=True)
class OlderDefinition:
    """A phase is complete, but not by the facts alone that were recorded under the definition in use.

    :param definition: the hash of the definition under which the newest of the other facts were recorded.
    :param at_us: the time of the newest of them, in microseconds since 1970 UTC.
    :param completed_since: essays that completed the phase later.
    """

    definition: str
    at_us: int
    completed_since: int


@dataclass(frozen=True, slots=True)
class PhaseProgress:
    """How far a phase is for a batch. Each known essay is counted at most once.

    :param complete: whether the phase is complete under its policy.
    :param completed: essays that completed the phase.
    :param failed: essays that failed in the phase.
    :param failed_before: essays without a mark for this phase that failed in a phase that it requires.
    :param left_out: other essays without a mark for this phase that had joined before the newest outcome.
    :param covered: a report counts for every known essay, and for the expected essays that no event has named.
    :param outcome_at_us: the time of the newest outcome that still counts; None where there is none.
    :param older: set if the phase is complete only by facts of an older definition, and is to run again for that.
    """

    complete: bool
    completed: int
    failed: int
    _: KW_ONLY
    failed_before: int = 0
    left_out: int = 0
    covered: bool = False
    outcome_at_us: int | None = None
    older: OlderDefinition | None = None


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """All that resolution needs of a batch; its size does not grow with the number of essays.

    :param version: rises with every commit to the batch.
    :param known: how many essays are known to belong to the batch.
    :param expected: how many essays the batch was registered with; None where it was not registered.
    :param progress: phase to its progress. A phase that is not in the mapping is incomplete.
    """

    version: int = 0
    known: int = 0
    expected: int | None = None
    progress: Mapping[str, PhaseProgress] = field(default_factory=dict)

    @property
    def registered(self) -> bool:
        """True if the batch was registered."""
        return self.expected is not None

    @property
    def unknown(self) -> bool:
        """True if no fact of the batch is stored."""
        return not (self.version or self.known or self.progress) and self.expected is None

    def complete(self, phase: str) -> bool:
        """True if a phase is complete."""
        progress = self.progress.get(phase)
        return progress is not None and progress.complete


class Standing(StrEnum):
    """The standing of one essay in one phase; each value but `COMPLETED` can block the phase."""

    COMPLETED = "completed"
    FAILED = "failed"
    FAILED_BEFORE = "failed_before"
    LEFT_OUT = "not_in_outcome"
    JOINED_AFTER_REPORT = "joined_after_report"
    NOT_KNOWN = "no_mark"


@dataclass(frozen=True, slots=True)
class BlockingEssay:
    """An essay that keeps a phase from being complete.

    :param why: its standing in the phase.
    :param first_seen_us: when the essay was first seen, in microseconds since 1970 UTC.
    :param mark: the mark with the outcome "failed"; None when no mark counts for the essay.
    """

    essay_id: str
    why: Standing
    first_seen_us: int
    mark: Mark | None


@dataclass(frozen=True, slots=True)
class PhaseExplanation:
    """A phase's progress with the facts behind it.

    :param complete_when: the phase's policy.
    :param outstanding: how many known essays have no mark for this phase.
    :param missing: how many expected essays no event has named and no report covers.
    :param held_back_by: the blocking essays, in the order of their ids.
    :param report: the newest report; None where it no longer counts.
    :param outcome: the newest outcome; None where it no longer counts.
    :param newest: the newest mark: an essay's, or the report.
    """

    phase: str
    _: KW_ONLY
    complete_when: CompleteWhen
    progress: PhaseProgress
    outstanding: int
    missing: int
    held_back_by: tuple[BlockingEssay, ...]
    report: Mark | None
    outcome: Ending | None
    newest: Mark | None


class Evaluation:
    """Evaluates one state under one law. Each phase is computed once, so the state must not change meanwhile.

    The first call about a phase takes time in proportion to the number of essays. `preparing` does this work in slices
    beforehand.
    """

    def __init__(self, state: BatchState, law: CompletionLaw) -> None:
        self._state = state
        self._law = law
        self._marks: dict[str, Mapping[str, Mark]] = {}

    @cached_property
    def essays(self) -> list[str]:
        """The known essays, sorted."""
        return sorted(self._state.first_seen_us)

    def upstream(self, phase: str) -> tuple[str, ...]:
        """The phases that a phase requires, directly or indirectly."""
        return self._law.upstream(phase)

    def preparing(self, phase: str) -> Sliced[None]:
        """Compute the marks of a phase, and of the phases that it requires."""
        for required in self._law.upstream(phase):
            yield from self._finding_marks(required)
        yield from self._finding_marks(phase)

    def marks(self, phase: str) -> Mapping[str, Mark]:
        """Essay to the newest mark that counts for it and is not invalidated; other essays are left out."""
        if phase not in self._marks:
            at_once(self._finding_marks(phase))
        return self._marks[phase]

    def standings(self, phase: str) -> Callable[[str], Standing]:
        """A function from a known essay to its standing in a phase."""
        first_seen_us, times = self._state.first_seen_us, self._state.invalidations.get(phase, {})
        own_marks = self.marks(phase)
        upstream = [marks for required in self._law.upstream(phase) if (marks := self.marks(required))]
        ending, report = self.outcome(phase), self.report(phase)

        def standing(essay_id: str) -> Standing:
            mark = own_marks.get(essay_id)
            if mark is not None:
                return Standing.COMPLETED if mark.outcome is Outcome.COMPLETED else Standing.FAILED
            for marks in upstream:
                mark = marks.get(essay_id)
                if mark is not None and mark.outcome is Outcome.FAILED:
                    return Standing.FAILED_BEFORE
            since_us = first_seen_us[essay_id]
            # `outcome` has checked the invalidation for all essays.
            if ending is not None and since_us < ending.at_us and times.get(essay_id, _NEVER) <= ending.at_us:
                return Standing.LEFT_OUT
            if report is not None and since_us > report.at_us:
                return Standing.JOINED_AFTER_REPORT
            return Standing.NOT_KNOWN

        return standing

    def report(self, phase: str) -> Mark | None:
        """The report on a phase; None where it no longer counts."""
        report = self._state.reports.get(phase)
        return report if report is not None and report.at_us >= self._invalidated_at(phase, ALL_ESSAYS) else None

    def outcome(self, phase: str) -> Ending | None:
        """The newest outcome of a phase; None where it no longer counts.

        At the same instant, an outcome without `speaks_for_all` wins.
        """
        endings = self._state.outcomes.get(phase)
        if not endings:
            return None
        newest = max(endings.values(), key=lambda ending: (ending.at_us, not ending.speaks_for_all, ending.status))
        return newest if newest.at_us >= self._invalidated_at(phase, ALL_ESSAYS) else None

    def progress(self, phase: str) -> PhaseProgress:
        """The progress of a phase."""
        return at_once(self.progressing(phase))

    def progressing(self, phase: str) -> Sliced[PhaseProgress]:
        """`progress` in slices."""
        progress = yield from self._counting(phase)
        other = newest_other_definition(self._state, self._law, phase) if progress.complete else None
        if other is None:
            return progress
        definition, at_us = other
        since = yield from self._newer_than(phase, at_us)._counting(phase)
        if since.complete:
            return progress
        return replace(progress, older=OlderDefinition(definition, at_us, since.completed))

    def _newer_than(self, phase: str, at_us: int) -> Evaluation:
        """An evaluation for which the facts about a phase count that are newer, and all facts about other phases."""
        invalidations = dict(self._state.invalidations)
        times = invalidations.get(phase, {})
        invalidations[phase] = {**times, ALL_ESSAYS: max(at_us + 1, times.get(ALL_ESSAYS, _NEVER))}
        return Evaluation(replace(self._state, invalidations=invalidations), self._law)

    def _counting(self, phase: str) -> Sliced[PhaseProgress]:
        """The progress of a phase, whatever the definitions of its facts."""
        state, ending = self._state, self.outcome(phase)
        outcome_at_us = ending.at_us if ending else None
        known = state.first_seen_us
        if not known:
            return PhaseProgress(self._complete_without_essays(phase), 0, 0, outcome_at_us=outcome_at_us)
        yield from self._finding_marks(phase)
        marks = self.marks(phase)
        completed = sum(mark.outcome is Outcome.COMPLETED for mark in marks.values())
        failed = len(marks) - completed
        before = left_out = 0
        if len(marks) < len(known):
            yield from self.preparing(phase)
            standing = self.standings(phase)
            for essays in in_slices(known):
                standings = [standing(essay) for essay in essays if essay not in marks]
                before += standings.count(Standing.FAILED_BEFORE)
                left_out += standings.count(Standing.LEFT_OUT)
                yield
        covered = self._covered(phase)
        expected = state.expected.count if state.expected else None
        return PhaseProgress(
            are_all_done(self._law.policy(phase), len(known), completed, failed, before, left_out)
            and (covered or are_enough_known(self._law, len(known), expected)),
            completed,
            failed,
            failed_before=before,
            left_out=left_out,
            covered=covered,
            outcome_at_us=outcome_at_us,
        )

    def explain(self, phase: str) -> PhaseExplanation:
        """A phase's progress, the facts behind it, and the essays that keep it from being complete."""
        return at_once(self.explaining(phase))

    def explaining(self, phase: str) -> Sliced[PhaseExplanation]:
        """`explain` in slices."""
        yield from self.preparing(phase)
        progress = yield from self.progressing(phase)
        blocking = yield from self._blocking(phase, progress)
        state, report = self._state, self.report(phase)
        candidates = [*self.marks(phase).values(), *([report] if report else [])]
        expected = state.expected.count if state.expected else 0
        return PhaseExplanation(
            phase,
            complete_when=self._law.policy(phase),
            progress=progress,
            outstanding=len(state.first_seen_us) - progress.completed - progress.failed,
            missing=0 if progress.covered else max(0, expected - len(state.first_seen_us)),
            held_back_by=tuple(blocking),
            report=report,
            outcome=self.outcome(phase),
            newest=max(candidates, key=lambda mark: mark.at_us, default=None),
        )

    def _blocking(self, phase: str, progress: PhaseProgress) -> Sliced[list[BlockingEssay]]:
        settled = {Standing.COMPLETED}
        if self._law.policy(phase) is CompleteWhen.EVERY_ESSAY_SETTLED and progress.completed:
            settled |= {Standing.FAILED, Standing.FAILED_BEFORE, Standing.LEFT_OUT}
        first_seen_us, marks = self._state.first_seen_us, self.marks(phase)
        standing = self.standings(phase)
        blocking: list[BlockingEssay] = []
        for essays in in_slices(self.essays):
            for essay_id in essays:
                why = standing(essay_id)
                if why not in settled:
                    blocking.append(BlockingEssay(essay_id, why, first_seen_us[essay_id], marks.get(essay_id)))
            yield
        return blocking

    def _finding_marks(self, phase: str) -> Sliced[None]:
        if phase in self._marks:
            return
        state = self._state
        invalidated = state.invalidations.get(phase)
        report, ending = self.report(phase), self.outcome(phase)
        own = yield from self._own_marks(phase)
        covers_due = ending is not None and ending.speaks_for_all
        if invalidated is None and report is None and not covers_due and own.keys() <= state.first_seen_us.keys():
            self._marks[phase] = own
            return
        others: list[tuple[Mark, bool]] = [] if report is None else [(report, False)]
        due: list[Mapping[str, Mark]] = []
        if ending is not None and covers_due:
            others.append((Mark(Outcome.COMPLETED, ending.at_us), True))
            for required in self._law.requires(phase):
                yield from self._finding_marks(required)
                due.append(self.marks(required))
        marks: dict[str, Mark] = {}
        for essays in in_slices(state.first_seen_us.items()):
            for essay_id, since_us in essays:
                at_least_us = self._invalidated_at(phase, essay_id) if invalidated else _NEVER
                mark = own.get(essay_id)
                if mark is not None and mark.at_us < at_least_us:
                    mark = None
                # On a tie the essay's own mark counts, then the report.
                for other, for_those_due in others:
                    if since_us > other.at_us or other.at_us < at_least_us:
                        continue
                    if mark is not None and other.at_us <= mark.at_us:
                        continue
                    if not for_those_due or _completed_in_all(due, essay_id):
                        mark = other
                if mark is not None:
                    marks[essay_id] = mark
            yield
        self._marks[phase] = marks

    def _own_marks(self, phase: str) -> Sliced[Mapping[str, Mark]]:
        state = self._state
        timed, by_key = state.essay_marks.get(phase, {}), state.outcome_marks.get(phase)
        if not by_key:
            return timed
        own = dict(timed)
        for key, listed in by_key.items():
            ending = state.outcomes[phase][key]
            marks = {outcome: Mark(outcome, ending.at_us) for outcome in Outcome}
            for essays in in_slices(listed.items()):
                for essay_id, outcome in essays:
                    known = own.get(essay_id)
                    if known is None or marks[outcome].supersedes(known):
                        own[essay_id] = marks[outcome]
                yield
        return own

    def _complete_without_essays(self, phase: str) -> bool:
        report, ending = self.report(phase), self.outcome(phase)
        if ending is not None and ending.speaks_for_all and (report is None or ending.at_us > report.at_us):
            return True
        return report is not None and report.outcome is Outcome.COMPLETED

    def _covered(self, phase: str) -> bool:
        report = self.report(phase)
        if report is None or report.outcome is not Outcome.COMPLETED:
            return False
        # An essay that joined later shows that the batch was still growing when the report was made.
        return max(self._state.first_seen_us.values()) <= report.at_us

    def _invalidated_at(self, phase: str, essay_id: str | None) -> int:
        times = self._state.invalidations.get(phase)
        if not times:
            return _NEVER
        return max(times.get(ALL_ESSAYS, _NEVER), times.get(essay_id, _NEVER))


def newest_other_definition(state: BatchState, law: CompletionLaw, phase: str) -> tuple[str, int] | None:
    """The definition, other than that in use, under which facts of a phase were recorded last, and their newest time.

    :returns: None if no fact is known to be recorded under another definition, or if the phase does not run again when
        its definition changes.
    """
    in_use = law.definitions.get(phase)
    recorded = state.definitions.get(phase)
    if in_use is None or not recorded:
        return None
    others = ((at_us, definition) for definition, at_us in recorded.items() if definition != in_use)
    at_us, definition = max(others, default=(_NEVER, ""))
    return (definition, at_us) if definition else None


def are_all_done(
    policy: CompleteWhen, known: int, completed: int, failed: int, failed_before: int, left_out: int
) -> bool:
    """True if no known essay keeps a phase from being complete; see `PhaseProgress` for the counts."""
    if policy is CompleteWhen.EVERY_ESSAY_COMPLETED:
        return completed == known
    return completed > 0 and completed + failed + failed_before + left_out == known


def are_enough_known(law: CompletionLaw, known: int, expected: int | None) -> bool:
    """True if all expected essays are known, or the law allows a batch that is not registered."""
    return not law.require_registration if expected is None else known >= expected


def summarize(state: BatchState, law: CompletionLaw, version: int) -> BatchSummary:
    """The summary of a state under a law."""
    return at_once(summarizing(state, law, version))


def summarizing(state: BatchState, law: CompletionLaw, version: int) -> Sliced[BatchSummary]:
    """`summarize` in slices."""
    evaluation = Evaluation(state, law)
    progress: dict[str, PhaseProgress] = {}
    for phase in sorted(state.phases):
        progress[phase] = yield from evaluation.progressing(phase)
    expected = state.expected.count if state.expected else None
    return BatchSummary(version, len(state.first_seen_us), expected, progress)


def _completed_in_all(due: Iterable[Mapping[str, Mark]], essay_id: str) -> bool:
    """True if the essay completed every phase that this one requires.

    :param due: the marks of each of these phases.
    """
    for marks in due:
        mark = marks.get(essay_id)
        if mark is None or mark.outcome is not Outcome.COMPLETED:
            return False
    return True
