"""File descriptors: how many connections they are enough for, and some that are kept for when all are used up."""

from __future__ import annotations

import os
import resource
from errno import EMFILE, ENFILE
from typing import Final

from bcs.config.settings import Settings

USED_UP: Final = frozenset({EMFILE, ENFILE})
"""What the operating system says when no file, and no socket, can be opened any more."""

# What is open beside connections to callers, Redis and PostgreSQL: brokers, logs, libraries that are being loaded.
_FOR_OTHERS = 128
_MOST_CONNECTIONS = 2048
_LEAST_CONNECTIONS = 16


def most_connections(settings: Settings) -> int:
    """How many connections there may be: as the settings say, or what the limit of open files leaves."""
    if settings.http_max_connections is not None:
        return settings.http_max_connections
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    left = limit - settings.redis_max_connections - settings.database_max_connections - _FOR_OTHERS
    return min(max(left, _LEAST_CONNECTIONS), _MOST_CONNECTIONS)


class Reserve:
    """Descriptors that are open for nothing, to be given up where one is needed and there is no other.

    :param count: how many are kept.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: list[int] = []
        self.refill()

    def refill(self) -> None:
        """Keep as many as wanted again, or as many as there are now."""
        try:
            while len(self._kept) < self._count:
                self._kept.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return

    def give_up(self) -> bool:
        """Close one, so that a socket can be opened.

        :returns: False where none is kept.
        """
        if not self._kept:
            return False
        os.close(self._kept.pop())
        return True

    def close(self) -> None:
        """Keep none any more."""
        while self.give_up():
            pass
