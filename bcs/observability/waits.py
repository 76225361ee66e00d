"""What the actors wait for, and since when: for the log, and for `/healthz`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from bcs.observability.logged_causes import LoggedCauses

log = structlog.stdlib.get_logger("bcs.waits")

INTAKE = "intake"

WAITING_ACTORS = ("publisher", "archive", "batches", INTAKE)
"""The actors that wait for dependencies, in the order of `/healthz`."""

READ_KAFKA = "read from Kafka"
CONNECT_PRODUCER = "connect the producer"
"""What intake and publisher can't do while no broker lets them."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Something that an actor tries again and again.

    :param doing: what is being tried, in words that follow "waits to".
    :param cause: why the last try failed.
    :param since: when the first try failed.
    """

    doing: str
    cause: str
    since: datetime


@dataclass(slots=True)
class _Kept:
    since: datetime
    cause: str
    holders: set[object]
    logged: LoggedCauses = field(default_factory=LoggedCauses)


class Waits:
    """What each actor waits for. Outlives the actors; said once for each cause, and again when the wait ends.

    :param now: wall-clock time.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._kept: dict[tuple[str, str], _Kept] = {}

    def begin(self, actor: str, doing: str, cause: str, *, holder: object = None, aloud: bool = True) -> None:
        """An actor's try has failed, and the actor will try again.

        :param actor: a name without a batch's id.
        :param holder: one of several that wait for the same at a time; the wait ends with the last of them.
        :param aloud: False where the dependency itself says in the log that it is away.
        """
        kept = self._kept.get((actor, doing))
        if kept is None:
            kept = self._kept[actor, doing] = _Kept(self._now(), cause, set())
        kept.holders.add(holder)
        kept.cause = cause
        if aloud and kept.logged.note(cause):
            log.warning("waiting_for_dependency", actor=actor, operation=doing, error=cause)

    def end(self, actor: str, doing: str, *, holder: object = None) -> None:
        """The try succeeded, or nobody tries any more. Nothing happens where nobody waited."""
        kept = self._kept.get((actor, doing))
        if kept is None:
            return
        kept.holders.discard(holder)
        if kept.holders:
            return
        del self._kept[actor, doing]
        if kept.logged.clear():
            seconds = (self._now() - kept.since).total_seconds()
            log.info("dependency_wait_ended", actor=actor, operation=doing, seconds=round(seconds, 3))

    def longest_seconds(self, actor: str) -> float:
        """For how long an actor has waited; 0 while it waits for nothing."""
        waits = self.of(actor)
        return (self._now() - waits[0].since).total_seconds() if waits else 0.0

    def of(self, actor: str) -> list[Wait]:
        """What an actor waits for now, the longest wait first."""
        waits = [Wait(doing, kept.cause, kept.since) for (name, doing), kept in self._kept.items() if name == actor]
        return sorted(waits, key=lambda wait: wait.since)
