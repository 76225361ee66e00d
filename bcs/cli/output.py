"""The output of commands: for a person at a terminal, for a pipe, or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from io import TextIOWrapper
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bcs.ops.wording import printable

# Wide enough that no line is wrapped or cut, because the reader of a pipe needs complete lines and ids.
_PIPE_COLUMNS = 100_000
_INDENT = 2


def present(page: RenderableType) -> None:
    """Print for a person: in colours and wrapped to the width of a terminal, or plain and unbroken into a pipe."""
    if isinstance(sys.stdout, TextIOWrapper):
        # A character that the locale can't encode is escaped instead of an error.
        sys.stdout.reconfigure(errors="backslashreplace")
    terminal = Console(highlight=False)
    if terminal.is_terminal:
        terminal.print(page)
        return
    pipe = Console(highlight=False, color_system=None, width=_PIPE_COLUMNS)
    with pipe.capture() as captured:
        pipe.print(page)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


class _Rows(Table):
    """A table if its words fit side by side. Otherwise each row is a block with a line for each cell.

    rich itself would break words in the middle.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if Measurement.get(console, options.update(max_width=_PIPE_COLUMNS), self).minimum <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        rows = zip(*(column.cells for column in self.columns), strict=True)
        for number, row in enumerate(rows):
            if number:
                yield Text()
            for column, cell in zip(self.columns, row, strict=True):
                value = cell if isinstance(cell, Text) else Text(str(cell))
                line = Text.assemble((f"{column.header}: ", "bold"), value)
                first, *others = line.wrap(console, max(1, options.max_width - _INDENT), overflow="fold")
                first.rstrip()
                yield first
                for other in others:
                    other.rstrip()
                    other.pad_left(_INDENT)
                    yield other


def on_terminal() -> bool:
    """True if the output is a terminal."""
    return Console().is_terminal


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document in ASCII, so the output is the same for every encoding of the terminal."""
    typer.echo(json.dumps(document, indent=2))


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """A table without lines, which a narrow terminal shows as blocks.

    :param columns: the headings.
    :param right: the columns that are aligned to the right.
    """
    made = _Rows(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        # A long cell is folded, because an id that is cut off is useless.
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def plain(value: object, style: str = "") -> Text:
    """A text from outside, without the markup of rich and without characters that control a terminal."""
    return Text(printable(value), style)
