"""A script inside Redis, which is sent by its digest."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1

from redis.exceptions import ResponseError

from bcs.storage.redis.commands import Command
from bcs.storage.redis.errors import NO_SCRIPT, code_of


class Script:
    """A script; Redis keeps it under its digest once it was sent whole."""

    __slots__ = ("_digest", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._digest = sha1(text.encode(), usedforsecurity=False).hexdigest()

    def by_digest(self, keys: Sequence[str], *arguments: str | bytes | int) -> Command:
        """The short command. Redis answers NOSCRIPT where it does not have the script: send `whole` then."""
        return ("EVALSHA", self._digest, len(keys), *keys, *arguments)

    @staticmethod
    def is_missing(error: ResponseError) -> bool:
        """True if Redis does not have the script: it is sent for the first time, or Redis has lost its scripts."""
        return code_of(error) == NO_SCRIPT

    def whole(self, keys: Sequence[str], *arguments: str | bytes | int) -> Command:
        """The command with the script's text."""
        return ("EVAL", self._text, len(keys), *keys, *arguments)
