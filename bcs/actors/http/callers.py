"""How long callers may keep the service waiting, and how much memory they may take meanwhile."""

from __future__ import annotations

from typing import Protocol

from bcs.actors.http.bodies import Reading
from bcs.actors.http.deadlines import Deadlines, LoopClock
from bcs.actors.http.held import HeldBytes
from bcs.settings import Settings
from bcs.telemetry import Telemetry


class Caller(Protocol):
    """A connection, as far as waiting for it goes."""

    held_bytes: int

    def end_idle(self) -> None:
        """Close a connection on which no request is under way."""

    def end_head(self, early: bool) -> None:
        """Refuse a request whose head has not come.

        :param early: True where that is for want of room, and not of time.
        """

    def end_sending(self) -> None:
        """Close a connection that does not take its answer."""


class Callers:
    """What callers are waited for, each with its time: the next request, its head, its body, the taking of the answer.

    :ivar clock: whoever makes this runs it.
    :ivar held: the bytes of bodies, and of answers that are not sent yet.
    """

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        limits = (
            settings.http_idle_seconds,
            settings.http_head_seconds,
            settings.http_body_seconds,
            settings.http_send_seconds,
            settings.request_deadline_seconds,
        )
        self._dropped = telemetry.http_callers_dropped
        self.clock = clock = LoopClock(min(limits))
        self.idle: Deadlines[Caller] = Deadlines(clock, settings.http_idle_seconds, lambda caller, _: caller.end_idle())
        self.heads: Deadlines[Caller] = Deadlines(clock, settings.http_head_seconds, self._end_head)
        self.bodies: Deadlines[Reading] = Deadlines(clock, settings.http_body_seconds, self._end_body)
        self.sendings: Deadlines[Caller] = Deadlines(clock, settings.http_send_seconds, self._end_sending)
        self.held = HeldBytes(settings.http_max_held_bytes, [self.bodies, self.sendings])
        telemetry.http_bodies_awaited.set_function(lambda: len(self.bodies))
        telemetry.http_held_bytes.set_function(lambda: self.held.total)

    def end_sendings(self) -> None:
        """Wait for nobody any more who has not taken an answer."""
        while self.sendings:
            self.sendings.end_oldest()

    def _end_head(self, caller: Caller, early: bool) -> None:
        self._count("head", early)
        caller.end_head(early)

    def _end_body(self, reading: Reading, early: bool) -> None:
        self._count("body", early)
        reading.end(early)

    def _end_sending(self, caller: Caller, early: bool) -> None:
        self._count("answer", early)
        caller.end_sending()

    def _count(self, waited_for: str, early: bool) -> None:
        self._dropped.labels(waited_for, "no_room" if early else "too_late").inc()
