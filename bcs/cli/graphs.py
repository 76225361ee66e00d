"""Phases and their requirements as the text of a graph. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bcs.domain.pipelines import Phase


def mermaid(phases: Iterable[Phase]) -> str:
    """A Mermaid flowchart; an arrow leads from a phase to a phase that requires it.

    The nodes have generated ids, because the name of a phase can be a keyword of Mermaid, such as `end`.
    """
    phases = tuple(phases)
    lines = ["flowchart LR"]
    lines += [f'    phase_{phase.name}["{"<br>".join((phase.name, *_notes(phase)))}"]' for phase in phases]
    lines += [
        f"    phase_{required} {'-->|again|' if again else '-->'} phase_{name}"
        for required, name, again in _arrows(phases)
    ]
    return "\n".join(lines)


def dot(phases: Iterable[Phase]) -> str:
    """The graph in the language of Graphviz."""
    phases = tuple(phases)
    lines = ["digraph phases {", "    rankdir=LR;", "    node [shape=box];"]
    for phase in phases:
        label = r"\n".join((phase.name, *_notes(phase)))
        lines.append(f'    "{phase.name}" [label="{label}"];')
    lines += [
        f'    "{required}" -> "{name}"{" [label=again]" if again else ""};' for required, name, again in _arrows(phases)
    ]
    return "\n".join((*lines, "}"))


def _notes(phase: Phase) -> Iterator[str]:
    if phase.needs_prompt:
        yield "needs a prompt"


def _arrows(phases: tuple[Phase, ...]) -> Iterator[tuple[str, str, bool]]:
    for phase in phases:
        for required in phase.requires:
            yield required, phase.name, phase.rerun_with_dependencies
