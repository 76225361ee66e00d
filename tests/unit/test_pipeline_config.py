"""The pipeline definitions file: the one that ships, and every kind of broken one."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from bcs.config.pipelines import load_pipelines, pipelines_yaml
from bcs.domain.pipelines import PLATFORM_PHASES, Phase, PipelineDefinitions
from bcs.errors import (
    ConfigurationError,
    DependenciesDiffer,
    DependencyCycle,
    DuplicateName,
    UnknownDependency,
    UnreadableConfiguration,
)

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pipelines.yaml"


def load(file: Path, text: str) -> PipelineDefinitions:
    file.write_text(dedent(text), encoding="utf-8")
    return load_pipelines(file)


def refusal_of(file: Path, text: str | bytes) -> ConfigurationError:
    file.write_bytes(text if isinstance(text, bytes) else dedent(text).encode())
    with pytest.raises(ConfigurationError) as refusal:
        load_pipelines(file)
    return refusal.value


def names(phases: tuple[Phase, ...]) -> list[str]:
    return [phase.name for phase in phases]


def test_what_ships_are_the_rules_of_the_design() -> None:
    shipped = load_pipelines(None)
    assert {name: phase.requires for name, phase in shipped.phases.items()} == {
        "spellcheck": (),
        "nlp": ("spellcheck",),
        "cj_assessment": ("spellcheck",),
        "ai_feedback": ("spellcheck",),
    }
    assert {name for name, phase in shipped.phases.items() if phase.needs_prompt} == {
        "nlp",
        "cj_assessment",
        "ai_feedback",
    }
    assert not any(phase.rerun_with_dependencies for phase in shipped.phases.values())
    assert shipped.names == ("spellcheck", "nlp", "cj_assessment", "ai_feedback", "comprehensive")
    assert names(shipped.plan("comprehensive")) == ["spellcheck", "nlp", "cj_assessment", "ai_feedback"]
    assert names(shipped.plan("ai_feedback")) == ["spellcheck", "ai_feedback"]
    assert shipped.phases.keys() <= PLATFORM_PHASES


def test_what_ships_is_the_file_in_config() -> None:
    from_file = load_pipelines(ROOT / "config" / "pipelines.yaml")
    shipped = load_pipelines(None)
    assert from_file.phases == shipped.phases
    assert {name: from_file.plan(name) for name in from_file.names} == {
        name: shipped.plan(name) for name in shipped.names
    }


def test_every_option_of_a_file_is_read(file: Path) -> None:
    definitions = load(
        file,
        """
        phases:
          - {name: b, requires: [a], needs_prompt: true, rerun_with_dependencies: true, rerun_when_changed: true}
          - {name: a, revision: 2026-11}
        pipelines:
          - {name: all_of_it, phases: [b]}
        """,
    )
    assert dict(definitions.phases) == {
        "b": Phase("b", ("a",), True, True, rerun_when_changed=True),
        "a": Phase("a", revision="2026-11"),
    }
    assert names(definitions.plan("all_of_it")) == ["a", "b"]


def test_pipelines_may_be_left_out(file: Path) -> None:
    assert load(file, "phases: [{name: only}]").names == ("only",)


PLATFORM_FILE = """
pipelines:
  ai_feedback:
    description: "Feedback, with everything before it"
    steps:
      - {name: spellcheck, service_name: spellchecker_service, event_type: s.v1, event_data_model: S, depends_on: []}
      - {name: nlp, service_name: nlp_service, event_type: n.v1, event_data_model: N, depends_on: [spellcheck]}
      - {name: ai_feedback, depends_on: [spellcheck]}
  nlp:
    steps: [{name: spellcheck}, {name: nlp, depends_on: [spellcheck]}]
  student_matching:
    steps: [{name: student_matching}]
  comprehensive:
    steps:
      - {name: spellcheck}
      - {name: ai_feedback, depends_on: [spellcheck]}
