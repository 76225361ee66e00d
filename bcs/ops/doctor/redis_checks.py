"""Queries Redis for the checks of `bcs doctor`. Managed servers refuse some of the commands."""

from __future__ import annotations

import time
from typing import Any

from redis.exceptions import RedisError

from bcs.config.settings import Settings
from bcs.errors import StoreUnavailable
from bcs.ops.doctor import archive_findings
from bcs.ops.doctor import redis_findings as findings_of
from bcs.ops.doctor.findings import Finding, failed, unknown, warning
from bcs.ops.stores import connected
from bcs.storage.redis.archive_queue import FACTS, FORMER_FACTS, refused_key, waiting_key
from bcs.storage.redis.commands import Command
from bcs.storage.redis.dry_run import DryRun
from bcs.storage.redis.errors import UnusableServer, reason
from bcs.storage.redis.outbox import parked_key, stream_key
from bcs.storage.redis.server import fields_of

_REPLIES_PER_QUEUE = 3


async def check_redis(settings: Settings) -> list[Finding]:
    """All checks of Redis, with the deadline in the settings."""
    if settings.use_mock_repository:
        found = "not checked: BCS_USE_MOCK_REPOSITORY keeps the state in the service's memory"
        return [warning("redis", found, "unset it where the state has to outlive the process")]
    try:
        dry_run = DryRun(settings.redis_key_prefix)
        async with connected(settings) as nodes, nodes.at(dry_run.key).session() as session:
            identity = session.identity
            asked_at = time.time()
            [clock] = await session.exchange([("TIME",)])
            answered_at = time.time()
            prefix = settings.redis_key_prefix
            # WATCH comes before the other commands. These are discarded, which ends the WATCH, too.
            tried = await session.exchange([("WATCH", dry_run.key)])
            tried += await session.dry_run([*dry_run.reads, *dry_run.writes])
            server, memory, persistence, save, *queues = await session.exchange(
                [
                    ("INFO", "server"),
                    ("INFO", "memory"),
                    ("INFO", "persistence"),
                    ("CONFIG", "GET", "save"),
                    *_queue_commands(stream_key(prefix), parked_key(prefix)),
                    *_queue_commands(waiting_key(prefix, FACTS), refused_key(prefix, FACTS)),
                    *_queue_commands(waiting_key(prefix, FORMER_FACTS), refused_key(prefix, FORMER_FACTS)),
                ]
            )
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
        *_outbox(queues[:_REPLIES_PER_QUEUE], clock, settings),
        *_archive(queues[_REPLIES_PER_QUEUE:], clock, settings),
        _clock(clock, (asked_at + answered_at) / 2),
    ]


def _queue_commands(stream: str, parked: str) -> list[Command]:
    return [("XLEN", stream), ("XRANGE", stream, "-", "+", "COUNT", 1), ("XLEN", parked)]


def _outbox(replies: list[Any], clock: Any, settings: Settings) -> list[Finding]:
    for reply in replies:
        if isinstance(reply, RedisError):
            return [unknown("outbox", reason(reply))]
    length, first, parked = replies
    return [
        findings_of.outbox(length, _age(first, clock), settings.outbox_max_messages),
        findings_of.parked(parked, parked_key(settings.redis_key_prefix)),
    ]


def _archive(replies: list[Any], clock: Any, settings: Settings) -> list[Finding]:
    for reply in replies:
        if isinstance(reply, RedisError):
            return [unknown("archive backlog", reason(reply))]
    length, first, parked, former_length, former_first, former_parked = replies
    if settings.database_url is None:
        return [archive_findings.left_behind(length + former_length)] if length + former_length else []
    prefix = settings.redis_key_prefix
    # Entries in the former queue are older in most cases.
    age = _age(former_first or first, clock)
    return [
        archive_findings.backlog(length + former_length, age, settings.archive_max_entries),
        archive_findings.parked(parked, refused_key(prefix, FACTS)),
        *([archive_findings.parked(former_parked, refused_key(prefix, FORMER_FACTS))] if former_parked else []),
    ]


def _age(entries: Any, clock: Any) -> float | None:
    """The age of the first entry in seconds. The id of an entry begins with the time of Redis in milliseconds."""
    if not entries or isinstance(clock, RedisError):
        return None
    return _seconds(clock) - int(entries[0][0].partition(b"-")[0]) / 1000


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
