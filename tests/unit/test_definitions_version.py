"""Version, hash and difference of definitions: equal hashes exactly where every request is decided in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcs.config.pipelines import load_pipelines, pipelines_yaml
from bcs.domain.definitions_difference import difference
from bcs.domain.law import CompleteWhen
from bcs.domain.pipelines import Phase, PhaseNames, Pipeline, PipelineDefinitions
from bcs.errors import ConfigurationError, PipelineCycle, UnknownMember
from tests.support.tiers import examples

PHASES = (Phase("a"), Phase("b", ("a",)), Phase("c", ("a",)), Phase("d", ("b", "c"), needs_prompt=True))
PIPELINES = (Pipeline("one", ("b", "c")), Pipeline("two", ("d",)))
BEFORE = PipelineDefinitions(PHASES, PIPELINES)


def with_phase(name: str, **changes: Any) -> PipelineDefinitions:
    return PipelineDefinitions((replace(each, **changes) if each.name == name else each for each in PHASES), PIPELINES)


def order(definitions: PipelineDefinitions, name: str) -> list[str]:
    return [phase.name for phase in definitions.plan(name)]


def load(directory: Path, text: str) -> PipelineDefinitions:
    file = directory / "pipelines.yaml"
    file.write_text(text)
    return load_pipelines(file)


# --- the hash --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "same",
    [
        PipelineDefinitions(PHASES, PIPELINES, version="7"),
        PipelineDefinitions(PHASES, reversed(PIPELINES)),
        with_phase("d", requires=("c", "b")),
        PipelineDefinitions((*PHASES[1:], PHASES[0]), PIPELINES),
        PipelineDefinitions(PHASES, (PIPELINES[0], Pipeline("two", ("d",), ("one",)))),
    ],
    ids=["version", "order of pipelines", "order of requirements", "order that changes no plan", "written otherwise"],
)
def test_what_decides_the_same_has_the_same_hash(same: PipelineDefinitions) -> None:
    assert same.identity.content_hash == BEFORE.identity.content_hash
    assert difference(BEFORE, same).same_content


@pytest.mark.parametrize(
    "other",
    [
        with_phase("b", requires=()),
        with_phase("b", needs_prompt=True),
        with_phase("b", rerun_with_dependencies=True),
        with_phase("b", complete_when=CompleteWhen.EVERY_ESSAY_SETTLED),
        with_phase("b", rerun_when_changed=True),
        with_phase("b", revision="2"),
        PipelineDefinitions((*PHASES, Phase("e")), PIPELINES),
        PipelineDefinitions(PHASES, PIPELINES[:1]),
        PipelineDefinitions(PHASES, (Pipeline("one", ("c", "b")), PIPELINES[1])),
        PipelineDefinitions((PHASES[0], PHASES[2], PHASES[1], PHASES[3]), PIPELINES),
    ],
)
def test_every_change_of_a_decision_changes_the_hash(other: PipelineDefinitions) -> None:
    assert other.identity.content_hash != BEFORE.identity.content_hash
    assert list(difference(BEFORE, other).sentences())


@st.composite
def definitions(draw: st.DrawFn) -> PipelineDefinitions:
    names = draw(st.permutations("pqr"))[: draw(st.integers(1, 3))]
    phases = [
        Phase(name, tuple(draw(st.lists(st.sampled_from(names[:position]), unique=True)) if position else ()))
        for position, name in enumerate(names)
    ]
    wanted = draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
    return PipelineDefinitions(draw(st.permutations(phases)), [Pipeline("wanted", tuple(wanted))])


@given(definitions(), definitions())
@settings(max_examples=examples(30), deadline=None)
def test_hash_and_difference_agree(first: PipelineDefinitions, second: PipelineDefinitions) -> None:
    def of(one: PipelineDefinitions) -> object:
        requires = {phase.name: set(phase.requires) for phase in one.phases.values()}
        return requires, {name: order(one, name) for name in one.names}

    found = difference(first, second)
    assert found.same_content is (of(first) == of(second)) is (not list(found.sentences()))


def test_the_hash_of_what_ships_changes_only_on_purpose() -> None:
    """Replicas of different releases with the same file must not look different."""
    assert str(load_pipelines(None).identity) == "7964badc9b283e46"


# --- the hash of a phase ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"revision": "2"}, False),
        ({"requires": ("a", "b")}, False),
        ({"requires": ("b", "a", "c"), "needs_prompt": True}, False),
        ({"needs_prompt": True}, True),
        ({"rerun_with_dependencies": True}, True),
        ({"rerun_when_changed": True}, True),
        ({"complete_when": CompleteWhen.EVERY_ESSAY_SETTLED}, True),
    ],
)
def test_the_definition_of_a_phase_is_what_decides_about_its_results(changes: dict[str, Any], same: bool) -> None:
    phase = Phase("d", ("b", "c"))
    assert (replace(phase, **changes).definition == phase.definition) is same


def test_the_order_of_requirements_and_other_phases_are_not_in_a_definition() -> None:
    assert Phase("d", ("b", "c")).definition == Phase("d", ("c", "b")).definition != Phase("e", ("b", "c")).definition
    assert with_phase("b", revision="2").phases["d"].definition == BEFORE.phases["d"].definition


def test_a_definition_has_the_same_hash_in_every_release() -> None:
    """Otherwise an upgrade would run every phase again."""
    assert Phase("d", ("c", "b"), revision="2").definition == "d7bf8f95a039ece4"


def test_definitions_change_the_law_only_where_they_are_compared() -> None:
    def fingerprint(**changes: Any) -> str:
        return with_phase("b", **changes).law(require_registration=False).fingerprint

    assert fingerprint() == fingerprint(revision="2") == BEFORE.law(require_registration=False).fingerprint
    kept = fingerprint(rerun_when_changed=True)
    assert kept not in (fingerprint(), fingerprint(rerun_when_changed=True, revision="2"))


def test_the_difference_names_the_phases_that_run_again() -> None:
    kept, changed = (with_phase("b", rerun_when_changed=True, revision=text) for text in "12")
    [again] = difference(kept, changed).runs_again
    assert (again.phase, again.before, again.after) == (
        "b",
        kept.phases["b"].definition,
        changed.phases["b"].definition,
    )
    assert [sentence for sentence in difference(kept, changed).sentences() if "runs again for batches" in sentence]
    for before, after in ((kept, kept), (BEFORE, changed), (changed, with_phase("b", revision="1"))):
        assert difference(before, after).runs_again == ()


# --- the version -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "version"), [("7", "7"), ("'1.10'", "1.10"), ("2026-11-29", "2026-11-29"), ("v3+a/b", "v3+a/b")]
)
def test_a_version_is_a_short_text(tmp_path: Path, written: str, version: str) -> None:
    loaded = load(tmp_path, f"version: {written}\nphases: [{{name: a}}]")
    assert loaded.identity.version == version
    assert str(loaded.identity) == f"{version} {loaded.identity.content_hash}"
    assert load(tmp_path, pipelines_yaml(loaded)).identity == loaded.identity


@pytest.mark.parametrize("written", ["1.10", "''", "'a b'", "true", "[1]", f"'{'x' * 65}'", "'x\\n'", '"ü"'])
def test_a_version_that_is_no_label_is_refused(tmp_path: Path, written: str) -> None:
    with pytest.raises(ConfigurationError, match="version"):
        load(tmp_path, f"version: {written}\nphases: [{{name: a}}]")


# --- pipelines of pipelines ------------------------------------------------------------------------------------------


def composite(*pipelines: tuple[str, Iterable[str], Iterable[str]]) -> PipelineDefinitions:
    return PipelineDefinitions(PHASES, (Pipeline(name, tuple(own), tuple(others)) for name, own, others in pipelines))


@pytest.mark.parametrize("outer_first", [True, False])
def test_a_pipeline_has_the_phases_of_those_that_it_names(outer_first: bool) -> None:
    pipelines = [("all", ["a"], ["inner", "b"]), ("inner", ["c"], ["innermost"]), ("innermost", ["a"], ["c"])]
    made = composite(*(pipelines if outer_first else reversed(pipelines)))
    assert order(made, "all") == ["a", "c", "b"]
    assert order(made, "inner") == ["a", "c"]


def test_a_pipeline_may_have_the_name_of_a_phase_that_another_one_adds() -> None:
    assert order(composite(("b", [], ["other"]), ("other", ["b", "c"], [])), "b") == ["a", "b", "c"]


def test_a_file_may_list_pipelines_alone(tmp_path: Path) -> None:
    text = "phases: [{name: a}, {name: b}]\npipelines: [{name: p, phases: [b]}, {name: q, pipelines: [p, a]}]"
    loaded = load(tmp_path, text)
    assert order(loaded, "q") == ["b", "a"]
    assert load(tmp_path, pipelines_yaml(loaded)).pipelines == loaded.pipelines
    with pytest.raises(ConfigurationError, match=r"pipelines\.0"):
        load(tmp_path, "phases: [{name: a}]\npipelines: [{name: p}]")


def test_a_cycle_of_pipelines_is_refused_with_their_names() -> None:
    with pytest.raises(PipelineCycle) as refused:
        composite(("free", ["a"], []), ("x", ["a"], ["y"]), ("y", [], ["z", "free"]), ("z", [], ["x"]))
    cycle = refused.value.pipelines
    assert (cycle[0], set(cycle), len(cycle)) == (cycle[-1], {"x", "y", "z"}, 4)
    assert "x -> y" in str(refused.value)
    with pytest.raises(PipelineCycle, match="a -> a"):
        composite(("a", ["a"], ["a"]))


def test_an_unknown_pipeline_is_refused_with_both_names() -> None:
    with pytest.raises(UnknownMember, match="the pipeline 'x' names the pipeline 'y'"):
        composite(("x", ["a"], ["y"]))


@pytest.mark.parametrize("pipeline", [("x", ["a", "a"], []), ("x", [], ["a", "a"]), ("b", ["a"], ["c"])])
def test_what_is_named_twice_is_refused(pipeline: tuple[str, list[str], list[str]]) -> None:
    with pytest.raises(ConfigurationError, match="defined twice"):
        composite(pipeline)


# --- the difference --------------------------------------------------------------------------------------------------

CHANGES: list[tuple[Callable[[], PipelineDefinitions], list[str]]] = [
    (lambda: BEFORE, []),
    (lambda: PipelineDefinitions(PHASES, PIPELINES, version="2"), ["version: 2, before none"]),
    (
        lambda: with_phase("b", requires=(), complete_when=CompleteWhen.EVERY_ESSAY_SETTLED),
        [
            "phase b: requires is nothing, before a",
            "phase b: complete_when is every_essay_settled, before every_essay_completed",
            "pipeline b: runs b, before a, b",
            "pipeline one: runs b, a, c, before a, b, c",
        ],
    ),
    (
        lambda: PipelineDefinitions((*PHASES, Phase("e")), (PIPELINES[0], Pipeline("new", ("e",)))),
        ["phase e: added", "pipeline two: removed, ran a, b, c, d", "pipeline new: added, runs e"],
    ),
    (
        lambda: PipelineDefinitions(PHASES[:3], PIPELINES[:1]),
        ["phase d: removed", "pipeline two: removed, ran a, b, c, d"],
    ),
]


@pytest.mark.parametrize(("after", "sentences"), CHANGES)
def test_a_difference_names_each_change(after: Callable[[], PipelineDefinitions], sentences: list[str]) -> None:
    assert sorted(difference(BEFORE, after()).sentences()) == sorted(sentences)


# --- phases of facts -------------------------------------------------------------------------------------------------


def test_facts_are_about_known_phases_or_any_where_the_settings_say_so() -> None:
    known, any_phase = PhaseNames(["grammar"]), PhaseNames(["grammar"], keep_unknown=True)
    assert all(name in known and name in any_phase for name in ("grammar", "nlp", "student_matching"))
    assert ("new" in known, "new" in any_phase) == (False, True)
    assert not any(name in any_phase for name in ("", "New", "a b", "new\n", "x" * 64, "1st"))
