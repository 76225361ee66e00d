"""The queues in Redis as tests use them, and their keys."""

from __future__ import annotations

from bcs.storage.redis.archive_queue import EXPLANATIONS, FACTS, ArchiveQueue
from bcs.storage.redis.nodes import Nodes
from bcs.storage.redis.outbox import RedisOutbox
from bcs.storage.redis.stream_layouts import StreamLayouts, stream_key

NOW_MS = 1_800_000_000_000
USUAL_STREAMS = 16
"""As many streams as the settings have by default."""


def stream_layouts(nodes: Nodes, key_prefix: str, streams: int, *, now_ms: int = NOW_MS) -> StreamLayouts:
    """The layouts as a process with so many streams knows them."""
    return StreamLayouts(nodes, key_prefix=key_prefix, layout=streams, now_ms=lambda: now_ms)


def redis_outbox(
    nodes: Nodes,
    key_prefix: str,
    *,
    consumer: str = "only",
    limit: int = 20,
    streams: int = USUAL_STREAMS,
    explained: bool = False,
    announce_once_seconds: float = 0.0,
) -> RedisOutbox:
    """The outbox of a process.

    :param explained: with a queue for explanations.
    """
    layouts = stream_layouts(nodes, key_prefix, streams)
    explanations = ArchiveQueue(layouts, name=EXPLANATIONS, consumer=consumer, limit=limit) if explained else None
    return RedisOutbox(
        layouts,
        consumer=consumer,
        limit=limit,
        explanations=explanations,
        announce_once_seconds=announce_once_seconds,
    )


def archive_queue(
    nodes: Nodes,
    key_prefix: str,
    *,
    name: str = FACTS,
    consumer: str = "only",
    limit: int = 20,
    streams: int = USUAL_STREAMS,
) -> ArchiveQueue:
    """A queue before the archive of a process."""
    layouts = stream_layouts(nodes, key_prefix, streams)
    return ArchiveQueue(layouts, name=name, consumer=consumer, limit=limit)


def queue_keys(key_prefix: str, behind: str = "", *, streams: int = USUAL_STREAMS) -> list[str]:
    """The keys of a queue's streams, in the order of their numbers.

    :param behind: what follows the hash tag; by default the outbox itself.
    """
    return [stream_key(key_prefix, number) + behind for number in range(streams)]
