"""Which server each connection leads to: another one, or another run of the same, may have less than was acknowledged.

A connection learns that as it is made, and asks again once in a second while it is used: a master that was demoted goes
on answering. The question goes out ahead of other commands in the same write, so no answer comes from a server that was
asked longer ago. Once a connection finds another server than before, or Redis refuses a write as a replica does, all
other connections are replaced before they are used again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import structlog
from redis.asyncio import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from bcs.storage.redis.commands import Command
from bcs.storage.redis.errors import Unfit, reason
from bcs.storage.redis.exchange import exchange
from bcs.storage.redis.server import fields_of, identity_of, is_replica, unfit, unfit_cluster

log = structlog.stdlib.get_logger("bcs.redis")

CHECK_SECONDS = 1.0

_REPLICATION: Command = ("INFO", "replication")
_ROLE: Command = ("ROLE",)
# So many servers are remembered of those that the connections once led to.
_LEFT = 1000


class RedisIdentity:
    """What all connections of a gateway have learned.

    :param needed: whether somebody relies on it, and has to be told where Redis does not tell it.
    :param new_token: makes a short text that nobody has made before.
    """

    def __init__(self, *, needed: bool = False, new_token: Callable[[], str] = lambda: uuid.uuid4().hex[:8]) -> None:
        self.problem = ""
        self.generation = 0
        self._needed = needed
        self._new_token = new_token
        self._peers: WeakKeyDictionary[Connection, Peer] = WeakKeyDictionary()
        self._reported = ""
        self._identity = ""
        self._left: dict[str, None] = {}

    async def on_connect(self, connection: Connection) -> None:
        """What redis-py does with a new connection, and then ask who is at its other end.

        :raises RedisConnectionError: Redis refused something of that, or is none that BCS can use.
        """
        try:
            await connection.on_connect()
        except ResponseError as error:
            raise Unfit(reason(error)) from error
        except (RuntimeError, ValueError) as error:
            # uvloop's way to say that the connection was closed, or what redis-py can't take apart.
            raise RedisConnectionError(str(error)) from error
        info, refusal = await _ask(connection)
        check = _REPLICATION if "role" in info else None
        if check is None:
            # Where INFO is not allowed, this may be.
            [reply] = await exchange(connection, [_ROLE])
            if isinstance(reply, list) and reply and isinstance(reply[0], bytes):
                info["role"], check = reply[0].decode(errors="replace"), _ROLE
        if problem := unfit(info) or await _unfit_cluster(connection, info):
            replica = is_replica(info.get("role"))
            if replica:
                # The address has come to lead to a replica, and where the others lead to is no longer its master.
                self.generation += 1
            raise Unfit(problem, for_good=not replica)
        peer = self._peers[connection] = Peer(self, info.get("run_id", ""), check)
        self.arrive(peer, identity_of(info))
        self._note_problem(peer, refusal or "INFO has no run_id or no master_replid")

    def peer(self, connection: Connection) -> Peer:
        """Who is at the other end of a connection that is open."""
        return self._peers[connection]

    def arrive(self, peer: Peer, reported: str) -> None:
        """A server has told its identity, or has not, where it is empty."""
        if reported and reported != self._reported:
            if self._reported:
                log.warning("redis_changed", before=self._reported, now=reported)
                self.generation += 1
                self._left[self._reported] = None
                if len(self._left) > _LEFT:
                    del self._left[next(iter(self._left))]
            # What such a server has from before may lack what was acknowledged elsewhere meanwhile.
            self._identity = f"{reported}-{self._new_token()}" if reported in self._left else reported
            self._reported = reported
        peer.reported, peer.identity = reported, self._identity if reported else ""
        peer.generation = self.generation

    def renew(self, peer: Peer) -> None:
        """Replace all connections: the one to this server should no longer lead there."""
        if not peer.outdated:
            self.generation += 1

    def _note_problem(self, peer: Peer, refusal: str) -> None:
        if peer.identity or not self._needed:
            self.problem = ""
            return
        if not self.problem:
            log.warning("redis_identity_unknown", cause=refusal)
        self.problem = f"its identity is not known, so PostgreSQL is asked for every batch: {refusal}"


class Peer:
    """The server at the other end of one connection, as it was when it was last asked.

    :param everyone: what all connections have learned.
    :param run_id: of the server; empty where it does not tell.
    :param check: what asks again; None where Redis allows neither INFO nor ROLE.
    """

    __slots__ = ("_asked_at", "_check", "_everyone", "_run_id", "generation", "identity", "reported")

    def __init__(self, everyone: RedisIdentity, run_id: str, check: Command | None) -> None:
        self.identity = self.reported = ""
        self.generation = everyone.generation
        self._everyone = everyone
        self._run_id = run_id
        self._check = check
        self._asked_at = anyio.current_time()

    @property
    def outdated(self) -> bool:
        """True if the address leads elsewhere since the connection was made, as far as is known."""
        return self.generation != self._everyone.generation

    def due(self, now: float) -> Command | None:
        """What is to be sent ahead of other commands, once it is time; `learn` gets the reply."""
        if self._check is None or now < self._asked_at + CHECK_SECONDS:
            return None
        self._asked_at = now
        return self._check

    def learn(self, reply: Any) -> None:
        """Take in what the server says of itself now.

        :raises Unfit: it is a replica by now, or says nothing any more; the connection must not be used.
        """
        if isinstance(reply, RedisError):
            raise Unfit(f"it does not tell its role any more: {reason(reply)}")
        if self._check == _ROLE:
            info = {"role": reply[0].decode(errors="replace")}
        else:
            info = {**fields_of(reply), "run_id": self._run_id}
        if is_replica(info.get("role")):
            self._everyone.renew(self)
            raise Unfit("it is no longer the master, but a replica")
        if (reported := identity_of(info)) != self.reported:
            # The same server, with another history: it got a replica, or was promoted again.
            self._everyone.arrive(self, reported)


async def _ask(connection: Connection) -> tuple[dict[str, str], str]:
    """What a server says of itself, and why it does not tell all of that."""
    info: dict[str, str] = {}
    refusal = ""
    for reply in await exchange(connection, [("INFO", "server"), _REPLICATION, ("INFO", "cluster")]):
        if isinstance(reply, bytes):
            info |= fields_of(reply)
        elif isinstance(reply, RedisError):
            refusal = refusal or reason(reply)
    return info, refusal


async def _unfit_cluster(connection: Connection, info: dict[str, str]) -> str:
    if info.get("cluster_enabled") != "1":
        return ""
    [reply] = await exchange(connection, [("CLUSTER", "INFO")])
    return unfit_cluster(fields_of(reply) if isinstance(reply, bytes) else {})
