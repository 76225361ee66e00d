"""Many ask for the same at the same time, and one of them finds it out for all.

The idea and the name are those of Go's `golang.org/x/sync/singleflight`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class _Flight(Generic[T]):
    __slots__ = ("error", "landed", "number", "result")

    def __init__(self, number: int) -> None:
        self.number = number
        self.landed = anyio.Event()
        self.result: list[T] = []
        self.error: Exception | None = None


class SingleFlight(Generic[T]):
    """Runs one call at a time for each key, and gives its outcome to all who came before it began."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}
        self._begun = 0

    async def do(self, key: Hashable, call: Callable[[], Awaitable[T]]) -> T:
        """Call, or wait for the outcome of somebody else's call, which begins after this.

        One that has begun already may have seen an earlier state of things than whoever comes now. So of all who come
        during a call one makes the next, and the others share it.

        Cancellation of the one who calls ends the call, and the next of those who wait takes over.

        :raises Exception: what the call raised, for each who waited.
        """
        begun_before = self._begun
        while (flight := self._flights.get(key)) is not None:
            await flight.landed.wait()
            if flight.number <= begun_before:
                continue
            if flight.result:
                return flight.result[0]
            if flight.error is not None:
                raise flight.error
        self._begun += 1
        flight = self._flights[key] = _Flight(self._begun)
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
