"""Resolution against a brute-force oracle on random acyclic graphs."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from bcs.domain.law import CompleteWhen
from bcs.domain.pipelines import Phase, Pipeline, PipelineDefinitions
from bcs.domain.progress import BatchSummary, PhaseProgress
from bcs.domain.resolution import Reason, resolve, validate_request
from bcs.errors import (
    ConfigurationError,
    DependencyCycle,
    DuplicateName,
    PromptRequired,
    UnknownDependency,
    UnknownPipeline,
)
from tests.support.tiers import examples

NAMES = ("p", "q", "r", "s", "t", "u")
no_deadline = settings(deadline=None, max_examples=examples(35))
Graph = tuple[list[Phase], Pipeline]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Phases without a cycle, listed in any order, and a pipeline of some of them, in any order too."""
    layered = draw(st.permutations(NAMES))[: draw(st.integers(1, len(NAMES)))]
    phases = []
    for position, name in enumerate(layered):
        requires = draw(st.lists(st.sampled_from(layered[:position]), unique=True)) if position else []
        phases.append(Phase(name, tuple(requires), draw(st.booleans()), draw(st.booleans())))
    wanted = draw(st.lists(st.sampled_from(layered), unique=True, min_size=1))
    return draw(st.permutations(phases)), Pipeline("wanted", tuple(wanted))


def summary_of(completed: set[str]) -> BatchSummary:
    return BatchSummary(
        1, 2, 2, {name: PhaseProgress(name in completed, 2 if name in completed else 1, 0) for name in NAMES}
    )


def closure(by_name: dict[str, Phase], wanted: tuple[str, ...]) -> set[str]:
    """Everything that is required, however indirectly."""
    return set(wanted).union(*(closure(by_name, by_name[name].requires) for name in wanted))


