"""What is forced, left out or assumed: against a brute-force oracle on random acyclic graphs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from bcs.domain.pipelines import Phase, Pipeline, PipelineDefinitions
from bcs.domain.progress import BatchSummary, PhaseProgress
from bcs.domain.resolution import Reason, Resolution, resolve, validate_request
from bcs.domain.resolve_options import PLAIN, Force, ResolveOptions
from bcs.errors import NeededPhasesLeftOut, PromptRequired, UnknownPhases
from tests.property.test_resolution import NAMES, Graph, closure, graphs, summary_of
from tests.support.tiers import examples

some = settings(deadline=None, max_examples=examples(20))


@st.composite
def requests(draw: st.DrawFn) -> tuple[Graph, ResolveOptions]:
    """A graph with the pipeline `wanted`, and options that name only its phases."""
    phases, pipeline = draw(graphs())
    by_name = {phase.name: phase for phase in phases}
    names = sorted(closure(by_name, pipeline.phases))
    few = st.lists(st.sampled_from(names), unique=True, max_size=2).map(tuple)
    completed = draw(few)
    options = ResolveOptions(
        force=draw(st.sampled_from(Force) | few),
        until=draw(st.none() | st.sampled_from(names)),
        only=draw(st.just(()) | few),
        exclude=draw(st.just(()) | few),
        assume_completed=completed,
        assume_failed=tuple(name for name in draw(few) if name not in completed),
    )
    return (phases, pipeline), options


def selected_in(graph: Graph, options: ResolveOptions) -> set[str]:
    phases, pipeline = graph
    by_name = {phase.name: phase for phase in phases}
    selected = closure(by_name, pipeline.phases)
    if options.until:
        selected = closure(by_name, (options.until,))
    if options.only:
        selected &= set(options.only)
    return selected - set(options.exclude)


def forced_in(graph: Graph, options: ResolveOptions) -> set[str]:
    selected = selected_in(graph, options)
    if options.force is Force.ALL:
        return selected
    return selected & set(graph[1].phases if options.force is Force.REQUESTED else options.force)


def complete_in(completed: set[str], options: ResolveOptions) -> set[str]:
    return (completed | set(options.assume_completed)) - set(options.assume_failed)


@some
@given(requests(), st.sets(st.sampled_from(NAMES)))
def test_options_do_what_the_brute_force_oracle_does(
    request_: tuple[Graph, ResolveOptions], completed: set[str]
) -> None:
    graph, options = request_
    phases, pipeline = graph
    by_name = {phase.name: phase for phase in phases}
    selected, forced, complete = selected_in(graph, options), forced_in(graph, options), complete_in(completed, options)

    def runs(name: str) -> bool:
        again = by_name[name].rerun_with_dependencies and any(runs(each) for each in by_name[name].requires)
        return name in selected and (name not in complete or name in forced or again)

    definitions = PipelineDefinitions(phases, [pipeline])
    running = {name for name in closure(by_name, pipeline.phases) if runs(name)}
    lacking = {each for name in running for each in by_name[name].requires} - selected - complete
    summary = summary_of(completed)
    if not isinstance(options.force, Force) and not set(options.force) <= selected:
        event("force names what is left out")
        with pytest.raises(UnknownPhases) as unknown:
            resolve(definitions, "wanted", summary, options)
        assert (unknown.value.option, set(unknown.value.known)) == ("force", selected)
        return
    if lacking:
        event("needed phases are left out")
        with pytest.raises(NeededPhasesLeftOut) as refusal:
            resolve(definitions, "wanted", summary, options)
        assert {one.phase for one in refusal.value.needed} == lacking
        for one in refusal.value.needed:
            assert set(one.needed_by) == {name for name in running if one.phase in by_name[name].requires}
            assert one.phase in str(refusal.value)
        return
    resolution = resolve(definitions, "wanted", summary, options)
    event(f"runs: {len(running)}, left out: {len(resolution.left_out)}")
    assert set(resolution.to_run) == running
    assert set(resolution.pruned) == selected - running
    assert set(resolution.left_out) == closure(by_name, pipeline.phases) - selected
    check_reasons(resolution, options, complete, forced)


def check_reasons(resolution: Resolution, options: ResolveOptions, complete: set[str], forced: set[str]) -> None:
    reasons = {one.phase: one.reason for one in resolution.decisions}
    for one in resolution.decisions:
        assert one.complete == (one.phase in complete)
        assert one.forced == (one.phase in forced)
        assert bool(one.run_again_after) == (one.reason in (Reason.DEPENDENCY_RUNS_AGAIN, Reason.DOWNSTREAM_OF_FORCED))
        assert one.phase in resolution.explanation
        match one.reason:
            case Reason.FORCED:
                assert one.phase in forced
            case Reason.DOWNSTREAM_OF_FORCED:
                assert {reasons[name] for name in one.run_again_after} <= {Reason.FORCED, Reason.DOWNSTREAM_OF_FORCED}
            case Reason.ASSUMED_COMPLETED:
                assert one.phase in options.assume_completed
            case Reason.ASSUMED_FAILED:
                assert one.phase in options.assume_failed
            case Reason.NOT_SELECTED:
                assert not one.selected


@some
@given(graphs(), st.sets(st.sampled_from(NAMES)))
def test_options_that_ask_for_nothing_change_nothing(graph: Graph, completed: set[str]) -> None:
    phases, pipeline = graph
    definitions = PipelineDefinitions(phases, [pipeline])
    plain = resolve(definitions, "wanted", summary_of(completed))
    assert resolve(definitions, "wanted", summary_of(completed), ResolveOptions()) == plain
    assert resolve(definitions, "wanted", summary_of(completed), PLAIN) == plain


CHAIN = PipelineDefinitions(
    [
        Phase("p"),
        Phase("q", ("p",), needs_prompt=True),
        Phase("r", ("q",), rerun_with_dependencies=True),
        Phase("s", ("r",), rerun_with_dependencies=True),
    ],
    [Pipeline("last", ("s",)), Pipeline("q", ("q", "p"))],
)
ALL_DONE = summary_of({"p", "q", "r", "s"})
NAMED = BatchSummary(1, 2, 2, {"p": PhaseProgress(False, 1, 1)})


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("force", ResolveOptions(force=("unknown",))),
        ("force", ResolveOptions(force=("p",), exclude=("p",))),
        ("until", ResolveOptions(until="unknown")),
        ("only", ResolveOptions(only=("p", "unknown"))),
        ("exclude", ResolveOptions(exclude=("unknown",))),
        ("assume_completed", ResolveOptions(assume_completed=("unknown",))),
        ("assume_failed", ResolveOptions(assume_failed=("unknown",))),
    ],
)
def test_an_option_that_names_another_phase_is_refused(option: str, options: ResolveOptions) -> None:
    for act in (
        lambda: resolve(CHAIN, "last", ALL_DONE, options),
        lambda: validate_request(CHAIN, "last", prompt_attached=None, options=options),
    ):
        with pytest.raises(UnknownPhases) as refusal:
            act()
        assert refusal.value.option == option
        assert "unknown" not in str(refusal.value)


@pytest.mark.parametrize(
    ("requested", "options", "reasons"),
    [
        ("last", ResolveOptions(force=("q",)), ["already_completed", "forced", *2 * ["downstream_of_forced"]]),
        ("last", ResolveOptions(force=Force.REQUESTED), [*3 * ["already_completed"], "forced"]),
        ("q", ResolveOptions(force=Force.REQUESTED), ["forced", "forced"]),
        ("last", ResolveOptions(force=Force.ALL), 4 * ["forced"]),
        ("last", ResolveOptions(until="q"), [*2 * ["already_completed"], *2 * ["not_selected"]]),
        ("q", ResolveOptions(until="p"), ["already_completed", "not_selected"]),
        ("last", ResolveOptions(force=Force.ALL, only=("q",)), ["not_selected", "forced", *2 * ["not_selected"]]),
        (
            "last",
            ResolveOptions(assume_failed=("q",)),
            ["already_completed", "assumed_failed", *2 * ["dependency_runs_again"]],
        ),
    ],
)
def test_the_reason_names_the_option_that_decided(requested: str, options: ResolveOptions, reasons: list[str]) -> None:
    decisions = resolve(CHAIN, requested, ALL_DONE, options).decisions
    assert [decision.reason.value for decision in decisions] == reasons


def test_a_refusal_says_what_is_needed_by_whom_and_why_it_is_not_complete() -> None:
    with pytest.raises(NeededPhasesLeftOut) as refusal:
        resolve(CHAIN, "q", NAMED, ResolveOptions(exclude=("p",)))
    [needed] = refusal.value.needed
    assert (needed.phase, needed.needed_by, needed.reason_text) == ("p", ("q",), "1 of 2 essays failed in it")
    assert str(refusal.value) == (
        "the request leaves out what q needs and what is not complete: p, because 1 of 2 essays failed in it"
    )
    allowed = replace(ResolveOptions(exclude=("p",)), assume_completed=("p",))
    assert resolve(CHAIN, "q", NAMED, allowed).to_run == ("q",)


def test_a_prompt_is_needed_only_for_selected_phases() -> None:
    with pytest.raises(PromptRequired):
        validate_request(CHAIN, "q", prompt_attached=False, options=ResolveOptions(only=("q",)))
    validate_request(CHAIN, "q", prompt_attached=False, options=ResolveOptions(until="p"))


def test_everything_left_out_is_an_answer_that_says_so() -> None:
    resolution = resolve(CHAIN, "q", ALL_DONE, ResolveOptions(exclude=("p", "q")))
    assert (resolution.to_run, resolution.pruned, resolution.left_out) == ((), (), ("p", "q"))
    assert resolution.explanation == "Nothing is left to run of pipeline 'q'. Left out, as requested: p, q."
