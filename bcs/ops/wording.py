"""Functions for the texts that operators read."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A count with its noun: `1 essay`, `2 essays`.

    :param plural: the plural, if it is not the noun with an `s`.
    """
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def printable(value: object) -> str:
    """A value as text. Characters that control a terminal are escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(value)
    )
