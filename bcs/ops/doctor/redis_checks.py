"""Asks Redis for the checks of `bcs doctor`. Managed servers refuse some of the requests."""

from __future__ import annotations

import time
from typing import Any

from redis.exceptions import RedisError

from bcs.config.settings import Settings
from bcs.errors import StoreUnavailable
from bcs.ops.doctor import record_judgement
from bcs.ops.doctor import redis_judgement as judgement
from bcs.ops.doctor.findings import Finding, brief, failed, unknown, warning
from bcs.ops.stores import connected
from bcs.storage.redis.archive_queue import FACTS, refused_key, waiting_key
from bcs.storage.redis.commands import Command
from bcs.storage.redis.dry_run import reading, watched, writing
from bcs.storage.redis.errors import UnusableServer, reason
from bcs.storage.redis.outbox import parked_key, stream_key
from bcs.storage.redis.server import fields_of

_QUESTIONS = 3


async def look_at_redis(settings: Settings) -> list[Finding]:
    """All checks of Redis, with the deadline in the settings."""
    if settings.use_mock_repository:
        found = "not looked at: BCS_USE_MOCK_REPOSITORY keeps the state in the service's memory"
        return [warning("redis", found, "unset it wherever the state has to outlive the process")]
    try:
        async with connected(settings) as gateway, gateway.session() as session:
            identity = session.peer.identity
            asked_at = time.time()
            [clock] = await session.exchange([("TIME",)])
            answered_at = time.time()
            prefix = settings.redis_key_prefix
            # WATCH comes before the other commands. These are discarded, which ends the WATCH, too.
            tried = await session.exchange([("WATCH", watched(prefix))])
            tried += await session.dry_run([*reading(prefix), *writing(prefix)])
            server, memory, persistence, save, *queues = await session.exchange(
                [
                    ("INFO", "server"),
                    ("INFO", "memory"),
                    ("INFO", "persistence"),
                    ("CONFIG", "GET", "save"),
                    *_questions(stream_key(prefix), parked_key(prefix)),
                    *_questions(waiting_key(prefix, FACTS), refused_key(prefix, FACTS)),
                ]
            )
    except StoreUnavailable as error:
        # A server that answered is not out of reach.
        if isinstance(error.__cause__, UnusableServer):
            state = "can't be used"
        else:
            state = "it answers, and refuses" if error.answered else "out of reach"
        return [failed("redis", f"{state}: {error.cause.rstrip('. ')}", "see to Redis, and to BCS_REDIS_URL")]
    return [
        judgement.version(_section(server)),
        judgement.commands([reason(reply) for reply in tried if isinstance(reply, RedisError)]),
        *([] if settings.database_url is None else [judgement.identity(identity, _refusal(server))]),
        judgement.eviction(_section(memory)),
        judgement.memory_left(_section(memory)),
        judgement.persistence(_section(persistence), _setting(save)),
        *_outbox(queues[:_QUESTIONS], clock, settings),
        *_record(queues[_QUESTIONS:], clock, settings),
        _clock(clock, (asked_at + answered_at) / 2),
    ]


def _questions(stream: str, parked: str) -> list[Command]:
    return [("XLEN", stream), ("XRANGE", stream, "-", "+", "COUNT", 1), ("XLEN", parked)]


def _outbox(replies: list[Any], clock: Any, settings: Settings) -> list[Finding]:
    for reply in replies:
        if isinstance(reply, RedisError):
            return [unknown("outbox", brief(reply))]
    length, first, parked = replies
    return [
        judgement.outbox(length, _age(first, clock), settings.outbox_max_messages),
        judgement.parked(parked, parked_key(settings.redis_key_prefix)),
    ]


def _record(replies: list[Any], clock: Any, settings: Settings) -> list[Finding]:
    for reply in replies:
        if isinstance(reply, RedisError):
            return [unknown("record backlog", brief(reply))]
    length, first, parked = replies
    if settings.database_url is None:
        return [record_judgement.left_behind(length)] if length else []
    return [
        record_judgement.backlog(length, _age(first, clock), settings.archive_max_entries),
        record_judgement.parked(parked, refused_key(settings.redis_key_prefix, FACTS)),
    ]


def _age(entries: Any, clock: Any) -> float | None:
    """The age of the first entry in seconds. The id of an entry begins with the time of Redis in milliseconds."""
    if not entries or isinstance(clock, RedisError):
        return None
    return _seconds(clock) - int(entries[0][0].partition(b"-")[0]) / 1000


def _clock(reply: Any, now: float) -> Finding:
    if isinstance(reply, RedisError):
        return unknown("clock", brief(reply))
    return judgement.clock(_seconds(reply) - now)


def _seconds(reply: Any) -> float:
    return int(reply[0]) + int(reply[1]) / 1_000_000


def _section(reply: Any) -> dict[str, str]:
    return {} if isinstance(reply, RedisError) else fields_of(reply)


def _refusal(reply: Any) -> str:
    return reason(reply) if isinstance(reply, RedisError) else "INFO has no run_id or no master_replid"


def _setting(reply: Any) -> str | None:
    """The value of a setting; None if Redis refuses to tell, as managed servers do, or has no such setting."""
    if isinstance(reply, RedisError) or len(reply) != 2:
        return None
    value: str = reply[1].decode(errors="replace")
    return value
