"""How long the service waits for callers, and how much memory callers may use meanwhile."""

from __future__ import annotations

from collections import Counter, defaultdict
from enum import Enum, StrEnum, auto
from typing import Any, Final, Protocol

from bcs.config.settings import Settings
from bcs.http.bodies import Reading
from bcs.http.deadlines import Deadlines, LoopClock
from bcs.http.held import HeldBytes
from bcs.observability.telemetry import CONNECTIONS_PER_ADDRESS, Telemetry

# A caller that the service has waited for less long is not slow, because its packets may be on their way. A blocked
# event loop adds less than this to the clock.
_SLOW_SECONDS = 1.0

MOST_CROWDED: Final = 8
"""How many connections above the limit of all connections are accepted."""

MOST_ABOVE_SHARE: Final = 16
"""How many connections above the limit of an address are accepted."""

MOST_OPENING_ABOVE_SHARE: Final = MOST_ABOVE_SHARE // 2
"""How many of these are accepted in one turn of the event loop. The requests on them are read before newer connections
replace silent ones."""


class Crowded(StrEnum):
    """Why there is no room for a connection: only probes are answered on it."""

    ALL = "too many connections at a time"
    ADDRESS = "too many connections from one address at a time"


class Share(Enum):
    """What an address may have for a new connection."""

    FREE = auto()
    """The connection has room."""
    REPLACES = auto()
    """The connection has room: another one of the address has been ended."""
    USED_UP = auto()
    """Only probes are answered on the connection."""
    REFUSED = auto()
    """The connection must be closed at once."""


class Caller(Protocol):
    """A connection that the service may wait for."""

    held_bytes: int
    network: str

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
    :ivar crowded: the open connections without room, with the reason; only probes are answered on them.
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
        self.crowded: dict[Caller, Crowded] = {}
        self._most = most
        self._most_of_address = settings.http_max_connections_per_address
        self._share_refused = telemetry.http_limited.labels(CONNECTIONS_PER_ADDRESS).inc
        # By network. Accepted connections are opening until they are connected.
        self._opening: Counter[str] = Counter()
        self._connected_of: defaultdict[str, dict[Caller, None]] = defaultdict(dict)
        telemetry.http_connections.set_function(lambda: len(self.connected))
        telemetry.http_bodies_awaited.set_function(lambda: len(self.bodies))
        telemetry.http_held_bytes.set_function(lambda: self.held.total)

    @property
    def room(self) -> int:
        """The number of connections that may still be opened; below 0 if there are too many."""
        return self._most - len(self.connected) - self._opening.total()

    @property
    def room_for_probes(self) -> int:
        """The number of connections that may still be opened when there is no other room."""
        return MOST_CROWDED - sum(reason is Crowded.ALL for reason in self.crowded.values())

    def share_of(self, network: str) -> Share:
        """Decide about a new connection of a network.

        At its limit, a network gives up its own connections: one that is idle, or else one whose caller is slow. Else a
        few more connections are accepted for probes, because all callers behind a proxy have the same address. Of
        these, one without a request gives way to a newer one, which may be a probe.
        """
        most, connected = self._most_of_address, self._connected_of.get(network, {})
        if most is None or (count := len(connected) + self._opening[network]) < most:
            return Share.FREE
        for waiting, seconds in ((self.idle, _SLOW_SECONDS), (self.heads, _SLOW_SECONDS), (self.idle, 0.0)):
            for caller in connected:
                if waiting.has_waited(caller, seconds):
                    waiting.end(caller)
                    return Share.REPLACES
        self._share_refused()
        if count >= most + MOST_ABOVE_SHARE:
            silent = next((caller for caller in connected if caller in self.crowded and caller in self.heads), None)
            if silent is None:
                return Share.REFUSED
            self.heads.end(silent)
        return Share.USED_UP

    def opening(self, network: str) -> int:
        """A connection has been accepted; `opened` must follow.

        :returns: the number of connections of this network that are opening.
        """
        self._opening[network] += 1
        return self._opening[network]

    def opened(self, network: str) -> None:
        """The connection that was accepted is connected now, or it has failed."""
        self._opening[network] -= 1
        if not self._opening[network]:
            del self._opening[network]

    def connect(self, caller: Caller, crowded: Crowded | None) -> None:
        """Add an open connection.

        :param crowded: why there is no room for it; None if there is room.
        """
        self.connected.add(caller)
        self._connected_of[caller.network][caller] = None
        if crowded:
            self.crowded[caller] = crowded

    def disconnect(self, caller: Caller) -> None:
        """Remove a connection that is closed."""
        self.connected.discard(caller)
        self.crowded.pop(caller, None)
        connected = self._connected_of[caller.network]
        connected.pop(caller, None)
        if not connected:
            del self._connected_of[caller.network]

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
        """The group in which to end a caller: idle connections first, then callers for which little work was done.

        A connection that has been idle only for a moment comes last, because its caller is likely to use it.
        """
        slow = (self.idle, self.heads, self.bodies, self.sendings)
        found = next((waiting for waiting in slow if waiting.waited_seconds() >= _SLOW_SECONDS), None)
        return found or self.idle or None

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
