"""Each cause of a decision, as data and as a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from bcs.domain.explained import Cause, ExplainedPhase
from bcs.domain.explanation import explaining_phase
from bcs.domain.facts import (
    EssayPhaseEnded,
    EssaysRegistered,
    Fact,
    Outcome,
    PhaseInvalidated,
    PhaseOutcome,
    PhaseReported,
    RecordedUnder,
)
from bcs.domain.law import CompleteWhen
from bcs.domain.pipelines import Phase, PipelineDefinitions
from bcs.domain.progress import Evaluation, summarize
from bcs.domain.resolution import resolve
from bcs.domain.resolve_options import PLAIN, ResolveOptions
from bcs.domain.slices import at_once
from bcs.domain.state import delta_of

FAILED, DONE = Outcome.FAILED, Outcome.COMPLETED
SECOND = 1_000_000
THIRTY = tuple(f"e{number:02}" for number in range(1, 31))
NOTHING_MORE: dict[str, Any] = {}


def at(second: int) -> str:
    return f"1970-01-01T00:00:{second:02}.000000Z"


def registered(*essays: str, expected: int | None = None) -> EssaysRegistered:
    return EssaysRegistered(essays, len(essays) if expected is None else expected, 1 * SECOND)


def ended(phase: str, essays: Sequence[str], second: int, how: Outcome = DONE) -> list[Fact]:
    return [EssayPhaseEnded(phase, essay, how, second * SECOND) for essay in essays]


def outcome(essays: tuple[str, ...], second: int, failed: tuple[str, ...] = (), nameless: bool = False) -> PhaseOutcome:
    return PhaseOutcome(
        "q",
        "completed_with_failures" if failed else "completed_successfully",
        completed=essays,
        failed=failed,
        speaks_for_all=nameless,
        at_us=second * SECOND,
        repeat_key="key",
    )


def phase_of(
    facts: Sequence[Fact],
    options: ResolveOptions = PLAIN,
    *,
    settled: bool = False,
    registration: bool = False,
    name: str = "q",
    kept: bool = False,
) -> ExplainedPhase:
    policy = CompleteWhen.EVERY_ESSAY_SETTLED if settled else CompleteWhen.EVERY_ESSAY_COMPLETED
    definitions = PipelineDefinitions(
        [
            Phase("p", complete_when=policy),
            Phase("q", ("p",), rerun_with_dependencies=True, complete_when=policy, rerun_when_changed=kept),
        ]
    )
    state, law = delta_of(facts), definitions.law(require_registration=registration)
    decisions = resolve(definitions, "q", summarize(state, law, 1), options).decisions
    [decision] = (one for one in decisions if one.phase == name)
    return at_once(explaining_phase(Evaluation(state, law), state, definitions.phases[name], decision))


@dataclass(frozen=True)
class Told:
    """What is explained of a phase.

    :param data: the fields of the first cause that are set, and `essays` where it is about particular ones.
    :param by: the kind, the essay and the second of the fact that decided.
    """

    cause: Cause
    data: dict[str, Any]
    sentence: str
    by: tuple[str, str | None, int] | None = None


Q_DEFINITION = Phase("q", ("p",)).definition
P_DONE = ended("p", ("a", "b", "c"), 2)
THREE = registered("a", "b", "c")

CASES: list[tuple[str, ExplainedPhase, Told]] = [
    (
        "nothing at all",
        phase_of([]),
        Told(Cause.NEVER_RECORDED, {"count": 0}, "q runs: nothing was ever recorded about it."),
    ),
    (
        "nothing of the phase",
        phase_of([THREE, *P_DONE]),
        Told(Cause.NEVER_RECORDED, {"count": 3}, "q runs: nothing was ever recorded about it."),
    ),
    (
        "29 of 30",
        phase_of([registered(*THIRTY), *ended("q", THIRTY[:-1], 3)]),
        Told(
            Cause.ESSAYS_MISSING,
            {"count": 1, "essays": ("e30",)},
            "q runs: 29 of 30 essays completed it; missing: e30.",
        ),
    ),
    (
        "many are missing",
        phase_of([registered(*THIRTY), *ended("q", THIRTY[:3], 3)]),
        Told(
            Cause.ESSAYS_MISSING,
            {"count": 27, "essays": THIRTY[3:]},
            "q runs: 3 of 30 essays completed it; missing: e04, e05, e06, e07, e08 and 22 more.",
        ),
    ),
    (
        "one failed",
        phase_of([THREE, *P_DONE, *ended("q", ("a", "c"), 3), *ended("q", ("b",), 4, FAILED)]),
        Told(
            Cause.ESSAYS_FAILED,
            {"count": 1, "essays": ("b",)},
            "q runs: 2 of 3 essays completed it; failed: b.",
            ("essay_phase_ended", "b", 4),
        ),
    ),
    (
        "one failed before",
        phase_of([THREE, *ended("p", ("a", "b"), 2), *ended("p", ("c",), 3, FAILED), *ended("q", ("a", "b"), 4)]),
        Told(
            Cause.ESSAYS_FAILED_BEFORE,
            {"count": 1, "essays": ("c",)},
            "q runs: 2 of 3 essays completed it; failed in a phase that it requires: c.",
            ("essay_phase_ended", "c", 3),
        ),
    ),
    (
        "not in the outcome",
        phase_of([THREE, *P_DONE, outcome(("a", "b"), 5)]),
        Told(
            Cause.ESSAYS_NOT_IN_OUTCOME,
            {"count": 1, "essays": ("c",), "at_us": 5 * SECOND, "status": "completed_successfully"},
            f"q runs: 2 of 3 essays completed it; not in the outcome completed_successfully of {at(5)}: c.",
            ("phase_outcome", None, 5),
        ),
    ),
    (
        "failed by the outcome",
        phase_of([THREE, *P_DONE, outcome(("a", "b"), 5, failed=("c",))]),
        Told(
            Cause.ESSAYS_FAILED,
            {"count": 1, "essays": ("c",)},
            "q runs: 2 of 3 essays completed it; failed: c.",
            ("phase_outcome", "c", 5),
        ),
    ),
    (
        "new since a report",
        phase_of([THREE, PhaseReported("q", DONE, 5 * SECOND), *ended("p", ("d",), 6)]),
        Told(
            Cause.NEW_ESSAYS,
            {"count": 1, "essays": ("d",), "at_us": 5 * SECOND},
            f"q runs: 3 of 4 essays completed it; new since {at(5)}: d.",
            ("essay_joined", "d", 6),
        ),
    ),
    (
        "new since the last event",
        phase_of([THREE, *ended("q", ("a", "b", "c"), 4), *ended("p", ("d",), 6)]),
        Told(
            Cause.NEW_ESSAYS,
            {"count": 1, "essays": ("d",), "at_us": 4 * SECOND},
            f"q runs: 3 of 4 essays completed it; new since {at(4)}: d.",
            ("essay_joined", "d", 6),
        ),
    ),
    (
        "not all are named",
        phase_of([registered("a", "b", expected=4), *ended("q", ("a", "b"), 4)]),
        Told(
            Cause.ESSAYS_NOT_NAMED,
            {"count": 2},
            "q runs: 2 of 4 essays completed it; 2 more essays are expected, which no event has named.",
        ),
    ),
    (
        "not registered",
        phase_of(ended("q", ("a", "b"), 4), registration=True),
        Told(
            Cause.NOT_REGISTERED,
            {"count": 2},
            "q runs: 2 of 2 essays completed it; the batch is not registered, and may have more than 2 essays.",
        ),
    ),
    (
        "reported as failed, and nobody is known",
        phase_of([PhaseReported("q", FAILED, 5 * SECOND)]),
        Told(
            Cause.REPORTED_FAILED,
            {"at_us": 5 * SECOND},
            f"q runs: reported as failed at {at(5)}.",
            ("phase_reported", None, 5),
        ),
    ),
    (
        "registered with no essays",
        phase_of([registered(), outcome((), 5)]),
        Told(Cause.NO_ESSAYS, NOTHING_MORE, "q runs: no essay of the batch is known."),
    ),
    (
        "invalidated",
        phase_of([THREE, *ended("q", ("a", "b", "c"), 4), PhaseInvalidated("q", None, 5 * SECOND)]),
        Told(
            Cause.INVALIDATED,
            {"at_us": 5 * SECOND},
            f"q runs: 0 of 3 essays completed it; facts before {at(5)} no longer count; missing: a, b, c.",
            ("phase_invalidated", None, 5),
        ),
    ),
    (
        "completed by events",
        phase_of([THREE, *P_DONE, *ended("q", ("a", "b"), 3), *ended("q", ("c",), 7)]),
        Told(
            Cause.COMPLETED_BY_ESSAYS,
            {"count": 3, "at_us": 7 * SECOND},
            f"q is pruned: complete since {at(7)} by the events of 3 essays.",
            ("essay_phase_ended", "c", 7),
        ),
    ),
    (
        "completed by an outcome",
        phase_of([THREE, *P_DONE, outcome(("a", "b", "c"), 5)]),
        Told(
            Cause.COMPLETED_BY_OUTCOME,
            {"count": 3, "at_us": 5 * SECOND, "status": "completed_successfully"},
            f"q is pruned: complete since {at(5)} by the outcome completed_successfully for 3 essays.",
            ("phase_outcome", None, 5),
        ),
    ),
    (
        "completed by an outcome that names nobody",
        phase_of([THREE, *P_DONE, outcome((), 5, nameless=True)]),
        Told(
            Cause.COMPLETED_BY_OUTCOME,
            {"count": 3, "at_us": 5 * SECOND, "status": "completed_successfully"},
            f"q is pruned: complete since {at(5)} by the outcome completed_successfully for 3 essays.",
            ("phase_outcome", None, 5),
        ),
    ),
    (
        "completed by an outcome for nobody",
        phase_of([PhaseReported("p", DONE, 1), outcome((), 5, nameless=True)]),
        Told(
            Cause.COMPLETED_BY_OUTCOME,
            {"count": 0, "at_us": 5 * SECOND, "status": "completed_successfully"},
            f"q is pruned: complete since {at(5)} by the outcome completed_successfully.",
            ("phase_outcome", None, 5),
        ),
    ),
    (
        "completed by a report",
        phase_of([THREE, *P_DONE, PhaseReported("q", DONE, 5 * SECOND)]),
        Told(
            Cause.COMPLETED_BY_REPORT,
            {"count": 3, "at_us": 5 * SECOND},
            f"q is pruned: complete since {at(5)} as reported for 3 essays.",
            ("phase_reported", None, 5),
        ),
    ),
    (
        "settled",
        phase_of([THREE, *P_DONE, *ended("q", ("a",), 3), *ended("q", ("b", "c"), 4, FAILED)], settled=True),
        Told(
            Cause.SETTLED,
            {"count": 1},
            "q is pruned: settled, 1 of 3 essays completed it; failed: b, c; "
            f"complete since {at(3)} by the events of 1 essay.",
            ("essay_phase_ended", "a", 3),
        ),
    ),
    (
        "forced",
        phase_of([THREE, *P_DONE, *ended("q", ("a", "b", "c"), 3)], ResolveOptions(force=("q",))),
        Told(
            Cause.FORCED,
            NOTHING_MORE,
            f"q runs: the request forces it to run; complete since {at(3)} by the events of 3 essays.",
            ("essay_phase_ended", "c", 3),
        ),
    ),
    (
        "after a forced one",
        phase_of([THREE, *P_DONE, *ended("q", ("a", "b", "c"), 3)], ResolveOptions(force=("p",))),
        Told(
            Cause.DOWNSTREAM_OF_FORCED,
            {"phases": ("p",)},
            "q runs: it must follow p, because of what the request forces; "
            f"complete since {at(3)} by the events of 3 essays.",
            ("essay_phase_ended", "c", 3),
        ),
    ),
    (
        "after one that runs again",
        phase_of([THREE, *ended("q", ("a", "b", "c"), 3)]),
        Told(
            Cause.DEPENDENCY_RUNS_AGAIN,
            {"phases": ("p",)},
            f"q runs: it must follow p, which runs again; complete since {at(3)} by the events of 3 essays.",
            ("essay_phase_ended", "c", 3),
        ),
    ),
    (
        "under another definition",
        phase_of([THREE, *P_DONE, *ended("q", ("a", "b", "c"), 3), RecordedUnder("q", "old", 3 * SECOND)], kept=True),
        Told(
            Cause.DEFINITION_CHANGED,
            {"count": 0, "at_us": 3 * SECOND, "definitions": ("old", Q_DEFINITION)},
            f"q runs: its definition changed since {at(3)} (old → {Q_DEFINITION}); "
            f"complete since {at(3)} by the events of 3 essays.",
            ("essay_phase_ended", "c", 3),
        ),
    ),
    (
        "under another definition, forced, and assumed to be complete",
        phase_of(
            [THREE, *P_DONE, *ended("q", ("a", "b", "c"), 3), RecordedUnder("q", "old", 3 * SECOND)],
            ResolveOptions(force=("q",), assume_completed=("q",)),
            kept=True,
        ),
        Told(Cause.FORCED, NOTHING_MORE, "q runs: the request forces it to run; it is assumed to be complete."),
    ),
    (
        "partly under another definition",
        phase_of(
            [
                *(THREE, *P_DONE, *ended("q", ("a", "b", "c"), 3), *ended("q", ("b",), 5)),
                *(RecordedUnder("q", "old", 3 * SECOND), RecordedUnder("q", Q_DEFINITION, 5 * SECOND)),
            ],
            kept=True,
        ),
        Told(
            Cause.DEFINITION_CHANGED,
            {"count": 1, "at_us": 3 * SECOND, "definitions": ("old", Q_DEFINITION)},
            f"q runs: its definition changed since {at(3)} (old → {Q_DEFINITION}), and 1 essay completed it since; "
            f"complete since {at(5)} by the events of 3 essays.",
            ("essay_phase_ended", "b", 5),
        ),
    ),
    (
        "under a definition that nobody knows",
        phase_of([THREE, *P_DONE, *ended("q", ("a", "b", "c"), 3)], kept=True),
        Told(
            Cause.DEFINITION_UNKNOWN,
            NOTHING_MORE,
            "q is pruned: under which definition it completed is not known, so it counts as unchanged; "
            f"complete since {at(3)} by the events of 3 essays.",
            ("essay_phase_ended", "c", 3),
        ),
    ),
    (
        "assumed to be complete",
        phase_of([THREE], ResolveOptions(assume_completed=("p", "q"))),
        Told(Cause.ASSUMED_COMPLETED, NOTHING_MORE, "q is pruned: it is assumed to be complete."),
    ),
    (
        "assumed to have failed",
        phase_of([THREE, *P_DONE], ResolveOptions(assume_failed=("q",))),
        Told(Cause.ASSUMED_FAILED, NOTHING_MORE, "q runs: it is assumed to have failed."),
    ),
    (
        "left out",
        phase_of([THREE, *P_DONE], ResolveOptions(until="p")),
        Told(Cause.NOT_SELECTED, NOTHING_MORE, "q is left out: the request leaves it out."),
    ),
]


@pytest.mark.parametrize(("of", "told"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_cause_is_told_as_data_and_as_a_sentence(of: ExplainedPhase, told: Told) -> None:
    first = of.causes[0]
    fields = ("count", "essays", "at_us", "status", "phases", "definitions")
    given = {name: value for name in fields if (value := getattr(first, name)) is not None and value != ()}
    assert (first.cause, given, of.sentence) == (told.cause, told.data, told.sentence)
    by = of.decided_by
    assert (None if by is None else (by.kind.value, by.essay_id, by.at_us // SECOND)) == told.by


def test_every_cause_is_told_here() -> None:
    assert {told.cause for _, _, told in CASES} == set(Cause)


def test_several_causes_are_told_together() -> None:
    facts = [registered("a", "b", "c", expected=5), *ended("q", ("a",), 3, FAILED), outcome(("b",), 5)]
    of = phase_of(facts)
    assert [one.cause for one in of.causes] == [
        Cause.ESSAYS_FAILED,
        Cause.ESSAYS_NOT_IN_OUTCOME,
        Cause.ESSAYS_NOT_NAMED,
    ]
    assert of.sentence == (
        f"q runs: 1 of 5 essays completed it; failed: a; not in the outcome completed_successfully of {at(5)}: c; "
        "2 more essays are expected, which no event has named."
    )


def test_several_facts_that_completed_a_phase_are_told_with_their_times() -> None:
    of = phase_of([THREE, *P_DONE, *ended("q", ("c",), 3), outcome(("a", "b"), 5)])
    assert of.sentence == (
        f"q is pruned: complete since {at(5)} by the events of 1 essay, the last one at {at(3)} and "
        f"by the outcome completed_successfully at {at(5)} for 2 essays."
    )
