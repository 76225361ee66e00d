"""File descriptors: the largest number of connections, and a reserve for the case that all descriptors are used."""

from __future__ import annotations

import os
import resource
from errno import EMFILE, ENFILE
from typing import Final

from bcs.config.settings import Settings

USED_UP: Final = frozenset({EMFILE, ENFILE})
"""The errors of the operating system if no more files or sockets can be opened."""

# Descriptors for everything but callers, Redis and PostgreSQL: brokers, logs, libraries that are being loaded.
_FOR_OTHERS = 128
_MOST_CONNECTIONS = 2048
_LEAST_CONNECTIONS = 16


def most_connections(settings: Settings) -> int:
    """The largest number of connections: from the settings, or else from the limit of open files."""
    if settings.http_max_connections is not None:
        return settings.http_max_connections
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    left = limit - settings.redis_max_connections - settings.database_max_connections - _FOR_OTHERS
    return min(max(left, _LEAST_CONNECTIONS), _MOST_CONNECTIONS)


class Reserve:
    """Open descriptors without a use. The reserve closes one if a socket needs a descriptor and none is free.

    :param count: the number of descriptors in a full reserve.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: list[int] = []
        self.refill()

    def refill(self) -> None:
        """Open descriptors until the reserve is full, or until no more can be opened."""
        try:
            while len(self._kept) < self._count:
                self._kept.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return

    def give_up(self) -> bool:
        """Close one descriptor, so that a socket can be opened.

        :returns: False if the reserve is empty.
        """
        if not self._kept:
            return False
        os.close(self._kept.pop())
        return True

    def close(self) -> None:
        """Close all descriptors of the reserve."""
        while self.give_up():
            pass
