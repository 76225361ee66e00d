"""Sums up repeated log lines: the first line is written, then one line with a count each minute."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

INTERVAL_SECONDS = 60.0

SUMMED_BY = "summed_by"
"""The keyword with the names of the fields that make two lines equal. These fields must have few different values."""


@dataclass(slots=True)
class _Sum:
    """The equal lines of a minute.

    :param last: the fields of the newest line.
    :param count: how many lines were not written.
    """

    logger: str
    level: str
    last: dict[str, Any] = field(default_factory=dict)
    count: int = 0


class LogSums:
    """A processor of structlog that drops a line equal to one of the last minute, and counts it.

    At the end of the minute one line has the number of dropped lines (`repeated`), with the fields of the newest. So
    a lasting condition makes one line a minute, and a condition that comes back after its end is logged at once.

    :param call_later: calls a function after so many seconds.
    """

    def __init__(
        self, call_later: Callable[[float, Callable[[], None]], None] | None = None, seconds: float = INTERVAL_SECONDS
    ) -> None:
        self._call_later = call_later or _call_later
        self._seconds = seconds
        self._sums: dict[tuple[object, ...], _Sum] = {}

    def __call__(self, logger: Any, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Pass a line on, or count it.

        :raises DropEvent: the line is counted.
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
        """Log all counts now, before the end of the process."""
        for known in self._sums.values():
            self._log(known)
        self._sums.clear()

    def _begin(self, key: tuple[object, ...], known: _Sum) -> None:
        self._sums[key] = known
        self._call_later(self._seconds, lambda: self._end(key, known))

    def _end(self, key: tuple[object, ...], known: _Sum) -> None:
        if self._sums.get(key) is not known:
            return
        if known.count:
            self._log(known)
            self._begin(key, _Sum(known.logger, known.level))
        else:
            del self._sums[key]

    def _log(self, known: _Sum) -> None:
        if known.count:
            log = getattr(structlog.stdlib.get_logger(known.logger), known.level)
            log(**known.last, repeated=known.count)


def _call_later(seconds: float, call: Callable[[], None]) -> None:
    # Without an event loop, as at the end of the process, `flush` logs the rest.
    with suppress(RuntimeError):
        asyncio.get_running_loop().call_later(seconds, call)
