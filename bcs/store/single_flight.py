"""Many ask for the same at the same time, and one of them finds it out for all.

The idea and the name are those of Go's `golang.org/x/sync/singleflight`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class _Flight(Generic[T]):
    __slots__ = ("error", "landed", "result")

    def __init__(self) -> None:
        self.landed = anyio.Event()
        self.result: list[T] = []
        self.error: Exception | None = None


class SingleFlight(Generic[T]):
    """Runs one call at a time for each key, and gives its outcome to all who came while it ran."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}

    async def do(self, key: Hashable, call: Callable[[], Awaitable[T]]) -> T:
        """Call, or wait for the outcome of somebody else's call.

        Cancellation of the one who calls ends the call, and the next of those who wait takes over.

        :raises Exception: what the call raised, for each who waited.
        """
        while (flight := self._flights.get(key)) is not None:
            await flight.landed.wait()
            if flight.result:
                return flight.result[0]
            if flight.error is not None:
                raise flight.error
        flight = self._flights[key] = _Flight()
        try:
            result = await call()
        except Exception as error:
            flight.error = error
            raise
        else:
            flight.result.append(result)
            return result
        finally:
            del self._flights[key]
            flight.landed.set()
