"""Every command that BCS sends to Redis, to find out whether Redis would refuse it.

Redis checks rights, memory, disk, replicas and its own role already when a command is queued for a transaction. So
commands that are queued and then discarded show what Redis would refuse, and change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.batch_commands import reads
from bcs.storage.redis.commands import Command


@dataclass(frozen=True, slots=True)
class DryRun:
    """The commands, with keys that have one hash tag.

    :param key_prefix: the prefix of every key.
    :param batch: the batch of the keys. Nothing is ever stored under them.
    """

    key_prefix: str
    batch: str = "dry-run"

    def numbered(self, number: int) -> DryRun:
        """The same with another hash tag."""
        return replace(self, batch=f"dry-run-{number}")

    @property
    def key(self) -> str:
        """One of the keys, like those that WATCH gets."""
        return BatchKeys(self.key_prefix, self.batch).facts

    @property
    def reads(self) -> list[Command]:
        """The commands that an answer needs, except WATCH, which can't be queued."""
        return _reading(BatchKeys(self.key_prefix, self.batch))

    @property
    def writes(self) -> list[Command]:
        """The commands that a fact, an announcement and a dead letter need."""
        keys = BatchKeys(self.key_prefix, self.batch)
        return _writing(keys, f"{keys.stem}:stream")


def _reading(keys: BatchKeys) -> list[Command]:
    return [
        ("HMGET", keys.facts, "field"),
        ("HGET", keys.facts, "field"),
        ("GET", keys.summary("law")),
        ("EXISTS", keys.facts),
        *reads(keys),
        ("PTTL", keys.facts),
        ("TIME",),
    ]


def _writing(keys: BatchKeys, stream: str) -> list[Command]:
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
        ("ZADD", f"{stream}:changed", 0, "batch"),
        ("ZRANGE", f"{stream}:changed", 0, 0),
        ("ZCARD", f"{stream}:changed"),
        ("ZREM", f"{stream}:changed", "batch"),
        ("ZREMRANGEBYSCORE", f"{stream}:changed", 0, 0),
        ("ZREMRANGEBYRANK", f"{stream}:changed", 0, 0),
    ]
