"""Round trips that are shared: all who want one in the same turn of the event loop go together.

What a round trip costs on our side (a connection, a deadline, two system calls, a reply's way through the loop) is then
paid once for all of them. The idea is that of group commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from bcs.domain.errors import StoreUnavailable

Command = tuple[str | bytes | int | float, ...]


@dataclass(slots=True)
class Parcel:
    """What one caller sends, and gets.

    :param commands: stay together, and in order.
    :param replies: as many as there are commands; None as long as there are none.
    """

    commands: Sequence[Command]
    replies: list[Any] | None = None


class _Trip:
    __slots__ = ("failure", "over", "parcels")

    def __init__(self) -> None:
        self.parcels: list[Parcel] = []
        self.failure = StoreUnavailable("redis", "the round trip was interrupted")
        self.over = anyio.Event()


class RoundTrips:
    """Gathers parcels, and sends them off together.

    :param carry: takes parcels there and back, in bounded time; those without replies afterwards have failed.
    :param at_a_time: so many round trips are under way at once; who comes meanwhile goes with the next one.
    """

    def __init__(self, carry: Callable[[Sequence[Parcel]], Awaitable[None]], at_a_time: int) -> None:
        self._carry = carry
        self._lanes = anyio.CapacityLimiter(at_a_time)
        self._next: _Trip | None = None

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands, and return their replies.

        Cancellation leaves open whether they are carried out; others who go along are not affected by it.

        :raises StoreUnavailable: there are no replies; the commands may or may not have been carried out.
        """
        parcel, trip = Parcel(commands), self._next
        if trip is None:
            trip = self._next = _Trip()
            trip.parcels.append(parcel)
            # The first one takes all others along, and so must see it through.
            with anyio.CancelScope(shield=True):
                await self._travel(trip)
        else:
            trip.parcels.append(parcel)
            await trip.over.wait()
        if parcel.replies is None:
            # One of its own for each: a traceback grows with every task that raises it.
            raise StoreUnavailable(trip.failure.store, trip.failure.cause)
        return parcel.replies

    async def _travel(self, trip: _Trip) -> None:
        try:
            await checkpoint()  # whoever runs in this turn of the loop joins
            async with self._lanes:
                self._next = None
                await self._carry(trip.parcels)
        except StoreUnavailable as error:
            trip.failure = error
        finally:
            if self._next is trip:
                self._next = None  # natively cancelled on the way
            trip.over.set()
