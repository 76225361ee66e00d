"""Connections to PostgreSQL: time-bound, never cut off half way, and left alone while it is known to be away."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import anyio
import asyncpg
import structlog
from asyncpg.exceptions import TargetServerAttributeNotMatched

from bcs.config.addresses import database_address
from bcs.errors import DatabaseUnusable, SchemaLocked, SchemaOutdated, StoreRefused, StoreUnavailable
from bcs.observability.logged_causes import LoggedCauses
from bcs.storage.deadlines import Deadline
from bcs.storage.postgres import schema
from bcs.storage.postgres.connecting import TAKES_NO_WRITES, ArchiveConnection, Connector, perform

T = TypeVar("T")
Work = Callable[[Any], Awaitable[T]]

log = structlog.stdlib.get_logger("bcs.archive")

NO_ANSWER = (OSError, UnicodeError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg fails with when the database is away or refuses, or its host's name can't be one."""

_STORE = "postgresql"
# SQLSTATE classes: what was sent can't be stored (data, integrity, program limits), and will not be the next time.
_REFUSED = ("22", "23", "54")
# But for a character that the database's encoding lacks: another database may have it.
_UNTRANSLATABLE = "22P05"
# A deadlock, a lock or a connection that was not to be had: the database is well, and asked again it may do it.
_ONLY_THIS_TIME = ("40", "53", "55006", "55P03")
# Of these a full disk passes only when a person sees to it, and a probe does not notice.
_SHORT = "53"
# A limit on the time of a statement, ours or the database's own, or an administrator who ends what takes long.
_CANCELLED = "57014"
_SAY_AGAIN_SECONDS = 30.0
# So long after it was last met a shortage counts as there: longer than a probe is away from the next.
_SHORT_SECONDS = 5.0
# A probe must neither wait behind a full house nor take a place in it.
CONNECTIONS_FOR_PROBE = 1
# What the database refused, somebody has to see to first.
_UPGRADE_PAUSE_SECONDS = 30.0


_MENDS: dict[type[Exception], str] = {
    asyncpg.InvalidPasswordError: "put the right user and password into BCS_DATABASE_URL",
    asyncpg.InvalidAuthorizationSpecificationError: "let the user of BCS_DATABASE_URL log in (pg_hba.conf, LOGIN)",
    asyncpg.InvalidCatalogNameError: "create the database, or name another one in BCS_DATABASE_URL",
    asyncpg.InsufficientPrivilegeError: "grant it to the user of BCS_DATABASE_URL",
    asyncpg.UndefinedTableError: "run `bcs db upgrade`",
    asyncpg.TooManyConnectionsError: "raise max_connections or the role's limit, or lower BCS_DATABASE_MAX_CONNECTIONS",
    asyncpg.DiskFullError: "make room on its disk",
    socket.gaierror: "check the host in BCS_DATABASE_URL",
}


