"""Who sends a request, and what this caller may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from aiohttp import web


class Scope(StrEnum):
    """What a caller may do."""

    RESOLVE = "resolve"
    REPORT = "report"
    READ = "read"
    OPERATE = "operate"


@dataclass(frozen=True, slots=True)
class CallerIdentity:
    """A caller that BCS knows.

    :param name: the name in the history, in the log and for limits; empty while BCS does not ask who its callers are.
    :param scopes: what the caller may do.
    """

    name: str
    scopes: frozenset[Scope]


ANYONE: Final = CallerIdentity("", frozenset(Scope))
"""Every caller of a service that does not ask who its callers are."""

IDENTITY: Final = web.RequestKey("identity", CallerIdentity)
"""The caller of a request. `Access` sets it before the route runs, in both ways of answering."""


def identity_of(request: web.Request) -> CallerIdentity:
    """The caller of a request; `ANYONE` where nobody has to say who he is."""
    identity: CallerIdentity = request.get(IDENTITY, ANYONE)
    return identity
