"""Warnings about misspelt fields of a request, which would silently count as unset otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

_LIKENESS = 0.75
_MOST_NAMES = 20
_MOST_CHARACTERS = 50
_not_letters = re.compile(r"[\W_]")

Fields = Mapping[str, "Fields | None"]
"""Maps the name of a field to the fields in it, or to None if the field contains no fields."""


def misspelt_fields(document: object, fields: Fields) -> list[str]:
    """One sentence for each unknown field whose name is similar to a known name.

    :param document: the parsed body; only an object has fields.
    """
    if _has_only(document, fields):
        return []
    unknown = list(_unknown(document, fields, ()))[:_MOST_NAMES]
    known = {_plain(path[-1]): ".".join(path) for path in _paths(fields, ())}
    return [
        f"{'.'.join(path)} is not read; did you mean {known[near]}?"
        for path in unknown
        for near in get_close_matches(_plain(path[-1]), known, 1, _LIKENESS)
    ]


def _has_only(document: object, fields: Fields) -> bool:
    """True if a document has no unknown field, like most."""
    if isinstance(document, dict):
        for name, value in document.items():
            if name not in fields or ((below := fields[name]) and not _has_only(value, below)):
                return False
    return True


def _unknown(document: object, fields: Fields, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if not isinstance(document, dict):
        return
    for name, value in document.items():
        if name in fields:
            if below := fields[name]:
                yield from _unknown(value, below, (*above, name))
        elif len(name) <= _MOST_CHARACTERS:
            yield (*above, name)


def _paths(fields: Fields, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, below in fields.items():
        yield (*above, name)
        if below:
            yield from _paths(below, (*above, name))


def _plain(name: Any) -> str:
    return _not_letters.sub("", name).lower()
