"""Commands to Redis: pipelined, time-bound, behind a circuit breaker, and never cut off half way.

The replies of a cancelled command would be read as those of the next one on the same connection. So a round trip is
shielded from cancellation and has a deadline of its own, and a connection on which anything went wrong is dropped.
redis-py's connections are used directly: its `Pipeline` needs a round trip for each read after WATCH, retries of its
own accord, and leaks the connection when a deadline strikes inside `reset()`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from math import inf
from typing import Any

import anyio
import structlog
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.messages.base import Event
from purgatory.domain.messages.events import ContextChanged
from purgatory.domain.model import OpenedState
from purgatory.service._async.circuitbreaker import AsyncCircuitBreaker
from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from bcs.domain.errors import StoreUnavailable
from bcs.store.round_trips import Command, Parcel, RoundTrips

log = structlog.stdlib.get_logger("bcs.redis")

_AWAY = (
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    ClusterDownError,
    ReadOnlyError,
    OutOfMemoryError,
    TryAgainError,
    AuthenticationError,
    NoPermissionError,
)
# Answers that redis-py has no type for, but that pass like an outage: a replica without its master, a server whose
# disk refuses writes, one that runs a long script.
_AWAY_CODES = ("MASTERDOWN", "MISCONF", "BUSY ", "NOREPLICAS", "UNBLOCKED", "OOM", "LOADING", "READONLY")
_BREAKER = "redis"
# A probe must neither wait behind a full house nor take a place in it.
_CONNECTIONS_FOR_PING = 1


class RedisGateway:
    """A bounded set of connections to one Redis.

    :param url: `redis://`, `rediss://` or `unix://`.
    :param max_connections: how many round trips may be under way at once; more wait for their turn.
    :param deadline_seconds: how long a round trip, connecting included, may take.
    :param breaker_failures: after so many failures in a row, callers are refused at once.
    :param breaker_open_seconds: for so long; then one more is tried.
    """

    def __init__(
        self,
        url: str,
        *,
        max_connections: int,
        deadline_seconds: float,
        breaker_failures: int,
        breaker_open_seconds: float,
    ) -> None:
        self._pool: ConnectionPool = ConnectionPool.from_url(
            url,
            max_connections=max_connections + _CONNECTIONS_FOR_PING,
            protocol=2,
            # One deadline bounds a whole round trip: a timer for every read would cost more and bound less.
            socket_timeout=None,
            socket_connect_timeout=deadline_seconds,
            retry=Retry(NoBackoff(), 0),
            # With these on, redis-py no longer notices a reply that was left over on a pooled connection.
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        self._slots = anyio.CapacityLimiter(max_connections)
        self._ping_slots = anyio.CapacityLimiter(_CONNECTIONS_FOR_PING)
        self._deadline_seconds = deadline_seconds
        self._breakers = AsyncCircuitBreakerFactory(
            default_threshold=breaker_failures, default_ttl=breaker_open_seconds
        )
        self._breakers.add_listener(self._note_change)
        self._known_away = False
        self._opened_at = -inf
        self._open_seconds = breaker_open_seconds
        self._breaker: AsyncCircuitBreaker | None = None
        # With so many, an outage opens the circuit as soon as if each caller had a round trip to itself.
        self._shared = RoundTrips(self._carry, min(max_connections, breaker_failures))

    @property
    def circuit(self) -> str:
        """The circuit breaker's state: `closed`, `opened` or `half-opened`."""
        return self._breaker.context.state if self._breaker else "closed"

    def ensure_reachable(self) -> None:
        """Refuse at once while the circuit is open.

        :raises StoreUnavailable: it is.
        """
        if self.circuit == "opened" and self._is_left_alone():
            raise _refusal()

    async def call(self, *commands: Command) -> list[Any]:
        """Send commands in one round trip and return their replies.

        :raises StoreUnavailable: no answer in time; the commands may or may not have been carried out.
        :raises ResponseError: Redis refused a command for a reason that trying again will not mend.
        """
        async with self.session() as session:
            return await session.call(*commands)

    async def share(self, *commands: Command) -> list[Any]:
        """The same, in one round trip with all others who share in this turn of the event loop.

        For what is small and asked for often: a large reply would hold up the others' behind it.

        :raises StoreUnavailable: as for `call`.
        :raises ResponseError: as for `call`.
        """
        replies = await self._shared.send(commands)
        with _translated():
            _raise_first(replies)
        return replies

    async def _carry(self, parcels: Sequence[Parcel]) -> None:
        async with self.session() as session:
            replies = await session.exchange([command for parcel in parcels for command in parcel.commands])
            begin = 0
            for parcel in parcels:
                end = begin + len(parcel.commands)
                parcel.replies = replies[begin:end]
                begin = end
            # A refusal is its sender's alone, but one that means an outage is to be seen by the circuit breaker.
            for reply in replies:
                if isinstance(reply, _AWAY) or (isinstance(reply, ResponseError) and _means_away(reply)):
                    raise reply

    @asynccontextmanager
    async def session(self) -> AsyncIterator[RedisSession]:
        """A connection for several round trips under one deadline, as a transaction with WATCH needs it.

        Cancellation waits until the block has ended, which the deadline bounds.

        :raises StoreUnavailable: as for `call`.
        """
        if self._breaker is None:
            self._breaker = await self._breakers.get_breaker(_BREAKER, exclude=[(BaseException, _answered)])
        async with self._slots:
            # purgatory measures the pause by the wall clock, which may have been set forward.
            self.ensure_reachable()
            try:
                async with self._breaker, self._connected() as session:
                    yield session
            except OpenedState as opened:
                # purgatory raises one and the same exception for every refusal, whose traceback would grow for ever.
                opened.__traceback__ = None
                if not self._is_left_alone():
                    # Or set back: then the pause is ended here.
                    opened.opened_at = 0.0
                raise _refusal() from None

    async def ping(self) -> None:
        """Ask for a sign of life, whatever the circuit breaker says.

        :raises StoreUnavailable: there was none in time.
        """
        async with self._ping_slots, self._connected() as session:
            await session.call(("PING",))

    async def aclose(self) -> None:
        """Close all connections."""
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + self._deadline_seconds):
            await self._pool.disconnect()

    def _note_change(self, circuit: str, change: str, event: Event) -> None:
        """Say once that Redis is away, and once that it is back; in between the circuit opens and half-opens."""
        if not isinstance(event, ContextChanged):
            return
        if event.state == "opened":
            self._opened_at = anyio.current_time()
        if event.state == "opened" and not self._known_away:
            self._known_away = True
            log.warning("redis_unreachable", circuit=event.state)
        elif event.state == "closed":
            self._known_away = False
            log.warning("redis_reachable_again", circuit=event.state)

    def _is_left_alone(self) -> bool:
        return anyio.current_time() < self._opened_at + self._open_seconds

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[RedisSession]:
        with _translated(), anyio.fail_after(self._deadline_seconds, shield=True):
            connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            reusable = False
            try:
                yield RedisSession(connection)
                reusable = True
            finally:
                if not reusable:
                    # Replies may still be under way on it, and it may still watch keys.
                    await connection.disconnect(nowait=True)
                await self._pool.release(connection)


