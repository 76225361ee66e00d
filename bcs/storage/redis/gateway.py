"""Sends commands to Redis: pipelined, with a deadline, behind a circuit breaker, and never interrupted half way.

The replies of a cancelled command would be read as replies of the next command on the same connection. So a round trip
is shielded from cancellation and has its own deadline, and a connection with any failure is dropped. redis-py's
connections are used directly, because its `Pipeline` needs a round trip for each read after WATCH, retries by itself,
and leaks the connection when a deadline expires inside `reset()`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from math import inf
from typing import Any

import anyio
import structlog
from circuitbreaker import CircuitBreaker
from redis.asyncio import Connection
from redis.exceptions import RedisError

from bcs.config.redis_servers import RedisKind
from bcs.config.store_urls import StoreUrl, redis_url
from bcs.errors import RedisUnusable, StoreUnavailable
from bcs.storage.deadlines import Deadline
from bcs.storage.redis.commands import Command
from bcs.storage.redis.connecting import connection_pool, late_cause
from bcs.storage.redis.dry_run import DryRun
from bcs.storage.redis.errors import UnusableServer, has_error, may_be_elsewhere, raise_first, redirection, translated
from bcs.storage.redis.exchange import exchange
from bcs.storage.redis.identity import Peer, RedisIdentity
from bcs.storage.redis.multiplexer import ConnectionLost, Multiplexer, Replies
from bcs.storage.redis.sentinel import Sentinels

log = structlog.stdlib.get_logger("bcs.redis")

# A lookup may have to wait for another one that has begun before, and the master has to answer in the rest.
_SHARE_FOR_SENTINELS = 1 / 3
# A probe must not wait for a free connection, and must not occupy one that callers need.
_CONNECTIONS_FOR_PING = 1
# Longer than the interval at which callers retry a refused command.
_REFUSAL_SECONDS = 5.0


class _NoAnswer(Exception):
    """What the circuit breaker counts: no answer from Redis in time."""


class RedisGateway:
    """A bounded set of connections to one Redis.

    :param url: of one server, or of Sentinels that name one; a text does not change.
    :param max_connections: how many round trips may run at once; more wait for their turn.
    :param deadline_seconds: how long a round trip may take, including the connecting.
    :param breaker_failures: the circuit breaker opens after so many failures in a row.
    :param breaker_open_seconds: how long the circuit breaker stays open; then one call is tried.
    :param needs_identity: whether a component needs the identity of the server, so that a missing one is a problem.
    :param in_cluster: whether the server is one node of a cluster, and redirections are no problem of the server.
    :ivar sentinels: what finds the master; None where the URL names the server itself.
    """

    def __init__(
        self,
        url: StoreUrl | str,
        *,
        max_connections: int,
        deadline_seconds: float,
        breaker_failures: int,
        breaker_open_seconds: float,
        needs_identity: bool = False,
        in_cluster: bool = False,
    ) -> None:
        url = redis_url(url) if isinstance(url, str) else url
        self._url = url
        # Streams are grouped by it on the way of each announcement, and to make it out of a URL takes parsing.
        self._given_address = url.address
        self._identity = RedisIdentity(needed=needs_identity, in_cluster=in_cluster)
        self._in_cluster = in_cluster
        self.sentinels: Sentinels | None = None
        if url.servers.kind is RedisKind.SENTINEL:
            timeout_seconds = deadline_seconds * _SHARE_FOR_SENTINELS
            moved = self._identity.replace_all_connections
            self.sentinels = Sentinels(url, timeout_seconds=timeout_seconds, moved=moved)
        self._pool = connection_pool(
            url,
            locate=self.sentinels.master if self.sentinels else None,
            max_connections=max_connections + _CONNECTIONS_FOR_PING,
            redis_connect_func=self._identity.on_connect,
        )
        self._slots = anyio.Semaphore(max_connections, max_value=max_connections, fast_acquire=True)
        self._ping_slots = anyio.Semaphore(_CONNECTIONS_FOR_PING, fast_acquire=True)
        self._deadline_seconds = deadline_seconds
        self._breaker = CircuitBreaker(breaker_failures, breaker_open_seconds, _NoAnswer, "redis")
        self._known_away = False
        self._last_cause = ""
        self._problem = ""
        self._refused_at = -inf
        # Not from the pool, because the pool would take the connection back.
        self._shared = Multiplexer(self._pool.make_connection, self._identity.peer, deadline_seconds)

    @property
    def address(self) -> str:
        """The address without the login, with the name of its setting; and the master that Sentinels named last."""
        if self.sentinels is None or self.sentinels.found is None:
            return self._given_address
        return f"{self.sentinels.found.address}, the master of {self._given_address}"

    @property
    def circuit(self) -> str:
        """The circuit breaker's state: `closed`, `open` or `half_open`."""
        return str(self._breaker.state)

    @property
    def identity(self) -> str:
        """The identity of the server at the last check of any connection; empty where it is unknown."""
        return self._identity.last_known

    @property
    def problem(self) -> str:
        """What is wrong with Redis although it answers; empty without a problem."""
        return self._problem or self._identity.problem or (self.sentinels.problem if self.sentinels else "")

    def at(self, _key: str, /) -> RedisGateway:
        """The node that has a key: one server has every key."""
        return self

    @property
    def server(self) -> RedisGateway:
        """See `Node.server`."""
        return self

    @property
    def partly_reachable(self) -> bool:
        """True if the server answers, and only the Sentinels have a problem."""
        return bool(self.problem) and not (self._problem or self._identity.problem)

    async def all_nodes(self) -> Sequence[RedisGateway]:
        """Every node that stores data."""
        return [self]

    def ensure_reachable(self) -> None:
        """Fail at once while the circuit breaker is open.

        :raises StoreUnavailable: the circuit breaker is open.
        """
        if self._breaker.opened:
            cause = f"circuit breaker open; retry later: {self._last_cause}"
            raise StoreUnavailable("redis", cause, unsent=True, address=self.address)

    async def call(self, *commands: Command, deadline_seconds: float | None = None) -> Replies:
        """Send commands in one round trip and return their replies. Cancellation waits for the replies.

        :param deadline_seconds: how long the round trip may take, if less than usual.
        :raises StoreUnavailable: no answer in time, or Redis refused a command; the commands may or may not have been
            carried out.
        :raises ResponseError: a key has another type, or a consumer group is missing or exists already.
        """
        async with self.session(deadline_seconds=deadline_seconds) as session:
            replies = Replies(await session.call(*commands))
            replies.peer = session.peer
        return replies

    async def call_multiplexed(self, *commands: Command) -> Replies:
        """Send commands in one round trip with the commands of all other callers in this turn of the event loop.

        For small and frequent calls only, because a large reply would delay the replies of the other callers.

        :raises StoreUnavailable: as for `call`.
        :raises ResponseError: as for `call`.
        """
        self.ensure_reachable()
        try:
            replies = await self._shared.send(commands)
        except ConnectionLost as lost:
            failure = StoreUnavailable("redis", lost.cause, late=lost.late, unsent=lost.unsent)
            self._note_failure(failure)
            if lost.first or lost.late:
                # A reset counts once for all callers on the connection, because it is no outage. Silence counts for
                # each.
                self._record(answered=False)
            raise failure from None
        if has_error(replies):
            self._inspect(replies)
        self._record(answered=True)
        return replies

    def _inspect(self, replies: Replies) -> None:
        try:
            with translated():
                raise_first(replies)
        except StoreUnavailable as failure:
            if isinstance(failure.__cause__, RedisError) and may_be_elsewhere(failure.__cause__):
                assert isinstance(replies.peer, Peer)  # noqa: S101 (of the shared connection)
                self._identity.replace_connections(replies.peer)
            self._note_failure(failure)
            self._record(answered=failure.answered)
            raise

    def _record(self, *, answered: bool) -> None:
        """Tell the circuit breaker that Redis answered, or did not; log that Redis is away, and that it is back.

        An answer closes the circuit at once, also one to a command that was sent before it opened.
        """
        if answered and not self._breaker.failure_count:
            return  # the usual case
        if not answered and self._breaker.opened:
            return  # a command that was sent before; it must not make the pause longer
        with suppress(_NoAnswer), self._breaker:
            if not answered:
                raise _NoAnswer
        if self._breaker.opened and not self._known_away:
            self._known_away = True
            log.warning("redis_unreachable", circuit=self.circuit, address=self.address, cause=self._last_cause)
        elif answered and self._known_away:
            self._known_away = False
            log.warning("redis_reachable_again", circuit=self.circuit)

    @asynccontextmanager
    async def session(self, *, deadline_seconds: float | None = None) -> AsyncIterator[RedisSession]:
        """A connection for several round trips under one deadline, for a transaction with WATCH.

        Cancellation by anyio waits until the block has ended, at most until the deadline. Cancellation by asyncio,
        which ends an overdue request, ends the block at once, and the connection is dropped.

        :param deadline_seconds: how long the block may take, if less than usual.
        :raises StoreUnavailable: as for `call`.
        """
        async with self._slots:
            self.ensure_reachable()
            try:
                async with self._connected(deadline_seconds) as session:
                    yield session
            except StoreUnavailable as failure:
                # The block may have failed over another store. Then Redis did answer.
                self._record(answered=failure.store != "redis" or failure.answered)
                raise
            except Exception:
                self._record(answered=True)
                raise
            # A cancellation is not recorded: it says nothing about Redis.
            self._record(answered=True)

    async def ping(self, dry_run: DryRun | None = None) -> None:
        """Send a PING, even while the circuit breaker is open, and check whether Redis would accept some commands.

        :param dry_run: commands that are not carried out. A refusal of a read is an error, that of a write becomes the
            `problem`.
        :raises StoreUnavailable: no answer in time, or Redis would refuse a read.
        """
        async with self._ping_slots:
            if self.sentinels:
                await self.sentinels.probe()
            async with self._connected() as session:
                await session.call(("PING",))
                reads, writes = (dry_run.reads, dry_run.writes) if dry_run else ([], [])
                replies = await session.dry_run([*reads, *writes]) if reads or writes else []
                raise_first(replies[: len(reads)])
        try:
            with translated():
                raise_first(replies[len(reads) :])
        except StoreUnavailable as failure:
            self._note_failure(failure)
        else:
            self._note_acceptance()

    async def ensure_usable(self) -> None:
        """Refuse a server that BCS does not support. A server that is away passes, because it may be usable later.

        :raises RedisUnusable: the server answered, and BCS does not support it.
        """
        try:
            async with self._ping_slots, self._connected():
                pass
        except StoreUnavailable as error:
            if isinstance(error.__cause__, UnusableServer) and error.__cause__.for_good:
                raise RedisUnusable(error.cause) from error
            log.debug("redis_unavailable_at_start", problem=error.cause)

    async def aclose(self) -> None:
        """Close all connections."""
        self._shared.close()
        if self.sentinels:
            await self.sentinels.aclose()
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + self._deadline_seconds):
            await self._pool.disconnect()

    def _note_failure(self, failure: StoreUnavailable) -> None:
        """Keep the cause of a failure. A refusal is logged once, because the circuit breaker does not open for it."""
        failure.address = self.address
        if self._in_cluster and redirection(failure):
            return
        if failure.late:
            failure.cause = late_cause(self._pool, failure.cause)
        if not failure.answered:
            self._last_cause = failure.cause
            return
        self._refused_at = anyio.current_time()
        if not self._problem:
            log.warning("redis_refuses", address=self.address, cause=failure.cause)
        self._problem = failure.cause

    def _note_acceptance(self) -> None:
        """End the problem after a successful dry run, unless another command was refused shortly before."""
        if self._problem and anyio.current_time() >= self._refused_at + _REFUSAL_SECONDS:
            log.warning("redis_accepts_commands", problem=self._problem)
            self._problem = ""

    @asynccontextmanager
    async def _connected(self, deadline_seconds: float | None = None) -> AsyncIterator[RedisSession]:
        peer: Peer | None = None
        seconds = self._deadline_seconds if deadline_seconds is None else deadline_seconds
        deadline = Deadline(seconds, shield=True)
        try:
            with deadline:
                connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
                reusable = False
                try:
                    peer = self._identity.peer(connection)
                    if peer.outdated:
                        await connection.disconnect(nowait=True)
                        await connection.connect()
                        peer = self._identity.peer(connection)
                    session = RedisSession(connection, peer, deadline)
                    yield session
                    reusable = session.reusable
                finally:
                    if not reusable:
                        # Replies may still arrive on this connection, and it may still watch keys.
                        await connection.disconnect(nowait=True)
                    await self._pool.release(connection)
            if deadline.expired:
                raise TimeoutError
        except (RedisError, OSError) as error:
            if peer and isinstance(error, RedisError) and may_be_elsewhere(error):
                self._identity.replace_connections(peer)
            try:
                with translated():
                    raise
            except StoreUnavailable as failure:
                failure.unsent = peer is None
                self._note_failure(failure)
                raise