class ArchiveGateway:
    """A bounded set of connections to one database.

    It begins as out of reach; `probe` finds it, and finds it again. Nobody else waits for a database that is away: what
    fails to answer one caller in time is not asked again before a probe has had its answer.

    :param url: `postgresql://`.
    :param max_connections: how many statements may be under way at once; more wait for their turn.
    :param deadline_seconds: how long a statement may take, connecting included.
    """

    def __init__(self, url: str, *, max_connections: int, deadline_seconds: float) -> None:
        self._url = url
        self._connector = Connector(url)
        self.address = database_address(url)
        self._max_connections = max_connections
        self.deadline_seconds = deadline_seconds
        self._pool: asyncpg.Pool | None = None
        self._generation = 0  # of its connections
        self._opening = anyio.Lock()
        self._slots = anyio.Semaphore(max_connections, max_value=max_connections, fast_acquire=True)
        self._probe_slots = anyio.Semaphore(CONNECTIONS_FOR_PROBE, fast_acquire=True)
        self.reachable = self.was_reached = False
        self.identity: str | None = None
        self._upgrade_after = 0.0
        self._logged: str | None = None
        self._causes_logged = LoggedCauses()
        self._shortage, self._short_until = "", 0.0
        self._say_after = 0.0
        self.problem = "it was not reached yet"

    def ensure_reachable(self) -> None:
        """Refuse at once while the database is known to be away.

        :raises StoreUnavailable: it is.
        """
        if not self.reachable:
            raise StoreUnavailable(_STORE, self.problem, address=self.address)

    async def run(self, work: Work[T], *, deadline_seconds: float | None = None) -> T:
        """Do something with a connection.

        Cancellation waits until it has ended, which the usual deadline bounds. With another deadline it ends it at
        once, and what it was to write may or may not have been written.

        :param work: gets the connection; what it began is undone unless it returns.
        :param deadline_seconds: instead of the usual one.
        :raises StoreUnavailable: no answer in time; what was to be written may or may not have been.
        :raises StoreRefused: the database will never take it.
        """
        self.ensure_reachable()
        if deadline_seconds is None:
            return await self._run(work, self.deadline_seconds, shield=True)
        return await self._run(work, deadline_seconds)

    async def probe(self, deadline_seconds: float) -> None:
        """Ask for a sign of life, and bring the schema up to date if it is not. Says so once when that changes.

        :raises StoreUnavailable: there was none in time.
        """
        if not await self._look(deadline_seconds):
            if anyio.current_time() < self._upgrade_after:
                raise StoreUnavailable(_STORE, self.problem, address=self.address)
            try:
                await schema.upgrade(self._url)
            except SchemaLocked as locked:
                # What waits for a table holds up all who use it, so that is not tried again at once.
                self._upgrade_after = anyio.current_time() + (0.0 if locked.upgrading else _UPGRADE_PAUSE_SECONDS)
                raise self._unusable(str(locked), "schema locked") from locked
            except Exception as error:
                self._upgrade_after = anyio.current_time() + _UPGRADE_PAUSE_SECONDS
                # From Alembic and asyncpg alike; whatever it is, the database is of no use as it is.
                unexpected = f"the schema can't be upgraded: {brief(error)}"
                raise self._unusable(unexpected, unexpected) from error
            await self._look(deadline_seconds)
        problem: str | None = await self._run(schema.problem_with_writes, deadline_seconds, slots=self._probe_slots)
        if problem:
            raise self._unusable(problem, problem)
        self._succeed()

    async def probe_unchanged(self, deadline_seconds: float) -> None:
        """The same for those who only read: the schema is left as it is.

        :raises StoreUnavailable: there was no sign of life in time.
        :raises SchemaOutdated: it is older than what this release reads.
        """
        if not await self._look(deadline_seconds):
            raise SchemaOutdated
        self._succeed()

    async def ensure_usable(self, deadline_seconds: float) -> None:
        """Refuse a database that can't keep the record as it is. One that is away may be found to be usable later.

        :raises DatabaseUnusable: it answered, and can't.
        """
        try:
            await self.look(_nothing, deadline_seconds)
        except StoreUnavailable as error:
            log.debug("archive_unavailable_at_start", problem=error.cause)

    async def look(self, work: Work[T], deadline_seconds: float) -> T:
        """Do something with a connection although the database may be away, and upgrade nothing.

        :param work: gets the connection.
        :raises StoreUnavailable: no answer in time.
        :raises DatabaseUnusable: the database answers, and can't keep the record.
        """
        return await self._with_deadline(work, deadline_seconds, slots=self._probe_slots)

    async def _look(self, deadline_seconds: float) -> bool:
        """Whether the schema is current; then its identity is known, too."""
        self.identity = await self._run(schema.identity, deadline_seconds, slots=self._probe_slots) or self.identity
        return await self._run(schema.is_current, deadline_seconds, slots=self._probe_slots)

    async def aclose(self) -> None:
        """Close all connections."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + self.deadline_seconds) as scope:
            await pool.close()
        if scope.cancelled_caught:
            pool.terminate()

    async def _run(
        self, work: Work[T], deadline_seconds: float, *, shield: bool = False, slots: anyio.Semaphore | None = None
    ) -> T:
        try:
            return await self._with_deadline(work, deadline_seconds, shield=shield, slots=slots)
        except DatabaseUnusable as error:
            # Whatever was there before, or comes after it: what it was to keep waits.
            raise self._unusable(str(error), str(error)) from error

    async def _with_deadline(
        self, work: Work[T], deadline_seconds: float, *, shield: bool = False, slots: anyio.Semaphore | None = None
    ) -> T:
        generation, its_turn = self._generation, False
        try:
            with Deadline(deadline_seconds, shield=shield) as deadline:
                async with slots or self._slots:
                    if slots is None:
                        self.ensure_reachable()  # it was, when the wait began
                    generation, its_turn = self._generation, True
                    return await self._with_connection(work)
        except NO_ANSWER as error:
            raise self._judged(error, generation) from error
        assert deadline.expired  # noqa: S101 (nothing else ends the block without a result)
        if not its_turn:
            # The others keep it busy, or one of them is about to find it away.
            raise StoreUnavailable(_STORE, "too many ask it at once", address=self.address)
        self._fail("no answer in time", generation)
        raise StoreUnavailable(_STORE, "no answer in time", late=True, address=self.address)

    async def _with_connection(self, work: Work[T]) -> T:
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    connect=self._connector.connect,
                    connection_class=ArchiveConnection,
                    min_size=0,
                    max_size=self._max_connections + CONNECTIONS_FOR_PROBE,
                    # Nothing is left on a connection: whatever did not end well is closed.
                    reset=_nothing,
                )
        pool = self._pool
        connection = await pool.acquire()
        done = False
        try:
            result = await perform(connection, work)
            done = True
            return result
        finally:
            if not done:
                # An answer may still be under way on it, and to ask the server to break off may take as long.
                connection.terminate()
            with suppress(asyncpg.InterfaceError):  # somebody else found out first, and closed them all
                await pool.release(connection)

    def _judged(self, error: Exception, generation: int) -> Exception:
        state = getattr(error, "sqlstate", None) or ""
        if state.startswith(_REFUSED) and state != _UNTRANSLATABLE:
            return StoreRefused(_STORE, brief(error))
        if not state.startswith(_ONLY_THIS_TIME):
            self._fail(brief(error), generation)
        elif state.startswith(_SHORT):
            self._note_shortage(brief(error))
        return StoreUnavailable(_STORE, brief(error), late=state == _CANCELLED, address=self.address)

    def _note_shortage(self, problem: str) -> None:
        now = anyio.current_time()
        self._shortage, self._short_until = problem, now + _SHORT_SECONDS
        if not self.reachable:
            self.problem = problem
        if now >= self._say_after:
            self._say_after = now + _SAY_AGAIN_SECONDS
            log.warning("archive_out_of_resources", address=self.address, problem=problem)

    @property
    def shortage(self) -> str:
        """What the database has not enough of, although it answers; empty where it lacks nothing."""
        return self._shortage if anyio.current_time() < self._short_until else ""

    def _unusable(self, problem: str, kind: str) -> StoreUnavailable:
        """The database answers, and is of no use as it is. That is said once, for it does not pass by itself.

        :param kind: the same for all problems of a kind, whatever they name.
        """
        if kind != self._logged:
            self._logged = kind
            log.warning("archive_unusable", address=self.address, problem=problem)
        self._fail(problem, self._generation)
        return StoreUnavailable(_STORE, problem, address=self.address)

    def _succeed(self) -> None:
        self._logged = None
        self._causes_logged.clear()
        if not self.reachable:
            self.reachable = self.was_reached = True
            log.info("archive_reachable")

    def _fail(self, problem: str, generation: int) -> None:
        if generation != self._generation:
            return  # somebody else failed on those connections first, and there may be new ones that are well
        self._generation += 1
        self.problem = problem
        # An outage may begin with one cause, such as a cut connection, and last for another one.
        was_reachable, self.reachable = self.reachable, False
        if self._causes_logged.note(problem) and (was_reachable or self._logged is None):
            log.warning("archive_unreachable", address=self.address, problem=problem)
        # Others on its connections would each have to find out for themselves.
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()


async def _nothing(_connection: asyncpg.Connection) -> None:
    pass


def brief(error: BaseException) -> str:
    """Why, in a few words, without statement, parameters or password."""
    if isinstance(error, TargetServerAttributeNotMatched):
        return TAKES_NO_WRITES
    logged = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, OSError):
        # What asyncio and asyncpg say repeats the address, and may say it twice.
        logged = os.strerror(error.errno) if error.errno and error.errno > 0 else logged
    named = logged if logged and isinstance(error, OSError) else f"{type(error).__name__}: {logged}".rstrip(": ")
    mend = next((mend for kind, mend in _MENDS.items() if isinstance(error, kind)), "")
    return named + (f"; {mend}" if mend else "")
