"""Shares the result of one call among concurrent callers, like Go's `golang.org/x/sync/singleflight`."""

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
    """Runs one call at a time for each key, and gives its result to all callers that arrived before it began."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}
        self._begun = 0

    async def do(self, key: Hashable, call: Callable[[], Awaitable[T]]) -> T:
        """Call, or wait for the result of another caller's call that begins after this.

        A call that has begun already may have read an older state, so its result is not good for a new caller. Of all
        callers that arrive during a call, one makes the next call, and the others share its result.

        Cancellation of the caller that makes the call ends the call, and the next waiting caller takes over.

        :raises Exception: the error of the call, for each caller that waited for it.
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
