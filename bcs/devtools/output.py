"""The output of `bcs dev` and its story: in colours at a terminal, plain into a pipe, dropped once that is closed."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from textwrap import fill

from rich.console import Console
from rich.text import Text

_MOST_COLUMNS = 80


def echo(text: Text | str = "", *, err: bool = False, newline: bool = True) -> None:
    """Print a text unchanged; once the terminal is closed, drop it."""
    stream = sys.stderr if err else sys.stdout
    # Rendered into memory first, because rich would end the process if the output can't be written.
    rendered = StringIO()
    console = Console(file=rendered, force_terminal=stream.isatty(), highlight=False)
    console.print(text, soft_wrap=True, markup=False, end="\n" if newline else "")
    try:
        stream.write(rendered.getvalue())
        stream.flush()
    except OSError:
        # Otherwise Python would try to write the rest at its end, and exit with its own code.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def say(text: str, *, indent: int = 0, style: str = "", marked: str | None = None) -> None:
    """Print a paragraph, wrapped between words to the width of the terminal, 80 columns at most.

    :param style: the style of the whole paragraph.
    :param marked: a regular expression; its matches are printed in bold green.
    """
    columns = min(_MOST_COLUMNS, shutil.get_terminal_size().columns)
    wrapped = fill(
        text,
        columns,
        initial_indent=" " * indent,
        subsequent_indent=" " * max(indent, 3),
        break_long_words=False,
        break_on_hyphens=False,
    )
    paragraph = Text(wrapped, style)
    if marked is not None:
        paragraph.highlight_regex(marked, "bold green")
    echo(paragraph)


@contextmanager
def progress(name: str) -> Iterator[None]:
    """Print that a server starts, and at the end of the block how long this took, in one line."""
    begun = time.monotonic()
    echo(f"Starting {name} ... ", newline=False)
    ended = Text("stopped", "yellow")
    try:
        yield
        ended = Text.assemble(("ready", "green"), f" in {time.monotonic() - begun:.1f} s")
    finally:
        echo(ended)
