"""Classifies errors of Redis: out of reach, a refusal for now, or corrupt data.

Only a closed list of errors means corrupt data. Every other error counts as an outage, with its reason in plain words:
no message may be lost or become a dead letter for a problem that an operator can solve.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from bcs.errors import StoreUnavailable, os_reason
from bcs.storage.redis.server import PART_OF_A_CLUSTER

CORRUPT = "BCSCORRUPT"
"""The error code of our own script for data that BCS does not write."""

WRONG_TYPE = "WRONGTYPE"
NO_GROUP = "NOGROUP"
GROUP_EXISTS = "BUSYGROUP"
NO_SCRIPT = "NOSCRIPT"
# Errors that the sender of a command handles.
_FOR_SENDERS = frozenset({WRONG_TYPE, CORRUPT, NO_GROUP, GROUP_EXISTS, NO_SCRIPT})

_TLS_SETTINGS = "the ssl_* options of BCS_REDIS_URL"
_NO_DATABASE = "it has no database of the number in BCS_REDIS_URL"
_NO_RIGHT = "the user of BCS_REDIS_URL lacks a right"
_NO_COMMAND = "it lacks a command that BCS needs"
_REASONS = {
    "MOVED": PART_OF_A_CLUSTER,
    "ASK": PART_OF_A_CLUSTER,
    "CROSSSLOT": PART_OF_A_CLUSTER,
    "TRYAGAIN": PART_OF_A_CLUSTER,
    "CLUSTERDOWN": "its Redis Cluster is not complete",
    "NOPERM": _NO_RIGHT,
    "NOAUTH": "it requires a password",
    "WRONGPASS": "it does not accept the user or the password of BCS_REDIS_URL",
    "DENIED": "its protected mode refuses connections from other machines",
    "OOM": "its memory is full",
    "MISCONF": "it can't write to its disk",
    "READONLY": "it is a replica, which accepts no writes",
    "MASTERDOWN": "it is a replica that has lost its master",
    "NOREPLICAS": "it has too few replicas to accept writes",
    "LOADING": "it still loads its data",
    "BUSY": "it is busy with a script",
}
# What an operator can do. Reasons that end by themselves are left out.
_REMEDIES = {
    _NO_RIGHT: "grant the command and the keys with ACL SETUSER",
    _NO_COMMAND: "take the command out of rename-command, or use Redis 6.2 or newer",
    _REASONS["NOAUTH"]: "put the password into BCS_REDIS_PASSWORD or BCS_REDIS_URL",
    _REASONS["DENIED"]: "set a password, or protected-mode no",
    _REASONS["OOM"]: "raise maxmemory",
    _REASONS["MISCONF"]: "check its disk and its log",
    _REASONS["READONLY"]: "let BCS_REDIS_URL name the master",
    _REASONS["MASTERDOWN"]: "let BCS_REDIS_URL name the master",
    _REASONS["NOREPLICAS"]: "bring back the replicas, or lower min-replicas-to-write",
}
# Errors without a code, by the beginning of their text.
_REASONS_OF_TEXTS = {
    "unknown command": _NO_COMMAND,
    "DB index is out of range": _NO_DATABASE,
    "invalid DB index": _NO_DATABASE,
    "SELECT is not allowed in cluster mode": _NO_DATABASE,
    # Errors inside our scripts, in the words of Redis 7 and Valkey.
    "The user executing the script": _NO_RIGHT,
    "ACL failure in script": _NO_RIGHT,
    "Unknown command called from script": _NO_COMMAND,
    "Unknown Redis command called from script": _NO_COMMAND,
}
# The whole server is unusable for now. Any other code is about one command, and other commands may succeed.
_OF_THE_SERVER = frozenset(
    {"NOAUTH", "WRONGPASS", "DENIED", "READONLY", "MASTERDOWN", "LOADING", "BUSY", "CLUSTERDOWN"}
)
# After a failover a connection may still lead to the server that was the master before.
_NOT_THE_MASTER = frozenset({"READONLY", "MASTERDOWN", "NOREPLICAS", "LOADING", "NOAUTH", "CLUSTERDOWN"})

# Before version 7, Redis puts this before an error inside a script.
_IN_A_SCRIPT = re.compile(r"@user_script: ?\d+: -?([A-Z]+) ")
# Redis 7 names the user.
_USER = re.compile(r"User \S+ has")
_CONNECTING = re.compile(r"Error (-?\d+) connecting to \S+\. (.*)")
_CAUSE_CHARACTERS = 200

MOVED, ASK, TRYAGAIN = "MOVED", "ASK", "TRYAGAIN"
REDIRECTIONS = frozenset({MOVED, ASK, TRYAGAIN})
"""The errors of a node that say where a slot is, or that it moves; nothing is wrong with that node."""
_NOT_CARRIED_OUT = REDIRECTIONS | {"CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY"}
_PLAIN = frozenset({bytes, int, type(None)})


class UnusableServer(RedisConnectionError):
    """The server at the address can't be used; the text has the reason in plain words.

    :ivar for_good: True if the server does not become usable by itself, as a replica does by its promotion.
    :ivar answered: False if there is no server to be used, because no Sentinel answers.
    """

    def __init__(self, problem: str, *, for_good: bool = False, answered: bool = True) -> None:
        super().__init__(problem)
        self.for_good = for_good
        self.answered = answered


def code_of(error: RedisError) -> str:
    """Redis's code of an error, such as `OOM`; empty where the error has no code."""
    text = str(error)
    if in_script := _IN_A_SCRIPT.search(text):
        return in_script[1]
    # redis-py removes the codes that it has classes for from the text.
    code: str | None = getattr(error, "status_code", None)
    if code is None and isinstance(error, ResponseError):
        code = text.partition(" ")[0]
    return code if code and code.isalpha() and code.isupper() else ""