"""


def test_the_platforms_file_is_read_and_every_name_keeps_its_phases(file: Path) -> None:
    definitions = load(file, PLATFORM_FILE)
    assert {name: phase.requires for name, phase in definitions.phases.items()} == {
        "spellcheck": (),
        "nlp": ("spellcheck",),
        "ai_feedback": ("spellcheck",),
        "student_matching": (),
    }
    assert {name for name, phase in definitions.phases.items() if phase.needs_prompt} == {"nlp", "ai_feedback"}
    assert {name: names(definitions.plan(name)) for name in definitions.names} == {
        "spellcheck": ["spellcheck"],
        "nlp": ["spellcheck", "nlp"],
        "ai_feedback": ["spellcheck", "nlp", "ai_feedback"],
        "student_matching": ["student_matching"],
        "comprehensive": ["spellcheck", "ai_feedback"],
    }
    assert set(definitions.pipelines) == {"ai_feedback", "comprehensive"}


@pytest.mark.parametrize("source", ["platform", "shipped", "every option"])
def test_a_converted_file_defines_the_same(tmp_path: Path, file: Path, source: str) -> None:
    text = {
        "platform": PLATFORM_FILE,
        "shipped": (ROOT / "config" / "pipelines.yaml").read_text(),
        "every option": """
            phases:
              - {name: a}
              - name: b
                requires: [a]
                needs_prompt: true
                rerun_with_dependencies: true
                complete_when: every_essay_settled
                rerun_when_changed: true
                revision: 3
            pipelines: [{name: both, phases: [b]}]
            """,
    }[source]
    given = load(file, text)
    ours = tmp_path / "ours.yaml"
    ours.write_text(pipelines_yaml(given))
    converted = load_pipelines(ours)
    assert "steps" not in ours.read_text()
    assert (dict(converted.phases), dict(converted.pipelines)) == (dict(given.phases), dict(given.pipelines))
    assert [converted.plan(name) for name in given.names] == [given.plan(name) for name in given.names]


def test_dependencies_that_differ_between_pipelines_name_both(file: Path) -> None:
    refusal = refusal_of(
        file,
        """
        pipelines:
          short: {steps: [{name: spellcheck}, {name: nlp, depends_on: []}]}
          same: {steps: [{name: spellcheck}]}
          long: {steps: [{name: spellcheck}, {name: nlp, depends_on: [spellcheck]}]}
        """,
    )
    assert isinstance(refusal, DependenciesDiffer)
    assert (refusal.phase, refusal.first, refusal.second) == ("nlp", ("short", ()), ("long", ("spellcheck",)))
    assert str(refusal) == (
        "the phase 'nlp' depends on nothing in pipeline 'short' and on spellcheck in pipeline 'long'; "
        "both must be the same"
    )


def test_a_cycle_names_its_phases(file: Path) -> None:
    refusal = refusal_of(
        file,
        """
        phases:
          - {name: free}
          - {name: first, requires: [third]}
          - {name: second, requires: [first, free]}
          - {name: third, requires: [second]}
        """,
    )
    assert isinstance(refusal, DependencyCycle)
    assert set(refusal.phases) == {"first", "second", "third"}
    assert all(name in str(refusal) for name in ("first", "second", "third"))
    assert "free" not in str(refusal)


def test_a_phase_that_requires_itself_is_a_cycle(file: Path) -> None:
    refusal = refusal_of(file, "phases: [{name: alone, requires: [alone]}]")
    assert isinstance(refusal, DependencyCycle)
    assert refusal.phases == ("alone", "alone")


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("phases: [{name: known, requires: [mistyped]}]", "known"),
        ("{phases: [{name: known}], pipelines: [{name: all_of_it, phases: [known, mistyped]}]}", "all_of_it"),
        ("pipelines: {p: {steps: [{name: known, depends_on: [mistyped]}]}}", "known"),
    ],
)
def test_an_unknown_phase_is_named_together_with_who_names_it(file: Path, text: str, owner: str) -> None:
    refusal = refusal_of(file, text)
    assert isinstance(refusal, UnknownDependency)
    assert (refusal.owner, refusal.missing) == (owner, "mistyped")
    assert owner in str(refusal)
    assert "mistyped" in str(refusal)


@pytest.mark.parametrize(
    "text",
    [
        "phases: [{name: twice}, {name: other}, {name: twice, requires: [other]}]",
        "phases: [{name: twice}, {name: other, requires: [twice, twice]}]",
        "{phases: [{name: twice}, {name: a}], pipelines: [{name: twice, phases: [a]}]}",
        "pipelines: {p: {steps: [{name: twice}, {name: twice}]}}",
        "pipelines: {p: {steps: [{name: twice}]}, q: {steps: [{name: a, depends_on: [twice, twice]}]}}",
        "pipelines: {twice: {steps: [{name: a}]}, twice: {steps: [{name: b}]}}",
        "{phases: [{name: a}], pipelines: [{name: twice, phases: [a]}, {name: twice, phases: [a]}]}",
        "{phases: [{name: twice}], pipelines: [{name: all_of_it, phases: [twice, twice]}]}",
        "{phases: [{name: a}], twice: 1, twice: 2}",
    ],
)
def test_what_stands_twice_is_named(file: Path, text: str) -> None:
    refusal = refusal_of(file, text)
    assert isinstance(refusal, DuplicateName)
    assert refusal.name == "twice"
    assert "'twice'" in str(refusal)


def test_a_key_that_stands_twice_is_named_with_its_line(file: Path) -> None:
    refusal = refusal_of(
        file,
        """\
        phases:
          - name: a
          - name: b
            requires: [a]
            requires: []
        """,
    )
    assert isinstance(refusal, DuplicateName)
    assert refusal.name == "requires"
    assert "line 3" in str(refusal)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("phases: [{name: a, requries: [b]}]", "phases.0.requries"),
        ("{phases: [{name: a}], pipeline: []}", "pipeline"),
        ("pipelines: []", "phases"),
        ("phases: []", "phases"),
        ("phases:", "phases"),
        ("phases: {a: {requires: []}}", "phases"),
        ("phases: [a]", "phases.0"),
        ("phases: [{requires: []}]", "phases.0.name"),
        ("phases: [{name: Capital}]", "phases.0.name"),
        ("phases: [{name: 'with space'}]", "phases.0.name"),
        ('phases: [{name: "new\\nline"}]', "phases.0.name"),
        ('phases: [{name: "ends\\n"}]', "phases.0.name"),
        ("phases: [{name: ''}]", "phases.0.name"),
        (f"phases: [{{name: {'x' * 64}}}]", "phases.0.name"),
        ("phases: [{name: 12}]", "phases.0.name"),
        ("phases: [{name: 2024-01-31}]", "phases.0.name"),
        ("phases: [{name: yes}]", "phases.0.name"),
        ("phases: [{name: a, requires: b}]", "phases.0.requires"),
        ("phases: [{name: a, requires: null}]", "phases.0.requires"),
        ("phases: [{name: a, requires: [1]}]", "phases.0.requires.0"),
        ("phases: [{name: a, needs_prompt: 1}]", "phases.0.needs_prompt"),
        ("phases: [{name: a, needs_prompt: 'true'}]", "phases.0.needs_prompt"),
        ("{phases: [{name: a}], pipelines: [{name: p, phases: []}]}", "pipelines.0.phases"),
        ("{phases: [{name: a}], pipelines: [{phases: [a]}]}", "pipelines.0.name"),
        ("pipelines: {p: {steps: []}}", "pipelines.p.steps"),
        ("pipelines: {p: {steps: [{name: a, depend_on: [b]}]}}", "pipelines.p.steps.0.depend_on"),
        ("pipelines: {p: {steps: [{depends_on: []}]}}", "pipelines.p.steps.0.name"),
        ("pipelines: {p: [a]}", "pipelines.p"),
        ("pipelines: {}", "pipelines"),
        ("{pipelines: {p: {steps: [{name: a}]}}, version: 1}", "version"),
        ("[]", "file"),
        ("text", "file"),
        ("", "file"),
        ("# nothing\n", "file"),
    ],
)
def test_a_file_of_another_form_is_refused_where_it_differs(file: Path, text: str, named: str) -> None:
    refusal = refusal_of(file, text)
    assert isinstance(refusal, UnreadableConfiguration)
    assert str(file) in str(refusal)
    assert f"{named}: " in refusal.problem


def test_all_problems_are_reported_at_once(file: Path) -> None:
    refusal = refusal_of(file, "{phases: [{name: A}, {name: b, requires: c}], more: 1}")
    assert isinstance(refusal, UnreadableConfiguration)
    assert all(named in refusal.problem for named in ("phases.0.name", "phases.1.requires", "more"))


@pytest.mark.parametrize(
    "text",
    [
        "phases: [",
        "phases: [{name: a}]\n\tpipelines: []",
        "phases: *nowhere",
        "--- {phases: [{name: a}]}\n--- {phases: [{name: b}]}",
        "phases: !!python/object/apply:os.getcwd []",
        "phases: [{name: !local a}]",
        "? [a]\n: b",
        "? {a: b}\n: c",
        "phases: \x00",
        "phases: [{name: 2024-13-45}]",
        "phases: [{name: !!int a}]",
        "phases: [{name: !!binary ä}]",
        "phases: [{name: !!timestamp a}]",
        "phases: &again [*again]",
        b"phases: [{name: \xff}]",
        "[" * 1000,
    ],
)
def test_what_is_not_readable_yaml_is_refused_in_one_line(file: Path, text: str | bytes) -> None:
    refusal = refusal_of(file, text)
    assert isinstance(refusal, UnreadableConfiguration)
    assert refusal.path == str(file)
    assert refusal.problem
    assert "\n" not in str(refusal)


def test_a_file_that_is_missing_or_a_directory_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(UnreadableConfiguration) as refusal:
            load_pipelines(path)
        assert str(path) in str(refusal.value)
