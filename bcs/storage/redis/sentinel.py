"""Finds the master that Sentinels name, for each new connection and for each probe.

All Sentinels are asked at the same time, and the newest answer of a majority counts; see `master_of`. redis-py's
`discover_master` asks one after another and takes the first answer: a Sentinel that hangs would hold up each lookup,
and one that was cut off during a failover would name the former master.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import anyio
import structlog
from redis.asyncio import Connection
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from bcs.config.store_urls import StoreUrl
from bcs.storage.deadlines import Deadline
from bcs.storage.redis.commands import Command
from bcs.storage.redis.connecting import connection_pool, handshake
from bcs.storage.redis.errors import UnusableServer, reason
from bcs.storage.redis.exchange import exchange
from bcs.storage.single_flight import SingleFlight

log = structlog.stdlib.get_logger("bcs.redis")

# A user may have the right to the first of the two questions alone.
_UNKNOWN_EPOCH = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedMaster:
    """The master that a Sentinel names.

    :param epoch: the number of the failover that made it the master; -1 where the Sentinel does not tell.
    :param down: True if the Sentinel does not reach it.
    """

    host: str
    port: int
    epoch: int = _UNKNOWN_EPOCH
    down: bool = False

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"


class Sentinels:
    """The Sentinels that a URL names.

    :param url: `redis+sentinel://` or `rediss+sentinel://`.
    :param timeout_seconds: how long a lookup may take.
    :param moved: called when the Sentinels name another master than before.
    :ivar found: the master that was named last; None before that.
    :ivar problem: why the last probe found no master; empty if it found one.
    """

    def __init__(self, url: StoreUrl, *, timeout_seconds: float, moved: Callable[[], None]) -> None:
        servers = url.servers
        self.service = servers.service
        self.found: NamedMaster | None = None
        self.problem = ""
        self._sentinels = [_Sentinel(url.at_sentinel(*server), *server) for server in servers.listed]
        self._timeout_seconds = timeout_seconds
        self._moved = moved
        self._lookups: SingleFlight[NamedMaster] = SingleFlight()

    async def master(self) -> tuple[str, int]:
        """Ask for the master. Callers that wait at the same time share the answer.

        Cancellation closes the connections to Sentinels that have not answered.

        :raises RedisConnectionError: no Sentinel names a master that it reaches.
        """
        master = await self._lookups.do(self.service, self._look_up)
        return master.host, master.port

    async def probe(self) -> None:
        """Ask, so that a master that is named no more is left, though it may answer as before.

        While no master is named, connections go on, and this is the `problem`.
        """
        try:
            await self.master()
        except RedisConnectionError as error:
            if not self.problem:
                log.warning("redis_sentinels_lost", service=self.service, cause=reason(error))
            self.problem = f"no failover would be noticed: {reason(error)}"
        else:
            if self.problem:
                log.warning("redis_sentinels_back", service=self.service)
            self.problem = ""

    async def each(self) -> dict[str, NamedMaster | Exception]:
        """What each Sentinel says: the master, or why it names none; by the Sentinels' addresses."""
        return await self._ask(lambda _: False)

    async def aclose(self) -> None:
        """Close all connections, without waiting."""
        for sentinel in self._sentinels:
            await sentinel.close()

    async def _look_up(self) -> NamedMaster:
        majority = _majority_of(self._sentinels)
        known_epoch = self.found.epoch if self.found else _UNKNOWN_EPOCH

        def are_enough(named: Sequence[NamedMaster]) -> bool:
            # The others may know a newer master, if these know only one that is older than the one found before.
            return len(named) >= majority and max(one.epoch for one in named) >= known_epoch

        answers = await self._ask(are_enough)
        master = master_of(answers, self.service, self.found)
        if self.found and self.found.address != master.address:
            log.warning("redis_master_changed", service=self.service, before=self.found.address, now=master.address)
            self._moved()
        self.found = master
        return master

    async def _ask(self, are_enough: Callable[[Sequence[NamedMaster]], bool]) -> dict[str, NamedMaster | Exception]:
        answers: dict[str, NamedMaster | Exception] = {}

        async def ask(sentinel: _Sentinel) -> None:
            try:
                answers[sentinel.address] = await sentinel.master_of(self.service)
            except (RedisError, OSError) as error:
                answers[sentinel.address] = error
            if are_enough([answer for answer in answers.values() if isinstance(answer, NamedMaster)]):
                group.cancel_scope.cancel()

        with Deadline(self._timeout_seconds):
            async with anyio.create_task_group() as group:
                for sentinel in self._sentinels:
                    group.start_soon(ask, sentinel)
        return {one.address: answers.get(one.address, TimeoutError()) for one in self._sentinels}


