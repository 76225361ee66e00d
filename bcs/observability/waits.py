"""The dependencies that actors wait for, and since when, for the log and for `/healthz`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog

from bcs.observability.logged_causes import LoggedCauses

log = structlog.stdlib.get_logger("bcs.waits")

INTAKE = "intake"

WAITING_ACTORS = ("publisher", "archive", "batches", INTAKE)
"""The actors that wait for dependencies, in the order of `/healthz`."""

READ_KAFKA = "read from Kafka"
CONNECT_PRODUCER = "connect the producer"
"""The two tries of intake and publisher that fail while Kafka is away or refuses."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A retry that an actor waits for.

    :param doing: the action that is retried, in words that follow "waits to".
    :param cause: why the last try failed.
    :param since: when the first try failed.
    """

    doing: str
    cause: str
    since: datetime


@dataclass(slots=True)
class _OpenWait:
    since: datetime
    cause: str
    holders: set[object]
    logged: LoggedCauses = field(default_factory=LoggedCauses)


class Waits:
    """The waits of all actors, which outlive the actors. Each cause is logged once, and the end of each wait.

    :param now: returns the wall-clock time.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._open: dict[tuple[str, str], _OpenWait] = {}

    def begin(self, actor: str, doing: str, cause: str, *, holder: object = None, log_cause: bool = True) -> None:
        """Note that an actor's try has failed, and that the actor will retry.

        :param actor: the actor's name, without a batch's id.
        :param holder: identifies one of several concurrent tries of the same action; the wait ends with the last of
            them.
        :param log_cause: False where the client of the dependency logs the outage itself.
        """
        wait = self._open.get((actor, doing))
        if wait is None:
            wait = self._open[actor, doing] = _OpenWait(self._now(), cause, set())
        wait.holders.add(holder)
        wait.cause = cause
        if log_cause and wait.logged.note(cause):
            log.warning("waiting_for_dependency", actor=actor, operation=doing, error=cause)

    def keep(self, actor: str, doing: str, causes: Mapping[Any, str]) -> None:
        """Note all tries of an action that fail now: others have ended.

        :param causes: why each try fails, by its holder; see `begin`.
        """
        for holder, cause in causes.items():
            self.begin(actor, doing, cause, holder=holder)
        if wait := self._open.get((actor, doing)):
            for holder in wait.holders - causes.keys():
                self.end(actor, doing, holder=holder)

    def end(self, actor: str, doing: str, *, holder: object = None) -> None:
        """Note that a try succeeded, or that no task retries any more. Without a wait this does nothing."""
        wait = self._open.get((actor, doing))
        if wait is None:
            return
        wait.holders.discard(holder)
        if wait.holders:
            return
        del self._open[actor, doing]
        if wait.logged.clear():
            seconds = (self._now() - wait.since).total_seconds()
            log.info("dependency_wait_ended", actor=actor, operation=doing, seconds=round(seconds, 3))

    def longest_seconds(self, actor: str) -> float:
        """How long an actor has waited; 0 while it does not wait."""
        waits = self.of(actor)
        return (self._now() - waits[0].since).total_seconds() if waits else 0.0

    def of(self, actor: str) -> list[Wait]:
        """The present waits of an actor, the longest wait first."""
        waits = [Wait(doing, wait.cause, wait.since) for (name, doing), wait in self._open.items() if name == actor]
        return sorted(waits, key=lambda wait: wait.since)
