"""Checks which server each connection leads to. Another server, or a restarted one, may have lost acknowledged data.

A connection reads the server's identity when it is made, and again once a second while it is used, because a demoted
master still answers. The check goes out before other commands in the same write, so every answer comes from a server
that was checked at most a second before. When a connection finds another server, or Redis refuses a write as a replica
does, all other connections are replaced before they are used again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import structlog
from redis.asyncio import Connection
from redis.exceptions import RedisError

from bcs.storage.redis.commands import Command
from bcs.storage.redis.connecting import handshake
from bcs.storage.redis.errors import UnusableServer, reason
from bcs.storage.redis.exchange import exchange
from bcs.storage.redis.server import NO_CLUSTER, cluster_problem, fields_of, identity_of, is_replica, server_problem

log = structlog.stdlib.get_logger("bcs.redis")

CHECK_SECONDS = 1.0

_REPLICATION: Command = ("INFO", "replication")
_ROLE: Command = ("ROLE",)
# How many former servers are remembered.
_MOST_FORMER = 1000


class RedisIdentity:
    """The identity of the server that the connections of a gateway lead to.

    :param needed: whether a component needs the identity, so that a missing one is a `problem`.
    :param in_cluster: whether the server must be a node of a cluster; else it must not, unless it has all slots.
    :param new_token: makes a short text that is unique.
    """

    def __init__(
        self,
        *,
        needed: bool = False,
        in_cluster: bool = False,
        new_token: Callable[[], str] = lambda: uuid.uuid4().hex[:8],
    ) -> None:
        self.problem = ""
        self.generation = 0
        self._needed = needed
        self._in_cluster = in_cluster
        self._new_token = new_token
        self._peers: WeakKeyDictionary[Connection, Peer] = WeakKeyDictionary()
        self._reported = ""
        self._identity = ""
        self._former: dict[str, None] = {}

    @property
    def last_known(self) -> str:
        """The identity at the last check of any connection; empty before that."""
        return self._identity

    async def on_connect(self, connection: Connection) -> None:
        """Do redis-py's handshake on a new connection, then read the identity of the server.

        :raises RedisConnectionError: Redis refused a step, or BCS can't use the server.
        """
        await handshake(connection)
        info, refusal = await _read_info(connection)
        check = _REPLICATION if "role" in info else None
        if check is None:
            # ROLE may be allowed where INFO is not.
            [reply] = await exchange(connection, [_ROLE])
            if isinstance(reply, list) and reply and isinstance(reply[0], bytes):
                info["role"], check = reply[0].decode(errors="replace"), _ROLE
        if problem := server_problem(info) or await self._cluster_problem(connection, info):
            replica = is_replica(info.get("role"))
            if replica:
                # The address leads to a replica now, so the other connections do not lead to the master any more.
                self.generation += 1
            raise UnusableServer(problem, for_good=not replica)
        peer = self._peers[connection] = Peer(self, info.get("run_id", ""), check)
        self.note_identity(peer, identity_of(info))
        self._note_problem(peer, refusal or "INFO has no run_id or no master_replid")

    def peer(self, connection: Connection) -> Peer:
        """The server at the other end of an open connection."""
        return self._peers[connection]

    def note_identity(self, peer: Peer, reported: str) -> None:
        """Take over the identity that a server reports; empty where it reports none."""
        if reported and reported != self._reported:
            if self._reported:
                log.warning("redis_changed", before=self._reported, now=reported)
                self.generation += 1
                self._former[self._reported] = None
                if len(self._former) > _MOST_FORMER:
                    del self._former[next(iter(self._former))]
            # A former server may lack data that another server acknowledged meanwhile, so it gets a new identity.
            self._identity = f"{reported}-{self._new_token()}" if reported in self._former else reported
            self._reported = reported
        peer.reported, peer.identity = reported, self._identity if reported else ""
        peer.generation = self.generation

    def replace_connections(self, peer: Peer) -> None:
        """Have all connections replaced before their next use, because this server is not the master any more."""
        if not peer.outdated:
            self.generation += 1

    def replace_all_connections(self) -> None:
        """Have all connections replaced before their next use, because the master is elsewhere now."""
        self.generation += 1

    async def _cluster_problem(self, connection: Connection, info: dict[str, str]) -> str:
        enabled = info.get("cluster_enabled")
        if self._in_cluster:
            return NO_CLUSTER if enabled == "0" else ""
        if enabled != "1":
            return ""
        [reply] = await exchange(connection, [("CLUSTER", "INFO")])
        return cluster_problem(fields_of(reply) if isinstance(reply, bytes) else {})

    def _note_problem(self, peer: Peer, refusal: str) -> None:
        if peer.identity or not self._needed:
            self.problem = ""
            return
        if not self.problem:
            log.warning("redis_identity_unknown", cause=refusal)
        self.problem = f"its identity is unknown, so every batch is read from PostgreSQL: {refusal}"


class Peer:
    """The server at the other end of one connection, at its last check.

    :param shared: the identity that all connections share.
    :param run_id: the id of the server's run; empty where it does not report one.
    :param check: the command that repeats the check; None where Redis allows neither INFO nor ROLE.
    """

    __slots__ = ("_asked_at", "_check", "_run_id", "_shared", "generation", "identity", "reported")

    def __init__(self, shared: RedisIdentity, run_id: str, check: Command | None) -> None:
        self.identity = self.reported = ""
        self.generation = shared.generation
        self._shared = shared
        self._run_id = run_id
        self._check = check
        self._asked_at = anyio.current_time()

    @property
    def outdated(self) -> bool:
        """True if another connection has found another server since this connection was checked."""
        return self.generation != self._shared.generation

    def due(self, now: float) -> Command | None:
        """The check to send before other commands, if a check is due; `check_reply` takes the reply."""
        if self._check is None or now < self._asked_at + CHECK_SECONDS:
            return None
        self._asked_at = now
        return self._check

    def check_reply(self, reply: Any) -> None:
        """Take over the reply to a check.

        :raises UnusableServer: the server is a replica now, or refuses the check; the connection must not be used.
        """
        if isinstance(reply, RedisError):
            raise UnusableServer(f"it does not report its role any more: {reason(reply)}")
        if self._check == _ROLE:
            info = {"role": reply[0].decode(errors="replace")}
        else:
            info = {**fields_of(reply), "run_id": self._run_id}
        if is_replica(info.get("role")):
            self._shared.replace_connections(self)
            raise UnusableServer("it is no longer the master, but a replica")
        if (reported := identity_of(info)) != self.reported:
            # The same server with another replication id: it got a replica, or was promoted again.
            self._shared.note_identity(self, reported)


async def _read_info(connection: Connection) -> tuple[dict[str, str], str]:
    """The fields of INFO, and the reason where the server refuses a part of them."""
    info: dict[str, str] = {}
    refusal = ""
    for reply in await exchange(connection, [("INFO", "server"), _REPLICATION, ("INFO", "cluster")]):
        if isinstance(reply, bytes):
            info |= fields_of(reply)
        elif isinstance(reply, RedisError):
            refusal = refusal or reason(reply)
    return info, refusal
