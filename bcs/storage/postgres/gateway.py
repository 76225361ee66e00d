"""Connections to PostgreSQL: with deadlines, never interrupted half way, and not used while it is known to be away."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import anyio
import asyncpg
import structlog
from asyncpg.exceptions import TargetServerAttributeNotMatched

from bcs.config.store_urls import StoreUrl, database_url
from bcs.errors import DatabaseUnusable, SchemaLocked, SchemaOutdated, StoreRefused, StoreUnavailable, os_reason
from bcs.observability.logged_causes import LoggedCauses
from bcs.storage.deadlines import Deadline
from bcs.storage.postgres import schema
from bcs.storage.postgres.connecting import ACCEPTS_NO_WRITES, ArchiveConnection, Connector, perform
from bcs.supervision.errors import describe

T = TypeVar("T")
Work = Callable[[Any], Awaitable[T]]

log = structlog.stdlib.get_logger("bcs.archive")

NO_ANSWER = (OSError, UnicodeError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""The errors of asyncpg when the database is away or refuses, or its host name is invalid."""

_STORE = "postgresql"
# SQLSTATE classes of values that can never be stored (data, integrity, program limits).
_REFUSED = ("22", "23", "54")
# Except a character that the database's encoding lacks, because another database may have it.
_UNTRANSLATABLE = "22P05"
# A deadlock, or a lock or connection that was not available: the database is healthy, and a retry may succeed.
_ONLY_THIS_TIME = ("40", "53", "55006", "55P03")
# Insufficient resources. A full disk needs an operator, and a probe does not notice it.
_SHORT = "53"
# A time limit of a statement, ours or the database's, or an administrator who cancels a long statement.
_CANCELLED = "57014"
_LOG_AGAIN_SECONDS = 30.0
# A shortage counts as present for so long after its last error: longer than the interval of probes.
_SHORT_SECONDS = 5.0
# A probe must not wait for a free connection, and must not occupy one that callers need.
CONNECTIONS_FOR_PROBE = 1
# An operator has to solve the reason of a failed upgrade first, unless the database went away during the upgrade.
_UPGRADE_PAUSE_SECONDS = 30.0
_WENT_AWAY = (OSError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, asyncpg.InterfaceError)


# The end of asyncpg's text.
_NO_TLS = "rejected SSL upgrade"
_REMEDIES: dict[type[Exception], str] = {
    asyncpg.InvalidPasswordError: "put the right user and password into {login}",
    asyncpg.InvalidAuthorizationSpecificationError: "let the user of {login} log in (pg_hba.conf, LOGIN)",
    asyncpg.InvalidCatalogNameError: "create the database, or name another one in BCS_DATABASE_URL",
    asyncpg.InsufficientPrivilegeError: "grant it to the user of BCS_DATABASE_URL",
    asyncpg.UndefinedTableError: "run `bcs db upgrade`",
    asyncpg.TooManyConnectionsError: "raise max_connections or the role's limit, or lower BCS_DATABASE_MAX_CONNECTIONS",
    asyncpg.DiskFullError: "make room on its disk",
    socket.gaierror: "check the host in BCS_DATABASE_URL",
    ssl.SSLError: "check the ssl options of BCS_DATABASE_URL",
}