class RedisSession:
    """One connection during a block of `RedisGateway.session`.

    :param peer: the server at the other end.
    :ivar reusable: whether the connection may go back to the pool.
    :ivar named: returns the name of a server for the keys of this session, from its identity.
    """

    __slots__ = ("_check", "_connection", "_deadline", "named", "peer", "reusable")

    def __init__(self, connection: Connection, peer: Peer, deadline: Deadline) -> None:
        self.peer = peer
        self.reusable = True
        self.named: Callable[[str], str] = str
        self._connection = connection
        self._deadline = deadline
        # Sent only before the first commands, because within a transaction it would be queued.
        self._check = peer.due(anyio.current_time())

    @property
    def identity(self) -> str:
        """The identity of the server at the other end; empty where it is unknown."""
        return self.named(self.peer.identity)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the deadline during a block that waits for something else, which has its own deadline."""
        with self._deadline.paused():
            yield

    async def call(self, *commands: Command) -> list[Any]:
        """Send commands in one round trip and return their replies; see `RedisGateway.call`."""
        replies = await self.exchange(commands)
        raise_first(replies)
        return replies

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Like `call`, but a refused command has an error in the place of its reply."""
        if self._check is None:
            return await exchange(self._connection, commands)
        check, self._check = self._check, None
        answer, *replies = await exchange(self._connection, [check, *commands])
        self.peer.check_reply(answer)
        return replies

    async def dry_run(self, commands: Sequence[Command]) -> list[Any]:
        """Check whether Redis would accept commands: they are queued for a transaction, and discarded.

        :returns: `QUEUED` or an error for each command; a single error where Redis refuses MULTI.
        """
        # Alone, because the commands after a refused MULTI would be carried out.
        [began] = await self.exchange([("MULTI",)])
        if isinstance(began, RedisError):
            return [began]
        *replies, discarded = await self.exchange([*commands, ("DISCARD",)])
        # Where DISCARD is refused, closing the connection discards the commands.
        self.reusable = not isinstance(discarded, RedisError)
        return replies
