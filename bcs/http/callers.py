"""How long the service waits for callers, and how much memory callers may use meanwhile."""

from __future__ import annotations

from typing import Any, Protocol

from bcs.config.settings import Settings
from bcs.http.bodies import Reading
from bcs.http.deadlines import Deadlines, LoopClock
from bcs.http.held import HeldBytes
from bcs.observability.telemetry import Telemetry

# A caller that the service has waited for less long is not slow, because its packets may be on their way. A blocked
# event loop adds less than this to the clock.
_SLOW_SECONDS = 1.0


class Caller(Protocol):
    """A connection that the service may wait for."""

    held_bytes: int

    def end_idle(self) -> None:
        """Close a connection that has no request."""

    def end_head(self, early: bool) -> None:
        """Refuse a request whose head is incomplete.

        :param early: True if there is no room; False if the time is over.
        """

    def end_sending(self) -> None:
        """Close a connection whose caller does not receive the response."""


class Callers:
    """The waits for callers, each with a time limit: next request, head, body, and sending the response.

    :param most: the largest number of open connections. If there are more, idle and slow callers are ended first.
    :ivar clock: the clock of the time limits; the owner of this object runs the clock.
    :ivar held: the bytes of bodies, and of responses that are not sent yet.
    :ivar connected: all open connections.
    :ivar crowded: the open connections without room; only probes are answered on them.
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
        """The number of connections that may still be opened; below 0 if there are too many."""
        return self._most - len(self.connected)

    def any_slow(self) -> bool:
        """True if `make_room` would end a connection."""
        return self._slowest() is not None

    def make_room(self) -> bool:
        """End the connection of an idle or slow caller.

        :returns: False if there is no such caller.
        """
        slowest = self._slowest()
        if slowest is None:
            return False
        slowest.end_oldest()
        return True

    def _slowest(self) -> Deadlines[Any] | None:
        """The group in which to end a caller: idle connections first, then callers for which little work was done."""
        if self.idle:
            return self.idle
        slow = (self.heads, self.bodies, self.sendings)
        return next((waiting for waiting in slow if waiting.waited_seconds() >= _SLOW_SECONDS), None)

    def end_sendings(self) -> None:
        """End all callers that have not received their response."""
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