@contextmanager
def translated() -> Iterator[None]:
    """Raise errors of Redis and of the connection as StoreUnavailable, except errors that the sender handles.

    :raises ResponseError: a key has another type, or a consumer group is missing or exists already.
    """
    try:
        yield
    except (RedisError, OSError) as error:
        if isinstance(error, ResponseError) and code_of(error) in _FOR_SENDERS:
            raise
        raise unavailable(error) from error


def unavailable(error: Exception) -> StoreUnavailable:
    """The StoreUnavailable for an error."""
    answered = isinstance(error, ResponseError) and code_of(error) not in _OF_THE_SERVER
    return StoreUnavailable("redis", reason(error), answered=answered, late=isinstance(error, TimeoutError))


def refuses_command(failure: StoreUnavailable) -> bool:
    """True if Redis refused a command itself: the user lacks the right, or Redis lacks the command."""
    error = failure.__cause__
    if not isinstance(error, ResponseError):
        return False
    return code_of(error) == "NOPERM" or any(
        str(error).startswith(beginning) and plain in (_NO_COMMAND, _NO_RIGHT)
        for beginning, plain in _REASONS_OF_TEXTS.items()
    )


def redirection(failure: StoreUnavailable | None) -> str:
    """`MOVED`, `ASK` or `TRYAGAIN` if a node of a cluster refused a call for this reason; else empty."""
    error = failure.__cause__ if failure else None
    code = code_of(error) if isinstance(error, RedisError) else ""
    return code if code in REDIRECTIONS else ""


def surely_not_carried_out(failure: StoreUnavailable) -> bool:
    """True if the call can be sent again without harm, because it was not sent, or refused for the whole server."""
    error = failure.__cause__
    if isinstance(error, BusyLoadingError):
        return True
    return failure.unsent or (isinstance(error, RedisError) and code_of(error) in _NOT_CARRIED_OUT)


def reason(error: Exception) -> str:
    """The cause of an error in plain words, in one line of limited length."""
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    code = code_of(error) if isinstance(error, RedisError) else ""
    # Redis repeats the arguments of an unknown command.
    text = _USER.sub("the user has", str(error).partition(", with args")[0].strip())
    for each in (error, error.__cause__, error.__context__):  # redis-py wraps errors of connecting
        if isinstance(each, UnusableServer):
            return str(each)
        if isinstance(each, ssl.SSLError):
            return f"{os_reason(each)}; check {_TLS_SETTINGS}"
    if failed := _CONNECTING.match(text):
        # Without the address, which `StoreUnavailable` adds.
        number = int(failed[1])
        return os.strerror(number) if number > 0 else failed[2].rstrip(".")
    for beginning, plain in _REASONS_OF_TEXTS.items():
        if text.startswith(beginning):
            return _explained(plain, text[:_CAUSE_CHARACTERS])
    named = code or f"{type(error).__name__}:"
    text = (text if text.startswith(named) else f"{named} {text}")[:_CAUSE_CHARACTERS]
    return _explained(_REASONS[code], text) if code in _REASONS else text


def _explained(plain: str, text: str) -> str:
    remedy = _REMEDIES.get(plain)
    return f"{plain} ({text})" + (f"; {remedy}" if remedy else "")


def may_be_elsewhere(error: RedisError) -> bool:
    """True if the address may lead to another server now, as after a failover."""
    return code_of(error) in _NOT_THE_MASTER


def has_error(replies: Sequence[Any]) -> bool:
    """True if a reply is an error, or the replies of a transaction may have one; `raise_first` looks further."""
    for reply in replies:
        kind = type(reply)
        if kind not in _PLAIN and (kind is not list or not _PLAIN.issuperset(map(type, reply))):
            return True
    return False


def raise_first(replies: Sequence[Any]) -> None:
    """Raise the first error among replies, including the replies of a transaction."""
    for reply in replies:
        if isinstance(reply, RedisError):
            raise reply
        if isinstance(reply, list) and not _PLAIN.issuperset(map(type, reply)):
            raise_first(reply)
