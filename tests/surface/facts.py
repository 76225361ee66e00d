"""Documents as lines of text: each value on a line of its own, behind the path that leads to it."""

from __future__ import annotations

import json
from collections.abc import Iterator


def lines_of(name: str, document: object) -> Iterator[str]:
    """A line for each value, in the order of the document; what is empty has a line as well.

    :param name: of the document, which begins each line.
    """
    if isinstance(document, dict) and document:
        for key, value in document.items():
            yield from lines_of(f"{name}.{key}", value)
    elif isinstance(document, list | tuple) and document:
        for position, value in enumerate(document):
            yield from lines_of(f"{name}[{position}]", value)
    else:
        yield f"{name} = {json.dumps(document, ensure_ascii=False, default=_nameless)}"


def said_lines_of(name: str, document: object) -> list[str]:
    """The same without what says nothing: null, false, empty."""
    silent = ("= null", "= false", "= []", "= {}", '= ""')
    return [line for line in lines_of(name, document) if not line.endswith(silent)]


def _nameless(value: object) -> str:
    """What JSON does not know; an address in memory would be another one each time."""
    return f"<{type(value).__name__}>"
