"""Sums up what the log says again and again: the first line is written, and then a count a minute."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

INTERVAL_SECONDS = 60.0

SUMMED_BY = "summed_by"
"""With this keyword a line names those of its fields by which lines are the same. Their values must be few."""


@dataclass(slots=True)
class _Sum:
    """Lines that are the same.

    :param last: the fields of the newest.
    :param count: how many were not written.
    """

    logger: str
    level: str
    last: dict[str, Any] = field(default_factory=dict)
    count: int = 0


class LogSums:
    """A processor of structlog: it drops a line that says the same as one of the last minute, and counts it.

    At the end of the minute one line tells how many there were (`repeated`), with the fields of the newest. So what
    goes on makes one line a minute, and what has ended is told at once when it comes again.

    :param call_later: has a function called after so many seconds.
    """

    def __init__(
        self, call_later: Callable[[float, Callable[[], None]], None] | None = None, seconds: float = INTERVAL_SECONDS
    ) -> None:
        self._call_later = call_later or _call_later
        self._seconds = seconds
        self._sums: dict[tuple[object, ...], _Sum] = {}

    def __call__(self, logger: Any, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Pass a line on, or count it.

        :raises DropEvent: it is counted.
        """
        same_by = event.pop(SUMMED_BY, None)
        if same_by is None:
            return event
        key = (event["event"], *(event.get(name) for name in same_by))
        known = self._sums.get(key)
        if known is None:
            self._begin(key, _Sum(logger.name, level))
            return event
        known.count += 1
        known.last = {name: value for name, value in event.items() if name != "exc_info"}
        raise structlog.DropEvent

    def flush(self) -> None:
        """Say all counts now, before the end of the process."""
        for known in self._sums.values():
            self._say(known)
        self._sums.clear()

    def _begin(self, key: tuple[object, ...], known: _Sum) -> None:
        self._sums[key] = known
        self._call_later(self._seconds, lambda: self._end(key, known))

    def _end(self, key: tuple[object, ...], known: _Sum) -> None:
        if self._sums.get(key) is not known:
            return
        if known.count:
            self._say(known)
            self._begin(key, _Sum(known.logger, known.level))
        else:
            del self._sums[key]

    def _say(self, known: _Sum) -> None:
        if known.count:
            say = getattr(structlog.stdlib.get_logger(known.logger), known.level)
            say(**known.last, repeated=known.count)


def _call_later(seconds: float, call: Callable[[], None]) -> None:
    # Without an event loop, as at the end of the process, `flush` says what is left.
    with suppress(RuntimeError):
        asyncio.get_running_loop().call_later(seconds, call)
