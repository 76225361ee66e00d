"""Every command that BCS sends to Redis, to find out whether Redis would refuse it.

Redis checks rights, memory, disk, replicas and its own role already when a command is queued for a transaction. So
commands that are queued and then discarded show what Redis would refuse, and change nothing.
"""

from __future__ import annotations

from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.batch_commands import reads
from bcs.storage.redis.commands import Command
from bcs.storage.redis.outbox import parked_key
from bcs.storage.redis.stream_layouts import stream_key

# Nothing is ever stored under the keys of this batch.
_BATCH = "dry-run"


def reading(key_prefix: str) -> list[Command]:
    """The commands that an answer needs, except WATCH, which can't be queued."""
    keys = BatchKeys(key_prefix, _BATCH)
    return [
        ("HMGET", keys.facts, "field"),
        ("HGET", keys.facts, "field"),
        ("GET", keys.summary("law")),
        ("EXISTS", *keys.former),
        *reads(keys),
        ("PTTL", keys.facts),
        ("TIME",),
    ]


def watched(key_prefix: str) -> str:
    """A key like those that WATCH gets."""
    return BatchKeys(key_prefix, _BATCH).facts


def writing(key_prefix: str) -> list[Command]:
    """The commands that a fact, an announcement and a dead letter need."""
    keys, stream = BatchKeys(key_prefix, _BATCH), stream_key(key_prefix, 0)
    return [
        ("HSET", keys.facts, "field", "value"),
        ("HDEL", keys.facts, "field"),
        ("PEXPIRE", keys.facts, 1),
        ("UNWATCH",),
        ("SET", keys.summary("law"), ""),
        ("DEL", *keys.former),
        ("EVAL", "return 1", 1, keys.facts),
        ("EVALSHA", "0" * 40, 1, keys.facts),
        ("XADD", stream, "*", "field", "value"),
        ("XADD", parked_key(key_prefix, 0), "*", "field", "value"),
        ("XLEN", stream),
        ("XRANGE", stream, "-", "+", "COUNT", 1),
        ("SISMEMBER", f"{stream}:taken", "identity"),
        ("SADD", f"{stream}:taken", "identity"),
        ("SCARD", f"{stream}:taken"),
        ("UNLINK", f"{stream}:taken:before"),
        ("RENAME", f"{stream}:taken", f"{stream}:taken:before"),
        ("XGROUP", "CREATE", stream, "group", "0", "MKSTREAM"),
        ("XREADGROUP", "GROUP", "group", "consumer", "COUNT", 1, "STREAMS", stream, ">"),
        ("XAUTOCLAIM", stream, "group", "consumer", 0, "0-0", "COUNT", 1),
        ("XACK", stream, "group", "0-1"),
        ("XDEL", stream, "0-1"),
    ]
