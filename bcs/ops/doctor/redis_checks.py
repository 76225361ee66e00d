"""Queries Redis for the checks of `bcs doctor`. Managed servers refuse some of the commands."""

from __future__ import annotations

import time
from typing import Any

from redis.exceptions import RedisError

from bcs.config.settings import Settings
from bcs.errors import StoreUnavailable
from bcs.ops.doctor import redis_findings as findings_of
from bcs.ops.doctor.findings import Finding, failed, unknown, warning
from bcs.ops.doctor.queue_checks import check_queues
from bcs.ops.stores import connected
from bcs.storage.redis.dry_run import DryRun
from bcs.storage.redis.errors import UnusableServer, reason
from bcs.storage.redis.server import fields_of


async def check_redis(settings: Settings) -> list[Finding]:
    """All checks of Redis, with the deadline in the settings."""
    if settings.use_mock_repository:
        found = "not checked: BCS_USE_MOCK_REPOSITORY keeps the state in the service's memory"
        return [warning("redis", found, "unset it where the state has to outlive the process")]
    try:
        dry_run = DryRun(settings.redis_key_prefix)
        async with connected(settings) as nodes:
            async with nodes.at(dry_run.key).session() as session:
                identity = session.identity
                asked_at = time.time()
                [clock] = await session.exchange([("TIME",)])
                answered_at = time.time()
                # WATCH comes before the other commands. These are discarded, which ends the WATCH, too.
                tried = await session.exchange([("WATCH", dry_run.key)])
                tried += await session.dry_run([*dry_run.reads, *dry_run.writes])
                server, memory, persistence, save = await session.exchange(
                    [("INFO", "server"), ("INFO", "memory"), ("INFO", "persistence"), ("CONFIG", "GET", "save")]
                )
            queues = await check_queues(nodes, settings, clock)
    except StoreUnavailable as error:
        # A server that answered is not out of reach.
        if isinstance(error.__cause__, UnusableServer):
            state = "can't be used"
        else:
            state = "it answers, and refuses" if error.answered else "out of reach"
        return [failed("redis", f"{state}: {error.cause.rstrip('. ')}", "check Redis, and BCS_REDIS_URL")]
    return [
        findings_of.version(_section(server)),
        findings_of.commands([reason(reply) for reply in tried if isinstance(reply, RedisError)]),
        *([] if settings.database_url is None else [findings_of.identity(identity, _refusal(server))]),
        findings_of.eviction(_section(memory)),
        findings_of.memory_left(_section(memory)),
        findings_of.persistence(_section(persistence), _setting(save)),
        *queues,
        _clock(clock, (asked_at + answered_at) / 2),
    ]


def _clock(reply: Any, now: float) -> Finding:
    if isinstance(reply, RedisError):
        return unknown("clock", reason(reply))
    return findings_of.clock(_seconds(reply) - now)


def _seconds(reply: Any) -> float:
    return int(reply[0]) + int(reply[1]) / 1_000_000


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
