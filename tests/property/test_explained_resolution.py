"""The data of an explanation imply the decision: a checker that reads nothing else reaches the same pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from bcs.domain.explanation import explaining_phase
from bcs.domain.facts import Fact, RecordedUnder, recorded_under
from bcs.domain.pipelines import Pipeline, PipelineDefinitions
from bcs.domain.progress import Evaluation, summarize
from bcs.domain.resolution import resolve
from bcs.domain.resolve_options import PLAIN, Force, ResolveOptions
from bcs.domain.slices import at_once
from bcs.domain.state import delta_of
from bcs.errors import NeededPhasesLeftOut, UnknownPhases
from bcs.http.documents import Extent
from bcs.http.explanations import answer_with_options, encoding_explained
from bcs.kafka.lag_age import IntakeLag
from bcs.usecases.explain_pipeline import ArchiveAnswer, Explanation
from tests.property.law_cases import Case, cases, some_of
from tests.support.explanation_checker import check_causes, check_essays, is_complete, pipeline_of
from tests.support.tiers import examples

some = settings(deadline=None, max_examples=examples(20))


@st.composite
def options_for(draw: st.DrawFn, names: tuple[str, ...]) -> ResolveOptions:
    few = some_of(names)
    completed = draw(few)
    return draw(
        st.just(PLAIN)
        | st.builds(
            ResolveOptions,
            force=st.sampled_from(Force) | few,
            until=st.none() | st.sampled_from(names),
            exclude=st.just(()) | few,
            assume_completed=st.just(completed),
            assume_failed=few.map(lambda failed: tuple(name for name in failed if name not in completed)),
        )
    )


def explained(
    case: Case, definitions: PipelineDefinitions, options: ResolveOptions, recorded: Iterable[RecordedUnder] = ()
) -> Explanation:
    state = delta_of([*case.facts, *recorded])
    law = definitions.law(require_registration=case.require_registration)
    resolution = resolve(definitions, "all", summarize(state, law, 1), options)
    evaluation = Evaluation(state, law)
    return Explanation(
        resolution=resolution,
        state=state,
        version=1,
        source="redis",
        require_registration=case.require_registration,
        phases=[
            at_once(explaining_phase(evaluation, state, phase, decision))
            for phase, decision in zip(definitions.plan("all"), resolution.decisions, strict=True)
        ],
        evaluation=evaluation,
        entries={},
        archive=ArchiveAnswer.NOT_CONFIGURED,
        lag=IntakeLag(0, 0.0, 0),
    )


@st.composite
def recorded_by(
    draw: st.DrawFn, definitions: PipelineDefinitions, facts: tuple[Fact, ...]
) -> tuple[RecordedUnder, ...]:
    """Each fact under the definition in use, under another one, or under one that nobody knows."""
    in_use = {phase.name: phase.definition for phase in definitions.phases.values() if phase.rerun_when_changed}
    others = dict.fromkeys(in_use, "another")
    choices = draw(st.lists(st.sampled_from((in_use, others, {})), min_size=len(facts), max_size=len(facts)))
    under = (recorded_under([fact], known) for fact, known in zip(facts, choices, strict=True))
    return tuple(chain.from_iterable(under))


@some
@given(st.data(), cases())
def test_the_explanation_implies_the_decision(data: st.DataObject, case: Case) -> None:
    names = tuple(phase.name for phase in case.phases)
    again = data.draw(some_of(names))
    kept = data.draw(some_of(names))
    phases = [
        replace(phase, rerun_with_dependencies=phase.name in again, rerun_when_changed=phase.name in kept)
        for phase in case.phases
    ]
    definitions = PipelineDefinitions(phases, [Pipeline("all", names)])
    options = data.draw(options_for(names))
    recorded = data.draw(recorded_by(definitions, case.facts))
    try:
        explanation = explained(case, definitions, options, recorded)
    except (NeededPhasesLeftOut, UnknownPhases):
        event("refused")
        return
    answer = answer_with_options("batch", explanation.resolution, "redis", options=options, dry_run=True)
    document = json.loads(at_once(encoding_explained(answer, explanation, Extent())))
    assert pipeline_of(document) == document["final_pipeline"]
    for one in document["explanation"]["phases"]:
        assert one["complete"] == is_complete(document, one)
        for cause in one["causes"]:
            event(cause["cause"])
    check_essays(document)
    check_causes(document)
    short = json.loads(at_once(encoding_explained(answer, explanation)))
    for each in document["explanation"]["phases"]:
        del each["essays"]
    del document["explanation"]["next"]
    assert short == document


def test_the_checker_notices_a_wrong_explanation() -> None:
    phase: dict[str, Any] = {
        "phase": "p",
        "decision": "run",
        "assumed": None,
        "forced": False,
        "requires": [],
        "rerun_with_dependencies": False,
        "older_definition": None,
        "complete_when": "every_essay_completed",
        "covered_by_report": False,
        "report": None,
        "outcome": None,
        "completed": 2,
        "failed": 0,
        "failed_before": 0,
        "left_out": 0,
    }
    answer: dict[str, Any] = {
        "essays_known": 2,
        "essays_expected": 2,
        "explanation": {"registration_required": False, "phases": [phase]},
    }
    assert pipeline_of(answer) == []
    changes: tuple[dict[str, Any], ...] = (
        {"completed": 1},
        {"forced": True},
        {"assumed": "failed"},
        {"older_definition": {"definition": "old"}},
    )
    for change in changes:
        assert pipeline_of({**answer, "explanation": {**answer["explanation"], "phases": [phase | change]}}) == ["p"]
