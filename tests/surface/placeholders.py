"""What is another one each time, such as ids, times and addresses, as words that stay what they are."""

from __future__ import annotations

import re
from collections.abc import Mapping

FIXED_DAY = "2024-01-02"
"""The day of all times that the scenario gives; any other time is the clock's."""

_FIXED_US = (1_704_150_000_000_000, 1_704_240_000_000_000)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "<uuid>"),
    (re.compile(rf"\b(?!{FIXED_DAY})\d{{4}}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?"), "<time>"),
    (re.compile(r"\b127\.0\.0\.1:\d+"), "<address>"),
    (re.compile(r"(huleedu(?:\.\w+)+)/\d+/\d+"), r"\1/<partition>/<offset>"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{8}/\d+\.[0-9A-F]{8}\b"), "<mark>"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<id>"),
    (re.compile(r"\bbefore=\d+"), "before=<number>"),
    # Whichever of the archive's actions is the first to notice that PostgreSQL is away.
    (re.compile("connect to PostgreSQL|move announcements from PostgreSQL to the outbox"), "<operation>"),
)
_LONG_NUMBER = re.compile(r"(?<!\d)\d{13}(?:\d{3})?(?!\d)")
_ANY_NUMBER = frozenset({"partition", "offset", "source_partition", "source_offset", "number"})


class Placeholders:
    """Puts words for what is another one each time.

    :param names: what is known to be another one, each with its word; longer ones first.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = dict(names)

    def name(self, text: str, word: str) -> None:
        """Note one more name."""
        self._names[text] = word

    def text(self, text: str) -> str:
        """The text, with words."""
        for name, word in sorted(self._names.items(), key=lambda item: -len(item[0])):
            text = text.replace(name, word)
        for pattern, word in _PATTERNS:
            text = pattern.sub(word, text)
        return _LONG_NUMBER.sub(_time_or_word, text)

    def document(self, document: object, under: str = "") -> object:
        """A document of JSON, with words.

        :param under: the name of what it is, in the document around it.
        """
        if isinstance(document, dict):
            return {self.text(name): self.document(value, name) for name, value in document.items()}
        if isinstance(document, list):
            return self._position(document) or [self.document(each) for each in document]
        if isinstance(document, str):
            return self.text(document)
        if isinstance(document, bool) or document is None:
            return document
        if under in _ANY_NUMBER or (under == "next" and isinstance(document, int)):
            return f"<{under}>"
        said = self.text(str(document))
        return document if said == str(document) else said

    def _position(self, document: list[object]) -> list[object] | None:
        """A list that begins with a place in Kafka; None for any other."""
        match document:
            case [str(topic), int(), int(), *rest] if topic.startswith("huleedu."):
                return [topic, "<partition>", "<offset>", *(self.document(each) for each in rest)]
        return None


def shape(document: object) -> object:
    """A document with the types of its values in their places; of a list, each shape that its elements have."""
    if isinstance(document, dict):
        return {name: shape(value) for name, value in document.items()}
    if isinstance(document, list):
        shapes: list[object] = []
        for each in map(shape, document):
            if each not in shapes:
                shapes.append(each)
        return shapes
    return f"<{type(document).__name__}>"


def _time_or_word(found: re.Match[str]) -> str:
    digits = found[0]
    us = int(digits.ljust(16, "0"))
    return digits if _FIXED_US[0] <= us < _FIXED_US[1] else "<us>" if len(digits) == 16 else "<ms>"
