"""Graphs of phases, as text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from bcs.domain.graphs import PhaseInGraph, PhaseStanding, dot, mermaid, standings_of, svg
from bcs.domain.law import CompleteWhen
from bcs.domain.pipelines import Phase, Pipeline, PipelineDefinitions
from bcs.domain.progress import BatchSummary, OlderDefinition, PhaseProgress
from bcs.domain.resolution import resolve

PHASES = (Phase("start"), Phase("end", ("start",), needs_prompt=True, rerun_with_dependencies=True))


def test_a_mermaid_graph_takes_no_phase_for_a_word_of_its_language() -> None:
    assert mermaid(PHASES).splitlines() == [
        "flowchart LR",
        '    phase_start["start"]',
        '    phase_end["end<br>needs a prompt"]',
        "    phase_start -->|again| phase_end",
    ]


def test_a_dot_graph_says_the_same() -> None:
    assert dot(PHASES).splitlines() == [
        "digraph phases {",
        "    rankdir=LR;",
        "    node [shape=box];",
        '    "start" [label="start"];',
        r'    "end" [label="end\nneeds a prompt"];',
        '    "start" -> "end" [label=again];',
        "}",
    ]


def test_phases_that_require_several_have_an_arrow_from_each() -> None:
    arrows = [line.strip() for line in mermaid((Phase("a"), Phase("b"), Phase("c", ("a", "b")))).splitlines()[4:]]
    assert arrows == ["phase_a --> phase_c", "phase_b --> phase_c"]


# --- of a batch ------------------------------------------------------------------------------------------------------

MANY = PipelineDefinitions(
    [
        Phase("done"),
        Phase("settled", complete_when=CompleteWhen.EVERY_ESSAY_SETTLED),
        Phase("failing", ("done",)),
        Phase("partly", ("done",)),
        Phase("open", ("failing", "partly")),
        Phase("again", ("open",), rerun_with_dependencies=True),
        Phase("changed", rerun_when_changed=True),
    ],
    [Pipeline("all", ("done", "settled", "failing", "partly", "open", "again", "changed"))],
)
SUMMARY = BatchSummary(
    1,
    30,
    30,
    {
        "done": PhaseProgress(True, 30, 0),
        "settled": PhaseProgress(True, 28, 2),
        "failing": PhaseProgress(False, 29, 1),
        "partly": PhaseProgress(False, 7, 0),
        "again": PhaseProgress(True, 30, 0),
        "changed": PhaseProgress(True, 30, 0, older=OlderDefinition("old", 1, 0)),
    },
)


def test_each_phase_shows_how_far_it_is() -> None:
    assert standings_of(resolve(MANY, "all", SUMMARY)) == {
        "done": PhaseInGraph(PhaseStanding.COMPLETE, "complete: 30 of 30"),
        "settled": PhaseInGraph(PhaseStanding.SETTLED, "settled: 28 of 30, 2 failed"),
        "failing": PhaseInGraph(PhaseStanding.FAILED, "failed: 29 of 30, 1 failed"),
        "partly": PhaseInGraph(PhaseStanding.PARTLY, "partly: 7 of 30"),
        "open": PhaseInGraph(PhaseStanding.OPEN, "open: 0 of 30"),
        "again": PhaseInGraph(PhaseStanding.RUNS_AGAIN, "runs again: 30 of 30"),
        "changed": PhaseInGraph(PhaseStanding.RUNS_AGAIN, "runs again: 30 of 30"),
    }


def test_every_language_has_the_text_and_the_colour_of_each_phase() -> None:
    plan, shown = MANY.plan("all"), standings_of(resolve(MANY, "all", SUMMARY))
    for text in (mermaid(plan, shown), dot(plan, shown), svg(plan, shown)):
        for phase in shown.values():
            assert phase.text in text
    assert "style phase_failing fill:#fbd9d7,stroke:#c62828" in mermaid(plan, shown)
    assert 'fillcolor="#fbd9d7", color="#c62828"' in dot(plan, shown)


# --- as a picture ----------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("shown", [{}, standings_of(resolve(MANY, "all", SUMMARY))])
def test_a_picture_has_each_phase_right_of_those_that_it_requires(shown: dict[str, PhaseInGraph]) -> None:
    picture = ElementTree.fromstring(svg(MANY.plan("all"), shown))  # noqa: S314 (our own text)
    boxes = {
        str(group.findtext(f"{SVG}title")): [float(group.find(f"{SVG}rect").attrib[name]) for name in KEYS]  # type: ignore[union-attr]
        for group in picture.findall(f"{SVG}g")
    }
    assert boxes.keys() == MANY.phases.keys()
    width, height = float(picture.attrib["width"]), float(picture.attrib["height"])
    for phase in MANY.phases.values():
        left, top, wide, high = boxes[phase.name]
        assert 0 < left < left + wide < width
        assert 0 < top < top + high < height
        for required in phase.requires:
            assert boxes[required][0] + boxes[required][2] < left
        for other, (x, y, w, h) in boxes.items():
            apart = left + wide <= x or x + w <= left or top + high <= y or y + h <= top
            assert apart or other == phase.name
    arrows = [path for path in picture.findall(f"{SVG}path") if "marker-end" in path.attrib]
    assert len(arrows) == sum(len(phase.requires) for phase in MANY.phases.values())
    assert [text.text for text in picture.findall(f"{SVG}text")] == ["again"]


KEYS = ("x", "y", "width", "height")


def test_a_picture_refers_to_nothing_outside() -> None:
    assert not re.search(r"href|script|url\((?!#)", svg(MANY.plan("all")))
