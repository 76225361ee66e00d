"""How long callers may keep the service waiting, and how much memory they may take meanwhile."""

from __future__ import annotations

from typing import Any, Protocol

from bcs.config.settings import Settings
from bcs.http.bodies import Reading
from bcs.http.deadlines import Deadlines, LoopClock
from bcs.http.held import HeldBytes
from bcs.observability.telemetry import Telemetry

# A caller that has been waited for less is not slow: its packets may be on their way. No loop that was held up adds as
# much to the clock.
_SLOW_SECONDS = 1.0


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

    :param most: so many connections may be open; callers that are waited for leave first where there are more.
    :ivar clock: whoever makes this runs it.
    :ivar held: the bytes of bodies, and of answers that are not sent yet.
    :ivar connected: all open connections.
    :ivar crowded: those of them for which there was no room: they get no answer but to probes.
    """

    def __init__(self, settings: Settings, telemetry: Telemetry, *, most: int) -> None:
        limits = (
            settings.http_idle_seconds,
            settings.http_head_seconds,
            settings.http_body_seconds,
            settings.http_send_seconds,
            settings.request_deadline_seconds,
        )
        self._dropped = telemetry.http_callers_dropped
        self.clock = clock = LoopClock(min(limits))
        self.idle: Deadlines[Caller] = Deadlines(clock, settings.http_idle_seconds, self._end_idle)
        self.heads: Deadlines[Caller] = Deadlines(clock, settings.http_head_seconds, self._end_head)
        self.bodies: Deadlines[Reading] = Deadlines(clock, settings.http_body_seconds, self._end_body)
        self.sendings: Deadlines[Caller] = Deadlines(clock, settings.http_send_seconds, self._end_sending)
        self.held = HeldBytes(settings.http_max_held_bytes, [self.bodies, self.sendings])
        self.connected: set[Caller] = set()
        self.crowded: set[Caller] = set()
        self._most = most
        telemetry.http_connections.set_function(lambda: len(self.connected))
        telemetry.http_bodies_awaited.set_function(lambda: len(self.bodies))
        telemetry.http_held_bytes.set_function(lambda: self.held.total)

    @property
    def room(self) -> int:
        """How many more connections there may be; below 0 where there are too many."""
        return self._most - len(self.connected)

    def any_slow(self) -> bool:
        """True if a caller has been waited for so long that `make_room` would end its connection."""
        return self._slowest() is not None

    def make_room(self) -> bool:
        """End a connection on which a caller is waited for.

        :returns: False where there is none.
        """
        slowest = self._slowest()
        if slowest is None:
            return False
        slowest.end_oldest()
        return True

    def _slowest(self) -> Deadlines[Any] | None:
        """An idle connection costs its caller the least; then those count for which the service has done the least."""
        if self.idle:
            return self.idle
        slow = (self.heads, self.bodies, self.sendings)
        return next((waiting for waiting in slow if waiting.waited_seconds() >= _SLOW_SECONDS), None)

    def end_sendings(self) -> None:
        """Wait for nobody any more who has not taken an answer."""
        while self.sendings:
            self.sendings.end_oldest()

    def _end_idle(self, caller: Caller, early: bool) -> None:
        if early:
            self._count("request", early)
        caller.end_idle()

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