def expected_order(phases: list[Phase], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Of all orders in which the phases can run, the first by rank: the pipeline's own list, then the configuration."""
    by_name = {phase.name: phase for phase in phases}
    needed = closure(by_name, wanted)
    ranked = [*wanted, *(phase.name for phase in phases if phase.name in needed and phase.name not in wanted)]

    def can_run(order: tuple[str, ...]) -> bool:
        return all(order.index(required) < order.index(name) for name in order for required in by_name[name].requires)

    return next(order for order in permutations(ranked) if can_run(order))  # permutations come in order of rank


def expected_runs(phases: list[Phase], order: tuple[str, ...], completed: set[str]) -> tuple[str, ...]:
    """A phase runs if it is not complete, or if it is to follow a phase that it requires and that runs."""
    by_name = {phase.name: phase for phase in phases}

    def runs(name: str) -> bool:
        phase = by_name[name]
        return name not in completed or (phase.rerun_with_dependencies and any(runs(each) for each in phase.requires))

    return tuple(name for name in order if runs(name))


@no_deadline
@given(graphs(), st.sets(st.sampled_from(NAMES)))
def test_resolution_is_that_of_the_brute_force_oracle(graph: Graph, completed: set[str]) -> None:
    phases, pipeline = graph
    definitions = PipelineDefinitions(phases, [pipeline])
    requests = [(pipeline.name, pipeline.phases), *((phase.name, (phase.name,)) for phase in phases)]
    for requested, wanted in requests:
        resolution = resolve(definitions, requested, summary_of(completed))
        order = expected_order(phases, wanted)
        to_run = expected_runs(phases, order, completed)
        event(f"phases: {len(order)}")
        assert tuple(decision.phase for decision in resolution.decisions) == order
        assert resolution.to_run == to_run
        assert resolution.pruned == tuple(name for name in order if name not in to_run)
        assert resolution.pipeline == requested


@no_deadline
@given(graphs(), st.sets(st.sampled_from(NAMES)))
def test_every_decision_has_its_reason(graph: Graph, completed: set[str]) -> None:
    phases, pipeline = graph
    resolution = resolve(PipelineDefinitions(phases, [pipeline]), "wanted", summary_of(completed))
    for decision in resolution.decisions:
        if not decision.runs:
            assert decision.reason is Reason.ALREADY_COMPLETED
        elif decision.phase in completed:
            assert decision.reason is Reason.DEPENDENCY_RUNS_AGAIN
        else:
            assert decision.reason is Reason.ESSAYS_OUTSTANDING
        assert (not decision.runs) or decision.reason_text in resolution.explanation
        assert decision.phase in resolution.explanation


@no_deadline
@given(graphs(), st.sets(st.sampled_from(NAMES)))
def test_only_the_order_of_the_configuration_matters(graph: Graph, completed: set[str]) -> None:
    phases, pipeline = graph
    # The order in which a phase lists its requirements is no part of the result.
    mirrored = [
        Phase(phase.name, phase.requires[::-1], phase.needs_prompt, phase.rerun_with_dependencies) for phase in phases
    ]
    first = resolve(PipelineDefinitions(phases, [pipeline]), "wanted", summary_of(completed))
    again = resolve(PipelineDefinitions(mirrored, [pipeline]), "wanted", summary_of(completed))
    assert again.to_run == first.to_run
    assert again.pruned == first.pruned


@no_deadline
@given(graphs())
def test_everything_complete_is_an_empty_success_that_says_so(graph: Graph) -> None:
    phases, pipeline = graph
    resolution = resolve(PipelineDefinitions(phases, [pipeline]), "wanted", summary_of(set(NAMES)))
    assert resolution.to_run == ()
    assert "Nothing is left to run" in resolution.explanation
    assert "complete" in resolution.explanation


@no_deadline
@given(graphs(), st.sampled_from([None, True, False]))
def test_the_prompt_gate_names_each_phase_that_needs_one(graph: Graph, prompt_attached: bool | None) -> None:
    phases, pipeline = graph
    definitions = PipelineDefinitions(phases, [pipeline])
    order = expected_order(phases, pipeline.phases)
    needing = tuple(name for name in order if definitions.phases[name].needs_prompt)
    if prompt_attached is False and needing:
        with pytest.raises(PromptRequired) as refusal:
            validate_request(definitions, "wanted", prompt_attached=prompt_attached)
        assert refusal.value.phases == needing
        assert all(name in str(refusal.value) for name in needing)
    else:
        validate_request(definitions, "wanted", prompt_attached=prompt_attached)


@no_deadline
@given(graphs(), st.text())
def test_an_unknown_pipeline_is_refused_with_the_known_ones(graph: Graph, name: str) -> None:
    phases, pipeline = graph
    definitions = PipelineDefinitions(phases, [pipeline])
    known = {phase.name for phase in phases} | {"wanted"}
    assert set(definitions.names) == known
    if name not in known:
        with pytest.raises(UnknownPipeline) as refusal:
            resolve(definitions, name, BatchSummary())
        assert set(refusal.value.known) == known
        assert refusal.value.requested == name


@no_deadline
@given(graphs(), st.data())
def test_a_cycle_is_refused_with_its_phases_named(graph: Graph, data: st.DataObject) -> None:
    phases, _ = graph
    by_name = {phase.name: phase for phase in phases}
    top = data.draw(st.sampled_from(phases))
    # An edge from anything that the phase requires, itself included, back to the phase closes a cycle.
    bottom = by_name[data.draw(st.sampled_from(sorted(closure(by_name, (top.name,)))))]
    broken = [Phase(phase.name, (*phase.requires, top.name)) if phase is bottom else phase for phase in phases]
    requires = {phase.name: phase.requires for phase in broken}
    with pytest.raises(DependencyCycle) as refusal:
        PipelineDefinitions(broken)
    cycle = refusal.value.phases
    assert cycle[0] == cycle[-1]
    assert len(set(cycle)) == len(cycle) - 1 >= 1
    assert all(before in requires[after] for before, after in pairwise(cycle)) or all(
        after in requires[before] for before, after in pairwise(cycle)
    )
    assert all(name in str(refusal.value) for name in cycle)


@no_deadline
@given(graphs(), st.data())
def test_an_unknown_dependency_is_refused_with_both_phases_named(graph: Graph, data: st.DataObject) -> None:
    phases, pipeline = graph
    named: list[Phase | Pipeline] = [*phases, pipeline]
    owner = data.draw(st.sampled_from(named))
    if isinstance(owner, Pipeline):
        pipeline = Pipeline(owner.name, (*owner.phases, "missing"))
    else:
        phases = [Phase(each.name, (*each.requires, "missing")) if each is owner else each for each in phases]
    with pytest.raises(UnknownDependency) as refusal:
        PipelineDefinitions(phases, [pipeline])
    assert (refusal.value.owner, refusal.value.missing) == (owner.name, "missing")
    assert "missing" in str(refusal.value)
    assert owner.name in str(refusal.value)


@pytest.mark.parametrize(
    ("phases", "pipelines", "twice"),
    [
        ([Phase("p"), Phase("q"), Phase("p", ("q",))], [], "p"),
        ([Phase("p"), Phase("q", ("p", "p"))], [], "p"),
        ([Phase("p"), Phase("q")], [Pipeline("p", ("q",))], "p"),
        ([Phase("p")], [Pipeline("x", ("p",)), Pipeline("x", ("p",))], "x"),
        ([Phase("p"), Phase("q")], [Pipeline("x", ("q", "p", "q"))], "q"),
    ],
)
def test_a_name_that_stands_twice_is_refused_by_name(
    phases: list[Phase], pipelines: list[Pipeline], twice: str
) -> None:
    with pytest.raises(DuplicateName) as refusal:
        PipelineDefinitions(phases, pipelines)
    assert refusal.value.name == twice
    assert repr(twice) in str(refusal.value)
    assert isinstance(refusal.value, ConfigurationError)


SETTLED = CompleteWhen.EVERY_ESSAY_SETTLED


@pytest.mark.parametrize(
    ("progress", "known", "expected", "policy", "reason"),
    [
        (None, 0, None, None, Reason.NOTHING_KNOWN),
        (None, 3, 3, None, Reason.ESSAYS_OUTSTANDING),
        (None, 0, 3, None, Reason.ESSAYS_MISSING),
        (PhaseProgress(False, 0, 0), 3, 3, None, Reason.ESSAYS_OUTSTANDING),
        (PhaseProgress(False, 2, 1), 3, 3, None, Reason.ESSAYS_FAILED),
        (PhaseProgress(False, 2, 0), 3, 3, None, Reason.ESSAYS_OUTSTANDING),
        (PhaseProgress(False, 2, 0, failed_before=1), 3, 3, None, Reason.ESSAYS_OUTSTANDING),
        (PhaseProgress(False, 2, 0, left_out=1, outcome_at_us=5), 3, 3, None, Reason.ESSAYS_LEFT_OUT),
        (PhaseProgress(False, 3, 0), 3, 30, None, Reason.ESSAYS_MISSING),
        (PhaseProgress(False, 3, 0), 3, None, None, Reason.NOT_REGISTERED),
        (PhaseProgress(False, 0, 3), 3, 3, SETTLED, Reason.ESSAYS_FAILED),
        (PhaseProgress(False, 1, 1), 3, 3, SETTLED, Reason.ESSAYS_OUTSTANDING),
        (PhaseProgress(False, 1, 1, left_out=1, outcome_at_us=5), 3, 30, SETTLED, Reason.ESSAYS_MISSING),
        (PhaseProgress(False, 1, 1, failed_before=1), 3, None, SETTLED, Reason.NOT_REGISTERED),
    ],
)
def test_the_reason_tells_what_holds_the_phase_back(
    progress: PhaseProgress | None, known: int, expected: int | None, policy: CompleteWhen | None, reason: Reason
) -> None:
    summary = BatchSummary(1, known, expected, {"p": progress} if progress else {})
    phase = Phase("p", complete_when=policy or CompleteWhen.EVERY_ESSAY_COMPLETED)
    [decision] = resolve(PipelineDefinitions([phase]), "p", summary).decisions
    assert (decision.runs, decision.reason) == (True, reason)
