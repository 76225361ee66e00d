"""Graphs of phases, as text."""

from __future__ import annotations

from bcs.domain.graphs import dot, mermaid
from bcs.domain.pipelines import Phase

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
