"""Looks at what waits in Redis for Kafka and PostgreSQL, for the checks of `bcs doctor`. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError, ResponseError

from bcs.config.settings import Settings
from bcs.errors import StoreUnavailable
from bcs.ops.doctor import archive_findings
from bcs.ops.doctor import redis_findings as findings_of
from bcs.ops.doctor.findings import Finding, unknown
from bcs.storage.redis.archive_queue import FACTS, FORMER_FACTS, refused_key, waiting_key
from bcs.storage.redis.commands import Command
from bcs.storage.redis.errors import reason
from bcs.storage.redis.nodes import Nodes
from bcs.storage.redis.outbox import parked_key
from bcs.storage.redis.stream_layouts import StreamLayouts, layouts_key, stream_key


@dataclass(slots=True)
class _Found:
    """What the streams of a queue have.

    :param oldest_at_ms: when the oldest entry was added, in milliseconds since 1970 UTC; None without an entry.
    :param parked: how many entries are parked, by the keys of their streams; only those that have entries.
    :param problem: why a stream could not be looked at; empty if all were.
    """

    length: int = 0
    oldest_at_ms: int | None = None
    parked: dict[str, int] = field(default_factory=dict)
    problem: str = ""


async def check_queues(nodes: Nodes, settings: Settings, clock: Any) -> list[Finding]:
    """The checks of the outbox and of the queue of facts before the archive.

    :param clock: the reply to TIME, or an error.
    """
    prefix = settings.redis_key_prefix
    layouts = StreamLayouts(
        nodes, key_prefix=prefix, layout=settings.outbox_streams, now_ms=lambda: time.time_ns() // 1_000_000
    )
    look = _Look(nodes)
    registered = await look.replies(layouts_key(prefix, 0), ("HGETALL", layouts_key(prefix, 0)))
    if isinstance(registered, list):
        layouts.note(registered[0])
    numbers = range(layouts.streams)
    outbox, facts = _Found(), _Found()
    for number in numbers:
        await look.at(outbox, stream_key(prefix, number), parked_key(prefix, number))
        await look.at(facts, waiting_key(prefix, FACTS, number), refused_key(prefix, FACTS, number))
    await look.at(facts, waiting_key(prefix, FORMER_FACTS, 0), refused_key(prefix, FORMER_FACTS, 0))
    now_ms = None if isinstance(clock, RedisError) else int(clock[0]) * 1000 + int(clock[1]) // 1000

    def age(found: _Found) -> float | None:
        return None if now_ms is None or found.oldest_at_ms is None else (now_ms - found.oldest_at_ms) / 1000

    return [*_outbox(outbox, age, settings), *_archive(facts, age, settings)]


class _Look:
    """Asks for the streams, and does not ask a server again that did not answer."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._away: dict[str, str] = {}

    async def at(self, found: _Found, stream: str, parked: str) -> None:
        """Add what a stream has to what was found."""
        replies = await self.replies(
            stream, ("XLEN", stream), ("XRANGE", stream, "-", "+", "COUNT", 1), ("XLEN", parked)
        )
        if isinstance(replies, str):
            found.problem = found.problem or replies
            return
        length, first, parked_length = replies
        found.length += length
        if first:
            # The id of an entry begins with the time of Redis.
            added_ms = int(first[0][0].partition(b"-")[0])
            found.oldest_at_ms = added_ms if found.oldest_at_ms is None else min(added_ms, found.oldest_at_ms)
        if parked_length:
            found.parked[parked] = parked_length

    async def replies(self, key: str, *commands: Command) -> list[Any] | str:
        """The replies of the server that has a key; a text with the cause where there are none."""
        node = self._nodes.at(key)
        if node.address in self._away:
            return self._away[node.address]
        try:
            return await node.call(*commands)
        except ResponseError as error:
            return reason(error)
        except StoreUnavailable as error:
            if not error.answered:
                self._away[node.address] = error.cause
            return error.cause


def _outbox(found: _Found, age: Callable[[_Found], float | None], settings: Settings) -> list[Finding]:
    if found.problem:
        return [unknown("outbox", found.problem)]
    return [
        findings_of.outbox(found.length, age(found), settings.outbox_max_messages),
        *(findings_of.parked(length, key) for key, length in found.parked.items()),
        *([] if found.parked else [findings_of.parked(0, "")]),
    ]


def _archive(found: _Found, age: Callable[[_Found], float | None], settings: Settings) -> list[Finding]:
    if found.problem:
        return [unknown("archive backlog", found.problem)]
    if settings.database_url is None:
        return [archive_findings.left_behind(found.length)] if found.length else []
    return [
        archive_findings.backlog(found.length, age(found), settings.archive_max_entries),
        *(archive_findings.parked(length, key) for key, length in found.parked.items()),
        *([] if found.parked else [archive_findings.parked(0, "")]),
    ]
