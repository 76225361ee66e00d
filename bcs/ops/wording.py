"""Words that several answers to operators have in common."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 essay`, `2 essays`.

    :param plural: where it is more than an `s` behind the noun.
    """
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def printable(value: object) -> str:
    """A value as text, with what a terminal would act on escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(value)
    )
