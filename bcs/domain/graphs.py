"""Phases and their requirements as a graph: text for Mermaid or Graphviz, or a picture. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from xml.sax.saxutils import escape

from bcs.domain.pipelines import Phase
from bcs.domain.resolution import Reason, Resolution


class PhaseStanding(StrEnum):
    """How far a phase is for a batch."""

    COMPLETE = "complete"
    SETTLED = "settled"
    RUNS_AGAIN = "runs_again"
    FAILED = "failed"
    PARTLY = "partly"
    OPEN = "open"


# Fill and line. The text of a phase says the same, for people who can't tell the colours apart.
_COLOURS: Mapping[PhaseStanding, tuple[str, str]] = {
    PhaseStanding.COMPLETE: ("#d3f2d6", "#2e7d32"),
    PhaseStanding.SETTLED: ("#eef5c8", "#827717"),
    PhaseStanding.RUNS_AGAIN: ("#d6e6fb", "#1565c0"),
    PhaseStanding.FAILED: ("#fbd9d7", "#c62828"),
    PhaseStanding.PARTLY: ("#fdeccb", "#b26a00"),
    PhaseStanding.OPEN: ("#ffffff", "#607d8b"),
}


@dataclass(frozen=True, slots=True)
class PhaseInGraph:
    """What a graph shows of a phase of a batch.

    :param text: a short text below the name of the phase.
    """

    standing: PhaseStanding
    text: str


InGraph = Mapping[str, PhaseInGraph]
_NO_BATCH: InGraph = MappingProxyType({})


def standings_of(resolution: Resolution) -> dict[str, PhaseInGraph]:
    """What a graph shows of each phase of a batch."""
    total = max(resolution.known, resolution.expected or 0)
    found: dict[str, PhaseInGraph] = {}
    for decision in resolution.decisions:
        if not decision.runs:
            settled = decision.reason is Reason.SETTLED
            standing = PhaseStanding.SETTLED if settled else PhaseStanding.COMPLETE
        elif decision.reason in (Reason.DEPENDENCY_RUNS_AGAIN, Reason.DEFINITION_CHANGED):
            standing = PhaseStanding.RUNS_AGAIN
        elif decision.failed:
            standing = PhaseStanding.FAILED
        else:
            standing = PhaseStanding.PARTLY if decision.completed else PhaseStanding.OPEN
        counts = f"{decision.completed} of {total}" + (f", {decision.failed} failed" if decision.failed else "")
        found[decision.phase] = PhaseInGraph(standing, f"{standing.value.replace('_', ' ')}: {counts}")
    return found


def mermaid(phases: Iterable[Phase], of_batch: InGraph = _NO_BATCH) -> str:
    """A Mermaid flowchart; an arrow leads from a phase to a phase that requires it.

    The nodes have generated ids, because the name of a phase can be a keyword of Mermaid, such as `end`.

    :param of_batch: what to show of each phase; empty without a batch.
    """
    phases = tuple(phases)
    lines = ["flowchart LR"]
    lines += [f'    phase_{phase.name}["{"<br>".join(_lines(phase, of_batch))}"]' for phase in phases]
    lines += [
        f"    phase_{required} {'-->|again|' if again else '-->'} phase_{name}"
        for required, name, again in _arrows(phases)
    ]
    for name, shown in of_batch.items():
        fill, line = _COLOURS[shown.standing]
        lines.append(f"    style phase_{name} fill:{fill},stroke:{line}")
    return "\n".join(lines)


def dot(phases: Iterable[Phase], of_batch: InGraph = _NO_BATCH) -> str:
    """The graph in the language of Graphviz.

    :param of_batch: what to show of each phase; empty without a batch.
    """
    phases = tuple(phases)
    lines = ["digraph phases {", "    rankdir=LR;", "    node [shape=box];"]
    for phase in phases:
        label = r"\n".join(_lines(phase, of_batch))
        colours = ""
        if phase.name in of_batch:
            fill, line = _COLOURS[of_batch[phase.name].standing]
            colours = f', style=filled, fillcolor="{fill}", color="{line}"'
        lines.append(f'    "{phase.name}" [label="{label}"{colours}];')
    lines += [
        f'    "{required}" -> "{name}"{" [label=again]" if again else ""};' for required, name, again in _arrows(phases)
    ]
    return "\n".join((*lines, "}"))


_CHARACTER_PX, _LINE_PX, _PADDING_PX = 7.5, 18, 10
_BETWEEN_RANKS_PX, _BETWEEN_ROWS_PX, _MARGIN_PX = 70, 24, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class _Box:
    phase: Phase
    lines: tuple[str, ...]
    left: float
    top: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.top + self.height / 2


def svg(phases: Iterable[Phase], of_batch: InGraph = _NO_BATCH) -> str:
    """The graph as a picture, from left to right. It needs no program, no script and no font of its own.

    :param of_batch: what to show of each phase; empty without a batch.
    """
    boxes = {box.phase.name: box for box in _placed(tuple(phases), of_batch)}
    width = max((box.left + box.width for box in boxes.values()), default=0) + _MARGIN_PX
    height = max((box.top + box.height for box in boxes.values()), default=0) + _MARGIN_PX
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="ui-monospace, monospace" font-size="12">\n'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#455a64"/></marker></defs>'
    )
    lines = [head]
    for required, name, again in _arrows(tuple(box.phase for box in boxes.values())):
        lines += _arrow(boxes[required], boxes[name], again=again)
    for name, box in boxes.items():
        fill, line = _COLOURS[of_batch[name].standing if name in of_batch else PhaseStanding.OPEN]
        lines.append(
            f'<g><title>{escape(name)}</title><rect x="{box.left:g}" y="{box.top:g}" width="{box.width:g}" '
            f'height="{box.height:g}" rx="4" fill="{fill}" stroke="{line}"/>'
        )
        for number, text in enumerate(box.lines):
            weight = ' font-weight="bold"' if number == 0 else ""
            x, y = box.left + _PADDING_PX, box.top + _PADDING_PX + _LINE_PX * (number + 0.75)
            lines.append(f'<text x="{x:g}" y="{y:g}"{weight}>{escape(text)}</text>')
        lines.append("</g>")
    return "\n".join((*lines, "</svg>"))


def _arrow(start: _Box, end: _Box, *, again: bool) -> Iterator[str]:
    left, right = start.left + start.width, end.left
    bend = (left + right) / 2
    dashes = ' stroke-dasharray="5 3"' if again else ""
    yield (
        f'<path d="M{left:g} {start.middle:g}C{bend:g} {start.middle:g} {bend:g} {end.middle:g} '
        f'{right:g} {end.middle:g}" fill="none" stroke="#455a64" marker-end="url(#arrow)"{dashes}/>'
    )
    if again:
        middle = (start.middle + end.middle) / 2 - 4
        yield f'<text x="{bend:g}" y="{middle:g}" text-anchor="middle" font-size="10">again</text>'


def _placed(phases: tuple[Phase, ...], of_batch: InGraph) -> Iterator[_Box]:
    """Give each phase a place: right of all phases that it requires, and about as high as these."""
    columns: dict[int, list[Phase]] = {}
    rank: dict[str, int] = {}
    waiting = list(phases)
    while waiting:
        ready = [phase for phase in waiting if all(required in rank for required in phase.requires)]
        for phase in ready:
            rank[phase.name] = 1 + max((rank[required] for required in phase.requires), default=-1)
            columns.setdefault(rank[phase.name], []).append(phase)
        waiting = [phase for phase in waiting if phase.name not in rank]
    left, middles = float(_MARGIN_PX), dict[str, float]()
    for number in sorted(columns):
        texts = {phase.name: tuple(_lines(phase, of_batch)) for phase in columns[number]}
        width = max(len(text) for lines in texts.values() for text in lines) * _CHARACTER_PX + 2 * _PADDING_PX
        top = float(_MARGIN_PX)
        for phase in sorted(columns[number], key=lambda phase: _mean(middles[name] for name in phase.requires)):
            height = len(texts[phase.name]) * _LINE_PX + 2 * _PADDING_PX
            yield (box := _Box(phase=phase, lines=texts[phase.name], left=left, top=top, width=width, height=height))
            middles[phase.name] = box.middle
            top += height + _BETWEEN_ROWS_PX
        left += width + _BETWEEN_RANKS_PX


def _mean(numbers: Iterable[float]) -> float:
    found = tuple(numbers)
    return sum(found) / len(found) if found else 0.0


def _lines(phase: Phase, of_batch: InGraph) -> Iterator[str]:
    yield phase.name
    if phase.needs_prompt:
        yield "needs a prompt"
    if phase.name in of_batch:
        yield of_batch[phase.name].text


def _arrows(phases: tuple[Phase, ...]) -> Iterator[tuple[str, str, bool]]:
    for phase in phases:
        for required in phase.requires:
            yield required, phase.name, phase.rerun_with_dependencies