class ArchiveGateway:
    """A bounded set of connections to one database.

    The database counts as away until a `probe` succeeds, and again after a failed call until the next successful probe.
    So only probes wait for a database that is away.

    :param url: `postgresql://`; a text does not change.
    :param max_connections: how many statements may run at once; more wait for their turn.
    :param deadline_seconds: how long a statement may take, including the connecting.
    """

    def __init__(self, url: StoreUrl | str, *, max_connections: int, deadline_seconds: float) -> None:
        self._url = database_url(url) if isinstance(url, str) else url
        self._connector = Connector(self._url)
        self.address = self._url.address
        self._max_connections = max_connections
        self.deadline_seconds = deadline_seconds
        self._pool: asyncpg.Pool | None = None
        self._generation = 0  # rises when all connections are closed after a failure
        self._opening = anyio.Lock()
        self._slots = anyio.Semaphore(max_connections, max_value=max_connections, fast_acquire=True)
        self._probe_slots = anyio.Semaphore(CONNECTIONS_FOR_PROBE, fast_acquire=True)
        self.reachable = False
        self.identity: str | None = None
        self._upgrade_after = 0.0
        self._logged: str | None = None
        self._causes_logged = LoggedCauses()
        self._shortage, self._short_until = "", 0.0
        self._log_shortage_after = 0.0
        self.problem = "not connected yet"

    def ensure_reachable(self) -> None:
        """Fail at once while the database is known to be away.

        :raises StoreUnavailable: the database is away.
        """
        if not self.reachable:
            raise StoreUnavailable(_STORE, self.problem, address=self.address)

    async def run(self, work: Work[T], *, deadline_seconds: float | None = None) -> T:
        """Run work on a connection.

        With the usual deadline, cancellation waits until the work has ended. With another deadline, cancellation ends
        the work at once, and its writes may or may not have been carried out.

        :param work: gets the connection; its transaction is rolled back unless it returns.
        :param deadline_seconds: replaces the usual deadline.
        :raises StoreUnavailable: no answer in time; writes may or may not have been carried out.
        :raises StoreRefused: the database will never accept a value.
        """
        self.ensure_reachable()
        if deadline_seconds is None:
            return await self._run(work, self.deadline_seconds, shield=True)
        return await self._run(work, deadline_seconds)

    async def probe(self, deadline_seconds: float) -> None:
        """Check that the database answers, and upgrade the schema if it is outdated. A change is logged once.

        :raises StoreUnavailable: no answer in time, or the database can't be used now.
        """
        if not await self._is_schema_current(deadline_seconds):
            if anyio.current_time() < self._upgrade_after:
                raise StoreUnavailable(_STORE, self.problem, address=self.address)
            try:
                await schema.upgrade(self._url)
            except SchemaLocked as locked:
                # An upgrade that waits for a table blocks all sessions that use it, so the retry waits.
                self._upgrade_after = anyio.current_time() + (0.0 if locked.upgrading else _UPGRADE_PAUSE_SECONDS)
                raise self._unusable(str(locked), "schema locked") from locked
            except Exception as error:
                self._upgrade_after = anyio.current_time() + (0.0 if _went_away(error) else _UPGRADE_PAUSE_SECONDS)
                # An error of Alembic or asyncpg. Whatever the error is, the database can't be used now.
                unexpected = f"the schema can't be upgraded: {self._cause_of(error)}"
                raise self._unusable(unexpected, unexpected) from error
            await self._is_schema_current(deadline_seconds)
        problem: str | None = await self._run(schema.write_problem, deadline_seconds, slots=self._probe_slots)
        if problem:
            raise self._unusable(problem, problem)
        self._succeed()

    async def probe_unchanged(self, deadline_seconds: float) -> None:
        """Check that the database answers, for callers that only read; the schema is not upgraded.

        :raises StoreUnavailable: no answer in time.
        :raises SchemaOutdated: the schema is older than this release.
        """
        if not await self._is_schema_current(deadline_seconds):
            raise SchemaOutdated
        self._succeed()

    async def ensure_usable(self, deadline_seconds: float) -> None:
        """Refuse a database that can't hold the archive. A database that is away passes: it may be usable later.

        :raises DatabaseUnusable: the database answered, and can't hold the archive.
        """
        try:
            await self.run_unprobed(_nothing, deadline_seconds)
        except StoreUnavailable as error:
            log.debug("archive_unavailable_at_start", problem=error.cause)

    async def run_unprobed(self, work: Work[T], deadline_seconds: float) -> T:
        """Run work on a connection without a probe before; nothing is upgraded.

        :param work: gets the connection.
        :raises StoreUnavailable: no answer in time.
        :raises DatabaseUnusable: the database answers, and can't hold the archive.
        """
        return await self._with_deadline(work, deadline_seconds, slots=self._probe_slots)

    async def _is_schema_current(self, deadline_seconds: float) -> bool:
        """True if the schema is current. Also reads the identity of the tables."""
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
            # Another database, good or bad, may answer at this address later, so the work can be retried.
            raise self._unusable(str(error), str(error)) from error

    async def _with_deadline(
        self, work: Work[T], deadline_seconds: float, *, shield: bool = False, slots: anyio.Semaphore | None = None
    ) -> T:
        generation, had_slot = self._generation, False
        try:
            with Deadline(deadline_seconds, shield=shield) as deadline:
                async with slots or self._slots:
                    if slots is None:
                        self.ensure_reachable()  # this may have changed during the wait
                    generation, had_slot = self._generation, True
                    return await self._with_connection(work)
        except NO_ANSWER as error:
            raise self._classified(error, generation) from error
        assert deadline.expired  # noqa: S101 (nothing else ends the block without a result)
        if not had_slot:
            # The connections are busy with other calls, which may be about to find the database away.
            raise StoreUnavailable(_STORE, "too many calls at once", address=self.address)
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
                    # No reset is needed, because a connection with a failure is closed.
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
                # An answer may still arrive on this connection, and a request to cancel could take as long.
                connection.terminate()
            with suppress(asyncpg.InterfaceError):  # another call has failed first, and closed all connections
                await pool.release(connection)

    def _classified(self, error: Exception, generation: int) -> Exception:
        cause = self._cause_of(error)
        state = getattr(error, "sqlstate", None) or ""
        if state.startswith(_REFUSED) and state != _UNTRANSLATABLE:
            return StoreRefused(_STORE, cause)
        if not state.startswith(_ONLY_THIS_TIME):
            self._fail(cause, generation)
        elif state.startswith(_SHORT):
            self._note_shortage(cause)
        return StoreUnavailable(_STORE, cause, late=state == _CANCELLED, address=self.address)

    def _cause_of(self, error: BaseException) -> str:
        return cause_of(error, self._url)

    def _note_shortage(self, problem: str) -> None:
        now = anyio.current_time()
        self._shortage, self._short_until = problem, now + _SHORT_SECONDS
        if not self.reachable:
            self.problem = problem
        if now >= self._log_shortage_after:
            self._log_shortage_after = now + _LOG_AGAIN_SECONDS
            log.warning("archive_out_of_resources", address=self.address, problem=problem)

    @property
    def shortage(self) -> str:
        """The resource that the database lacks although it answers; empty without a shortage."""
        return self._shortage if anyio.current_time() < self._short_until else ""

    def _unusable(self, problem: str, kind: str) -> StoreUnavailable:
        """Count the database as away, although it answers, and log that once.

        :param problem: the problem with its details.
        :param kind: the same text for all problems of a kind, which are logged once together.
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
            self.reachable = True
            log.info("archive_reachable")

    def _fail(self, problem: str, generation: int) -> None:
        if generation != self._generation:
            return  # another call has failed on the same connections first, and there may be new healthy ones
        self._generation += 1
        self.problem = problem
        # The cause of an outage can change, such as from a lost connection to a refused one.
        was_reachable, self.reachable = self.reachable, False
        if self._causes_logged.note(problem) and (was_reachable or self._logged is None):
            log.warning("archive_unreachable", address=self.address, problem=problem)
        # Calls on the other connections would each have to wait for their own failure.
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()


def _went_away(error: BaseException) -> bool:
    """True if an error of an upgrade means that the database could not be reached. SQLAlchemy wraps such errors."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, _WENT_AWAY):
        cause = cause.__cause__ or cause.__context__
    return cause is not None and not isinstance(cause, asyncpg.QueryCanceledError)


async def _nothing(_connection: asyncpg.Connection) -> None:
    pass


def cause_of(error: BaseException, url: StoreUrl) -> str:
    """The cause of an error in one line, without statement, parameters or login.

    :param url: the URL that was used.
    """
    if isinstance(error, TargetServerAttributeNotMatched):
        return ACCEPTS_NO_WRITES
    # The further lines of a text, such as hints, can repeat parts of the statement.
    cause = (os_reason(error) if isinstance(error, OSError) else "") or describe(error)
    cause = url.without_user(cause.splitlines()[0].rstrip(": "))
    if cause.endswith(_NO_TLS):
        return "it does not speak TLS; let it do so, or change sslmode in BCS_DATABASE_URL"
    remedy = next((remedy for kind, remedy in _REMEDIES.items() if isinstance(error, kind)), "")
    return cause + (f"; {remedy.format(login=url.login_settings)}" if remedy else "")
