"""What `bcs dev` and its story print: in colours at a terminal, plain into a pipe, and no more once it is closed."""

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
    """Print text as it is; nothing any more once the terminal is closed."""
    stream = sys.stderr if err else sys.stdout
    # Rendered aside: where the output can't be written, rich would end the process in its own way.
    rendered = StringIO()
    console = Console(file=rendered, force_terminal=stream.isatty(), highlight=False)
    console.print(text, soft_wrap=True, markup=False, end="\n" if newline else "")
    try:
        stream.write(rendered.getvalue())
        stream.flush()
    except OSError:
        # What is left unwritten Python would try again at its end, and exit with a code of its own.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def say(text: str, *, indent: int = 0, style: str = "", marked: str | None = None) -> None:
    """Print a paragraph, wrapped between words to the width of the terminal, 80 columns at most.

    :param style: of the whole paragraph.
    :param marked: a regular expression; what it finds is printed in bold green.
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
    """A block that starts something: one line, which says so at once, and in the end how long it took."""
    begun = time.monotonic()
    echo(f"Starting {name} ... ", newline=False)
    ended = Text("stopped", "yellow")
    try:
        yield
        ended = Text.assemble(("ready", "green"), f" in {time.monotonic() - begun:.1f} s")
    finally:
        echo(ended)
