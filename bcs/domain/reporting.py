"""The time of a phase report, which supersedes every fact that is known about the phase."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bcs.domain.state import BatchState
from bcs.errors import ReportOutdated


@dataclass(frozen=True, slots=True)
class _TimedFact:
    at_us: int
    kind: str
    essay_id: str | None = None


def report_time_us(state: BatchState, phase: str, *, now_us: int, max_skew_us: int) -> int:
    """The time of a phase report: later than every known fact about the phase, and than the joining of every essay.

    :param now_us: microseconds since 1970 UTC.
    :param max_skew_us: how far in the future the phase report may lie.
    :raises ReportOutdated: a known fact lies further in the future, so the report would not count, or not for long.
    """
    newest = max(_timed_facts(state, phase), key=lambda fact: fact.at_us, default=None)
    if newest is None:
        return now_us + 1
    if newest.at_us > now_us + max_skew_us:
        raise ReportOutdated(phase, newest.kind, newest.essay_id, newest.at_us)
    return max(now_us, newest.at_us) + 1


def _timed_facts(state: BatchState, phase: str) -> Iterator[_TimedFact]:
    for essay_id, mark in state.essay_marks.get(phase, {}).items():
        yield _TimedFact(mark.at_us, "essay_phase_ended", essay_id)
    for ending in state.outcomes.get(phase, {}).values():
        yield _TimedFact(ending.at_us, "phase_outcome")
    if phase in state.reports:
        yield _TimedFact(state.reports[phase].at_us, "phase_reported")
    for at_us in state.definitions.get(phase, {}).values():
        # The state has this fact, but for a late copy of an outcome, of which it has the earliest.
        yield _TimedFact(at_us, "phase_outcome")
    for essay_or_all, at_us in state.invalidations.get(phase, {}).items():
        yield _TimedFact(at_us, "phase_invalidated", essay_or_all)
    for essay_id, since_us in state.first_seen_us.items():
        yield _TimedFact(since_us, "essay_joined", essay_id)
