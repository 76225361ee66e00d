"""Asks one server of Redis what `bcs doctor` reports of it. Managed servers refuse some of the commands."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from bcs.errors import StoreUnavailable
from bcs.ops.doctor import redis_findings as findings_of
from bcs.ops.doctor.findings import Finding, failed, unknown
from bcs.storage.redis.commands import Command
from bcs.storage.redis.dry_run import DryRun
from bcs.storage.redis.errors import UnusableServer, reason
from bcs.storage.redis.gateway import RedisSession
from bcs.storage.redis.server import fields_of

OF_A_REPLICA: list[Command] = [("INFO", "server"), ("INFO", "memory"), ("INFO", "replication")]
"""What a replica is asked; see `replica_findings`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterReplies:
    """The replies of a master.

    :param identity: the identity of the server; empty where it is unknown.
    :param tried: a reply or an error for each command that BCS sends.
    :param clock: the reply to TIME, or an error.
    :param asked_at: this machine's time when TIME was sent and answered, in seconds since 1970.
    """

    identity: str
    tried: list[Any]
    clock: Any
    asked_at: float
    server: Any
    memory: Any
    persistence: Any
    save: Any
    replication: Any

    @property
    def replicas(self) -> int | None:
        """How many replicas are connected; None where the server does not tell."""
        text = _section(self.replication).get("connected_slaves", "")
        return int(text) if text.isdecimal() else None

    def findings(self, *, needs_identity: bool) -> list[Finding]:
        """What is said of the server alone.

        :param needs_identity: whether there is an archive.
        """
        return [
            findings_of.version(_section(self.server)),
            findings_of.commands([reason(reply) for reply in self.tried if isinstance(reply, RedisError)]),
            *([findings_of.identity(self.identity, _refusal(self.server))] if needs_identity else []),
            findings_of.eviction(_section(self.memory)),
            findings_of.memory_left(_section(self.memory)),
            findings_of.persistence(_section(self.persistence), _setting(self.save)),
        ]

    def clock_finding(self) -> Finding:
        """Checks that this machine and Redis agree on the time."""
        if isinstance(self.clock, RedisError):
            return unknown("clock", reason(self.clock))
        redis_seconds = int(self.clock[0]) + int(self.clock[1]) / 1_000_000
        return findings_of.clock(redis_seconds - self.asked_at)


async def ask_master(session: RedisSession, dry_run: DryRun) -> MasterReplies:
    """Ask a master, without a change.

    :param dry_run: commands with keys that the server has.
    :raises RedisError: no answer.
    """
    began_at = time.time()
    [clock] = await session.exchange([("TIME",)])
    ended_at = time.time()
    # WATCH comes before the other commands. These are discarded, which ends the WATCH, too.
    tried = await session.exchange([("WATCH", dry_run.key)])
    tried += await session.dry_run([*dry_run.reads, *dry_run.writes])
    server, memory, replication, persistence, save = await session.exchange(
        [*OF_A_REPLICA, ("INFO", "persistence"), ("CONFIG", "GET", "save")]
    )
    return MasterReplies(
        identity=session.identity,
        tried=tried,
        clock=clock,
        asked_at=(began_at + ended_at) / 2,
        server=server,
        memory=memory,
        persistence=persistence,
        save=save,
        replication=replication,
    )


def replica_findings(replies: list[Any]) -> list[Finding]:
    """What is said of a replica, which may have to take over.

    :param replies: those to `OF_A_REPLICA`.
    """
    server, memory, replication = map(_section, replies)
    return [
        findings_of.version(server),
        findings_of.replication(replication),
        findings_of.eviction(memory),
        findings_of.memory_left(memory),
    ]


def unreachable(error: StoreUnavailable, fix: str = "check Redis, and BCS_REDIS_URL") -> Finding:
    """Says why there is nothing to say of a server."""
    cause = error.__cause__
    # A server that answered is not out of reach.
    if isinstance(cause, UnusableServer) and cause.answered:
        state = "can't be used"
    else:
        state = "it answers, and refuses" if error.answered else "out of reach"
    return failed("redis", f"{state}: {error.cause.rstrip('. ')}", fix)


def _section(reply: Any) -> dict[str, str]:
    return {} if isinstance(reply, RedisError) else fields_of(reply)


def _refusal(reply: Any) -> str:
    return reason(reply) if isinstance(reply, RedisError) else "INFO has no run_id or no master_replid"


def _setting(reply: Any) -> str | None:
    """The value of a setting; None if Redis refuses the command, as managed servers do, or has no such setting."""
    if isinstance(reply, RedisError) or len(reply) != 2:
        return None
    value: str = reply[1].decode(errors="replace")
    return value
