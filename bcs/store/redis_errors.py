"""Which answers of Redis, and which failures on the way to it, mean that it is out of reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bcs.domain.errors import StoreUnavailable

_AWAY = (
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    ClusterDownError,
    ReadOnlyError,
    OutOfMemoryError,
    TryAgainError,
    AuthenticationError,
    NoPermissionError,
)
# Answers that redis-py has no type for, but that pass like an outage: a replica without its master, a server whose
# disk refuses writes, one that runs a long script.
_AWAY_CODES = ("MASTERDOWN", "MISCONF", "BUSY ", "NOREPLICAS", "UNBLOCKED", "OOM", "LOADING", "READONLY")

_PLAIN = frozenset({bytes, int})


@contextmanager
def translated() -> Iterator[None]:
    """Raise what means that Redis is out of reach as StoreUnavailable, and everything else as it is."""
    try:
        yield
    except TimeoutError as error:
        raise StoreUnavailable("redis", "it did not answer in time") from error
    except _AWAY as error:
        raise StoreUnavailable("redis", brief(error)) from error
    except OSError as error:
        raise StoreUnavailable("redis", brief(error)) from error
    except ResponseError as error:
        if str(error).startswith(_AWAY_CODES):
            raise StoreUnavailable("redis", brief(error)) from error
        raise


def raise_first(replies: Sequence[Any]) -> None:
    """Raise the first error among replies, those of a transaction included."""
    for reply in replies:
        if isinstance(reply, RedisError):
            raise reply
        if isinstance(reply, list) and not _PLAIN.issuperset(map(type, reply)):
            raise_first(reply)


def brief(error: Exception) -> str:
    """An error in a line that is not too long."""
    return f"{type(error).__name__}: {str(error)[:200]}"