class RedisSession:
    """One connection, for as long as its block lasts."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def call(self, *commands: Command) -> list[Any]:
        """Send commands in one round trip and return their replies; see `RedisGateway.call`."""
        replies = await self.exchange(commands)
        _raise_first(replies)
        return replies

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The same, with what Redis refused as errors among the replies."""
        try:
            await self._connection.send_packed_command(self._connection.pack_commands(commands))
        except RuntimeError as error:
            # uvloop's way to say that the server has closed the connection, where asyncio raises ConnectionResetError.
            raise RedisConnectionError(str(error)) from error
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await self._connection.read_response())
            except ResponseError as error:
                replies.append(error)
        return replies


def _refusal() -> StoreUnavailable:
    return StoreUnavailable("redis", "it did not answer lately, and is left alone for a moment")


def _answered(error: BaseException) -> bool:
    """Whether the circuit breaker should overlook an error, because Redis did answer."""
    return not isinstance(error, StoreUnavailable)


def _raise_first(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, RedisError):
            raise reply
        if isinstance(reply, list):
            _raise_first(reply)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise StoreUnavailable("redis", "it did not answer in time") from error
    except _AWAY as error:
        raise StoreUnavailable("redis", _brief(error)) from error
    except OSError as error:
        raise StoreUnavailable("redis", _brief(error)) from error
    except ResponseError as error:
        if _means_away(error):
            raise StoreUnavailable("redis", _brief(error)) from error
        raise


def _means_away(error: ResponseError) -> bool:
    return str(error).startswith(_AWAY_CODES)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
