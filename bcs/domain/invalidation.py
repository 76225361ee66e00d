"""Takes completions back: since when facts about a phase count again, and which marks count no longer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bcs.domain.facts import PhaseInvalidated
from bcs.domain.law import CompletionLaw
from bcs.domain.progress import Evaluation
from bcs.domain.slices import Sliced, in_slices
from bcs.domain.state import ALL_ESSAYS, BatchState, Ending, Mark
from bcs.errors import InvalidationOutdated


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTakenBack:
    """What an invalidation takes back of one phase.

    :param at_us: older facts no longer count; microseconds since 1970 UTC.
    :param was_complete: whether the phase was complete before.
    :param complete: whether the phase is complete now, because of its other essays or facts.
    :param marks: the essays whose marks no longer count, in the order of their ids, each with its mark.
    :param report: the phase report that no longer counts; None where there is none.
    :param outcome: the newest outcome that no longer counts; None where there is none.
    """

    phase: str
    at_us: int
    was_complete: bool
    complete: bool
    marks: tuple[tuple[str, Mark], ...]
    report: Mark | None
    outcome: Ending | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalidation:
    """An invalidation of phases, and its effect on a state.

    :param facts: the facts that take the phases' completions back.
    :param phases: the effect on each of the phases, in the order in which they were named.
    :param no_longer_complete: all phases that were complete before, also those that require one of these phases.
    """

    facts: tuple[PhaseInvalidated, ...]
    phases: tuple[PhaseTakenBack, ...]
    no_longer_complete: tuple[str, ...]


def invalidating(
    state: BatchState,
    law: CompletionLaw,
    phases: Iterable[str],
    essays: Sequence[str] | None,
    *,
    now_us: int,
    max_skew_us: int,
) -> Sliced[Invalidation]:
    """The invalidation of phases, with times that are later than all that it takes back.

    :param essays: the essays that are meant, all of them known; None for all essays.
    :param now_us: microseconds since 1970 UTC.
    :param max_skew_us: how far in the future a known fact may lie.
    :raises InvalidationOutdated: a known fact lies further in the future.
    """
    times: dict[str, int] = {}
    for phase in phases:
        times[phase] = _time_us(state, phase, essays, now_us=now_us, max_skew_us=max_skew_us)
        yield
    named = (ALL_ESSAYS,) if essays is None else essays
    facts = tuple(PhaseInvalidated(phase, essay_id, at_us) for phase, at_us in times.items() for essay_id in named)
    before, after = Evaluation(state, law), Evaluation(_with(state, times, named), law)
    ended: list[str] = []
    complete: dict[str, tuple[bool, bool]] = {}
    for phase in (*times, *sorted(state.phases - times.keys())):
        if phase in times or not times.keys().isdisjoint(law.upstream(phase)):
            was = yield from before.progressing(phase)
            now = yield from after.progressing(phase)
            complete[phase] = was.complete, now.complete
            if was.complete and not now.complete:
                ended.append(phase)
    taken_back: list[PhaseTakenBack] = []
    for phase, at_us in times.items():
        marks: list[tuple[str, Mark]] = []
        counted, counts = before.marks(phase), after.marks(phase)
        for some in in_slices(sorted(counted) if essays is None else sorted(essays)):
            marks += (
                (essay_id, counted[essay_id]) for essay_id in some if essay_id in counted and essay_id not in counts
            )
            yield
        was_complete, still_complete = complete[phase]
        taken_back.append(
            PhaseTakenBack(
                phase=phase,
                at_us=at_us,
                was_complete=was_complete,
                complete=still_complete,
                marks=tuple(marks),
                report=before.report(phase) if after.report(phase) is None else None,
                outcome=before.outcome(phase) if after.outcome(phase) is None else None,
            )
        )
    return Invalidation(facts=facts, phases=tuple(taken_back), no_longer_complete=tuple(ended))


def _time_us(state: BatchState, phase: str, essays: Sequence[str] | None, *, now_us: int, max_skew_us: int) -> int:
    """Later than now, and than every known fact of the phase that concerns one of the essays."""
    newest_us, kind, of_essay = 0, "", None
    own = state.essay_marks.get(phase, {})
    for essay_id in own if essays is None else essays:
        mark = own.get(essay_id)
        if mark is not None and mark.at_us > newest_us:
            newest_us, kind, of_essay = mark.at_us, "essay_phase_ended", essay_id
    for ending in state.outcomes.get(phase, {}).values():
        if ending.at_us > newest_us:
            newest_us, kind, of_essay = ending.at_us, "phase_outcome", None
    report = state.reports.get(phase)
    if report is not None and report.at_us > newest_us:
        newest_us, kind, of_essay = report.at_us, "phase_reported", None
    # Also than an invalidation before: otherwise a completion in between would be newer than this one and not count.
    invalidated = state.invalidations.get(phase, {})
    for named in invalidated if essays is None else (ALL_ESSAYS, *essays):
        at_us = invalidated.get(named, 0)
        if at_us > newest_us:
            newest_us, kind, of_essay = at_us, "phase_invalidated", named
    if newest_us > now_us + max_skew_us:
        raise InvalidationOutdated(phase, kind, of_essay, newest_us)
    return max(now_us, newest_us) + 1


def _with(state: BatchState, times: Mapping[str, int], named: Sequence[str | None]) -> BatchState:
    """The state with more invalidations. It shares all other registers with the given state."""
    invalidations = {phase: dict(known) for phase, known in state.invalidations.items()}
    for phase, at_us in times.items():
        known = invalidations.setdefault(phase, {})
        known.update((essay_id, max(at_us, known.get(essay_id, at_us))) for essay_id in named)
    return replace(state, invalidations=invalidations)