def master_of(
    answers: dict[str, NamedMaster | Exception], service: str, known: NamedMaster | None = None
) -> NamedMaster:
    """The master by the newest answer. Pure.

    :param answers: what each Sentinel says, by its address.
    :param known: the newest answer before. It stands where only a minority answers, and all of it is older: such
        Sentinels were cut off during a failover. A majority may be older, as where the Sentinels were made anew.
    :raises RedisConnectionError: no Sentinel names a master that it reaches.
    """
    named = [answer for answer in answers.values() if isinstance(answer, NamedMaster)]
    if named:
        newest = max(one.epoch for one in named)
        if known and newest < known.epoch and len(named) < _majority_of(answers):
            return known
        reached = [one for one in named if one.epoch == newest and not one.down]
        if reached:
            # Without epochs, a Sentinel that was cut off during a failover looks as new as the others.
            votes = Counter(one.address for one in reached)
            return max(reached, key=lambda one: votes[one.address])
        raise UnusableServer(f"the Sentinels of BCS_REDIS_URL do not reach the master of the service {service!r}")
    errors = [answer for answer in answers.values() if isinstance(answer, Exception)]
    refused = [error for error in errors if isinstance(error, UnusableServer)]
    causes: dict[str, list[str]] = {}
    for address, error in zip(answers, errors, strict=True):
        causes.setdefault(reason(error), []).append(address)
    # The addresses of all Sentinels are named beside this already.
    details = "; ".join(causes if len(causes) == 1 else (f"{', '.join(at)}: {cause}" for cause, at in causes.items()))
    if refused and all(isinstance(error, _UnknownService) for error in refused):
        what = f"knows the service {service!r}"
    else:
        what = f"names the master of the service {service!r}" if refused else "answers"
    raise UnusableServer(
        f"no Sentinel of BCS_REDIS_URL {what} ({details})",
        answered=bool(refused),
        for_good=all(isinstance(error, UnusableServer) and error.for_good for error in errors),
    )


def _majority_of(sentinels: Sized) -> int:
    return len(sentinels) // 2 + 1


class _UnknownService(UnusableServer):
    def __init__(self) -> None:
        super().__init__("it does not know the service")


class _Sentinel:
    """The connection to one Sentinel, which asks one question at a time, and is kept for the next one."""

    def __init__(self, url: StoreUrl, host: str, port: int) -> None:
        self.address = f"{host}:{port}"
        self._url = url
        pool = connection_pool(url, redis_connect_func=handshake)
        self._connection: Connection = pool.make_connection()  # type: ignore[no-untyped-call]

    async def master_of(self, service: str) -> NamedMaster:
        """Ask for the master of a service.

        :raises UnusableServer: the server answered, and names no master.
        :raises RedisError: no answer.
        """
        if self._connection.is_connected:
            try:
                return await self._ask(service)
            except UnusableServer:
                raise
            except (RedisConnectionError, OSError):
                pass  # since the last question, the Sentinel was restarted, or the network lost the connection
        return await self._ask(service)

    async def close(self) -> None:
        """Close the connection, without waiting."""
        await self._connection.disconnect(nowait=True)

    async def _ask(self, service: str) -> NamedMaster:
        # During a failover, the first answer has the new master earlier. The second one has its epoch.
        questions: list[Command] = [("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service), ("SENTINEL", "MASTER", service)]
        answered = False
        try:
            await self._connection.connect()  # type: ignore[no-untyped-call]
            address, state = await exchange(self._connection, questions)
            answered = True
        except AuthenticationError as error:
            raise UnusableServer(_login_problem(error)) from error
        finally:
            if not answered:
                # Without waiting, because this may be cancelled.
                await self.close()
        return named_master(address, state)


def named_master(address: Any, state: Any) -> NamedMaster:
    """The master in the replies of a Sentinel.

    :raises UnusableServer: the replies name no master.
    """
    if isinstance(address, AuthenticationError):
        raise UnusableServer(_login_problem(address)) from address
    if isinstance(address, NoPermissionError):
        raise UnusableServer(f"the user of BCS_REDIS_SENTINEL_USERNAME lacks a right ({address})") from address
    if isinstance(address, RedisError):
        # Redis repeats the arguments of an unknown command.
        text, _, _ = str(address).partition(", with args")
        is_another = text.startswith("unknown command")
        cause = f"it is not a Sentinel ({text})" if is_another else reason(address)
        raise UnusableServer(cause, for_good=is_another) from address
    if address is None:
        raise _UnknownService
    try:
        host, port = address[0].decode(), int(address[1])
        texts = [text.decode(errors="replace") for text in state] if isinstance(state, list) else []
        fields = dict(zip(texts[::2], texts[1::2], strict=True))
        epoch = int(fields.get("config-epoch", _UNKNOWN_EPOCH))
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise UnusableServer(f"it is not a Sentinel (an unusual reply: {error})", for_good=True) from error
    # During a failover the second answer may still be about the former master.
    is_same = (fields.get("ip"), fields.get("port")) == (host, str(port))
    down = is_same and not {"s_down", "o_down"}.isdisjoint(fields.get("flags", "").split(","))
    return NamedMaster(host=host, port=port, epoch=epoch, down=down)


def _login_problem(error: RedisError) -> str:
    return f"it requires a password: put it into BCS_REDIS_SENTINEL_PASSWORD ({error})"
