"""A person's report on a phase counts over everything that is known: the time that it gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bcs.domain.state import BatchState
from bcs.errors import ReportOutdated


@dataclass(frozen=True, slots=True)
class _Known:
    at_us: int
    what: str
    essay_id: str | None = None


def report_time_us(state: BatchState, phase: str, *, now_us: int, max_skew_us: int) -> int:
    """The time of a report on a phase: after all that is known of the phase, and after every essay had joined.

    :param now_us: microseconds since 1970 UTC.
    :param max_skew_us: how far ahead of the clock a report may be.
    :raises ReportOutdated: something known lies further ahead, so the report would not count for long, or not at all.
    """
    newest = max(_known(state, phase), key=lambda known: known.at_us, default=None)
    if newest is None:
        return now_us + 1
    if newest.at_us > now_us + max_skew_us:
        raise ReportOutdated(phase, newest.what, newest.essay_id, newest.at_us)
    return max(now_us, newest.at_us) + 1


def _known(state: BatchState, phase: str) -> Iterator[_Known]:
    for essay_id, mark in state.essay_marks.get(phase, {}).items():
        yield _Known(mark.at_us, "essay_phase_ended", essay_id)
    for ending in state.outcomes.get(phase, {}).values():
        yield _Known(ending.at_us, "phase_outcome")
    if phase in state.reports:
        yield _Known(state.reports[phase].at_us, "phase_reported")
    for essay_or_all, at_us in state.invalidations.get(phase, {}).items():
        yield _Known(at_us, "phase_invalidated", essay_or_all)
    for essay_id, since_us in state.first_seen_us.items():
        yield _Known(since_us, "essay_joined", essay_id)
