"""From a batch's state to the progress of each phase, and to the compact summary that resolution reads.

The rules are those of the project's design, "Batch state": a list speaks for the essays that it names; a report speaks
for every essay that had joined by then; an outcome that names nobody speaks for the essays that were due.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from functools import cached_property

from bcs.domain.facts import Outcome
from bcs.domain.law import CompleteWhen, CompletionLaw
from bcs.domain.slices import Sliced, at_once, in_slices
from bcs.domain.state import ALL_ESSAYS, BatchState, Ending, Mark

_NEVER = -1


@dataclass(frozen=True, slots=True)
class PhaseProgress:
    """How far a phase is for a batch. Each known essay is counted at most once.

    :param complete: by the phase's policy.
    :param completed: essays that completed it.
    :param failed: essays that failed in it.
    :param failed_before: essays of which nothing is known here, and that failed in a phase that this one requires.
    :param left_out: other essays of which nothing is known here, and that had joined before the newest outcome.
    :param covered: a report speaks for every known essay, and for those that nobody has named.
    :param outcome_at_us: when the newest outcome that still counts was said; None where there is none.
    """

    complete: bool
    completed: int
    failed: int
    _: KW_ONLY
    failed_before: int = 0
    left_out: int = 0
    covered: bool = False
    outcome_at_us: int | None = None


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """All that resolution needs to know of a batch; its size does not grow with the number of essays.

    :param version: rises with every commit to the batch.
    :param known: how many essays are known to belong to the batch.
    :param expected: how many it was registered with; None when it never was.
    :param progress: of the phases that anything is known about. All others are incomplete.
    """

    version: int = 0
    known: int = 0
    expected: int | None = None
    progress: Mapping[str, PhaseProgress] = field(default_factory=dict)

    @property
    def registered(self) -> bool:
        """True if the batch was registered."""
        return self.expected is not None

    def complete(self, phase: str) -> bool:
        """True if a phase is complete."""
        progress = self.progress.get(phase)
        return progress is not None and progress.complete


class Standing(StrEnum):
    """How one essay stands in one phase; all but `COMPLETED` can hold the phase back."""

    COMPLETED = "completed"
    FAILED = "failed"
    FAILED_BEFORE = "failed_before"
    LEFT_OUT = "not_in_outcome"
    JOINED_AFTER_REPORT = "joined_after_report"
    NOT_KNOWN = "no_mark"


@dataclass(frozen=True, slots=True)
class BlockingEssay:
    """An essay that holds a phase back.

    :param first_seen_us: when the essay became known, in microseconds since 1970 UTC.
    :param mark: the one that says "failed"; None when nothing speaks for the essay.
    """

    essay_id: str
    why: Standing
    first_seen_us: int
    mark: Mark | None


@dataclass(frozen=True, slots=True)
class PhaseExplanation:
    """A phase's progress with all that led to it.

    :param complete_when: the phase's policy.
    :param outstanding: known essays of which nothing is known here, for whatever reason.
    :param missing: expected essays that nobody has named, and for which no report speaks.
    :param held_back_by: in the order of their ids.
    :param report: the newest report, where it still counts.
    :param outcome: the newest outcome, where it still counts.
    :param newest: the newest mark of all: an essay's, or the report.
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
    """One state under one law. Each phase is worked out once, so the state must not change meanwhile.

    What is asked of a phase first may take as long as its essays are many. `preparing` does that in slices beforehand.
    """

    def __init__(self, state: BatchState, law: CompletionLaw) -> None:
        self._state = state
        self._law = law
        self._words: dict[str, Mapping[str, Mark]] = {}

    @cached_property
    def essays(self) -> list[str]:
        """The known essays, sorted."""
        return sorted(self._state.first_seen_us)

    def preparing(self, phase: str) -> Sliced[None]:
        """Find the words on a phase, and on those that it requires."""
        for required in self._law.upstream(phase):
            yield from self._finding_words(required)
        yield from self._finding_words(phase)

    def words(self, phase: str) -> Mapping[str, Mark]:
        """The newest word on each known essay that is not invalidated; none for an essay of which nothing is known."""
        if phase not in self._words:
            at_once(self._finding_words(phase))
        return self._words[phase]

    def standings(self, phase: str) -> Callable[[str], Standing]:
        """Tells of a known essay how it stands in a phase."""
        first_seen_us, times = self._state.first_seen_us, self._state.invalidations.get(phase, {})
        own_words = self.words(phase)
        upstream = [words for required in self._law.upstream(phase) if (words := self.words(required))]
        ending, report = self.outcome(phase), self.report(phase)

        def standing(essay_id: str) -> Standing:
            word = own_words.get(essay_id)
            if word is not None:
                return Standing.COMPLETED if word.outcome is Outcome.COMPLETED else Standing.FAILED
            for words in upstream:
                word = words.get(essay_id)
                if word is not None and word.outcome is Outcome.FAILED:
                    return Standing.FAILED_BEFORE
            since_us = first_seen_us[essay_id]
            # `outcome` knows of what is invalidated for all.
            if ending is not None and since_us < ending.at_us and times.get(essay_id, _NEVER) <= ending.at_us:
                return Standing.LEFT_OUT
            if report is not None and since_us > report.at_us:
                return Standing.JOINED_AFTER_REPORT
            return Standing.NOT_KNOWN

        return standing

    def report(self, phase: str) -> Mark | None:
        """The report on a phase, where it still counts."""
        report = self._state.reports.get(phase)
        return report if report is not None and report.at_us >= self._invalidated_at(phase, ALL_ESSAYS) else None

    def outcome(self, phase: str) -> Ending | None:
        """The newest outcome of a phase, where it still counts; at the same instant one that speaks for nobody."""
        endings = self._state.outcomes.get(phase)
        if not endings:
            return None
        newest = max(endings.values(), key=lambda ending: (ending.at_us, not ending.speaks_for_all, ending.status))
        return newest if newest.at_us >= self._invalidated_at(phase, ALL_ESSAYS) else None

    def progress(self, phase: str) -> PhaseProgress:
        """How far a phase is."""
        return at_once(self.progressing(phase))

    def progressing(self, phase: str) -> Sliced[PhaseProgress]:
        """The same in slices."""
        state, ending = self._state, self.outcome(phase)
        outcome_at_us = ending.at_us if ending else None
        known = state.first_seen_us
        if not known:
            return PhaseProgress(self._complete_without_essays(phase), 0, 0, outcome_at_us=outcome_at_us)
        yield from self._finding_words(phase)
        words = self.words(phase)
        completed = sum(word.outcome is Outcome.COMPLETED for word in words.values())
        failed = len(words) - completed
        before = left_out = 0
        if len(words) < len(known):
            yield from self.preparing(phase)
            standing = self.standings(phase)
            for essays in in_slices(known):
                standings = [standing(essay) for essay in essays if essay not in words]
                before += standings.count(Standing.FAILED_BEFORE)
                left_out += standings.count(Standing.LEFT_OUT)
                yield
        if self._law.policy(phase) is CompleteWhen.EVERY_ESSAY_COMPLETED:
            all_done = completed == len(known)
        else:
            all_done = completed > 0 and completed + failed + before + left_out == len(known)
        covered = self._covered(phase)
        complete = all_done and (covered or self._enough_known())
        return PhaseProgress(
            complete,
            completed,
            failed,
            failed_before=before,
            left_out=left_out,
            covered=covered,
            outcome_at_us=outcome_at_us,
        )

    def explain(self, phase: str) -> PhaseExplanation:
        """What is known of a phase, and what keeps it from being complete."""
        return at_once(self.explaining(phase))

    def explaining(self, phase: str) -> Sliced[PhaseExplanation]:
        """The same in slices."""
        yield from self.preparing(phase)
        progress = yield from self.progressing(phase)
        blocking = yield from self._blocking(phase, progress)
        state, report = self._state, self.report(phase)
        marks = [*self.words(phase).values(), *([report] if report else [])]
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
            newest=max(marks, key=lambda mark: mark.at_us, default=None),
        )

    def _blocking(self, phase: str, progress: PhaseProgress) -> Sliced[list[BlockingEssay]]:
        settled = {Standing.COMPLETED}
        if self._law.policy(phase) is CompleteWhen.EVERY_ESSAY_SETTLED and progress.completed:
            settled |= {Standing.FAILED, Standing.FAILED_BEFORE, Standing.LEFT_OUT}
        first_seen_us, words = self._state.first_seen_us, self.words(phase)
        standing = self.standings(phase)
        blocking: list[BlockingEssay] = []
        for essays in in_slices(self.essays):
            for essay_id in essays:
                why = standing(essay_id)
                if why not in settled:
                    blocking.append(BlockingEssay(essay_id, why, first_seen_us[essay_id], words.get(essay_id)))
            yield
        return blocking

    def _finding_words(self, phase: str) -> Sliced[None]:
        if phase in self._words:
            return
        state = self._state
        invalidated = state.invalidations.get(phase)
        report, ending = self.report(phase), self.outcome(phase)
        own = yield from self._own_marks(phase)
        speaks = ending is not None and ending.speaks_for_all
        if invalidated is None and report is None and not speaks and own.keys() <= state.first_seen_us.keys():
            self._words[phase] = own
            return
        others: list[tuple[Mark, bool]] = [] if report is None else [(report, False)]
        due: list[Mapping[str, Mark]] = []
        if ending is not None and speaks:
            others.append((Mark(Outcome.COMPLETED, ending.at_us), True))
            for required in self._law.requires(phase):
                yield from self._finding_words(required)
                due.append(self.words(required))
        words: dict[str, Mark] = {}
        for essays in in_slices(state.first_seen_us.items()):
            for essay_id, since_us in essays:
                at_least_us = self._invalidated_at(phase, essay_id) if invalidated else _NEVER
                word = own.get(essay_id)
                if word is not None and word.at_us < at_least_us:
                    word = None
                # On a tie the essay's own mark counts, then the report.
                for other, for_those_due in others:
                    if since_us > other.at_us or other.at_us < at_least_us:
                        continue
                    if word is not None and other.at_us <= word.at_us:
                        continue
                    if not for_those_due or _completed_in_all(due, essay_id):
                        word = other
                if word is not None:
                    words[essay_id] = word
            yield
        self._words[phase] = words

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
        # One that joined later shows that the batch was still growing when the report was made.
        return max(self._state.first_seen_us.values()) <= report.at_us

    def _enough_known(self) -> bool:
        expected = self._state.expected
        if expected is None:
            return not self._law.require_registration
        return len(self._state.first_seen_us) >= expected.count

    def _invalidated_at(self, phase: str, essay_id: str | None) -> int:
        times = self._state.invalidations.get(phase)
        if not times:
            return _NEVER
        return max(times.get(ALL_ESSAYS, _NEVER), times.get(essay_id, _NEVER))


def summarize(state: BatchState, law: CompletionLaw, version: int) -> BatchSummary:
    """The summary of a state under a law."""
    return at_once(summarizing(state, law, version))


def summarizing(state: BatchState, law: CompletionLaw, version: int) -> Sliced[BatchSummary]:
    """The same in slices."""
    evaluation = Evaluation(state, law)
    progress: dict[str, PhaseProgress] = {}
    for phase in sorted(state.phases):
        progress[phase] = yield from evaluation.progressing(phase)
    expected = state.expected.count if state.expected else None
    return BatchSummary(version, len(state.first_seen_us), expected, progress)


def _completed_in_all(due: Iterable[Mapping[str, Mark]], essay_id: str) -> bool:
    """True if the essay completed every phase that this one requires.

    :param due: the words on each of these phases.
    """
    for words in due:
        word = words.get(essay_id)
        if word is None or word.outcome is not Outcome.COMPLETED:
            return False
    return True
