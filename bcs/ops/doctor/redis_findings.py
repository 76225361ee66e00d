"""Findings from the replies of Redis. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bcs.ops.doctor.findings import Finding, clock_of, failed, ok, unknown, warning
from bcs.storage.redis.server import LEAST_VERSION, product_of

_FULL_SHARE = 0.8
_OLD_SECONDS = 60.0
_MEBIBYTE = 1024 * 1024


def version(server: Mapping[str, str]) -> Finding:
    """Reports the server and its version. BCS has already refused a server that is known to be too old."""
    if "redis_version" not in server:
        found = f"reachable, but INFO does not report its version; BCS needs {LEAST_VERSION} or newer"
        return warning("redis", found, "allow the user of BCS_REDIS_URL the command INFO (+info)")
    return ok("redis", f"reachable, {product_of(server)}")


def identity(known: str, refusal: str) -> Finding:
    """Checks that BCS can detect a Redis that has lost data. This matters only with an archive.

    :param known: the identity; empty if Redis does not report it.
    :param refusal: the reason why Redis does not report it.
    """
    if known:
        return ok("redis identity", f"{known}: the service will notice a restart or a failover")
    found = f"unknown, so the service reads every batch from PostgreSQL, and depends on it: {refusal}"
    return warning("redis identity", found, "allow the user of BCS_REDIS_URL the command INFO (+info)")


def commands(refused: Sequence[str]) -> Finding:
    """Checks that Redis accepts every command that the service sends.

    :param refused: the reason for each command that Redis would refuse.
    """
    if not refused:
        return ok("redis commands", "Redis accepts all commands that the service sends")
    reasons = "; ".join(dict.fromkeys(refused))
    fix = "correct this in Redis: until then events wait in Kafka, and requests are refused"
    return failed("redis commands", f"refused: {reasons}", fix)


def eviction(memory: Mapping[str, str]) -> Finding:
    """Checks that Redis does not evict keys."""
    limit, policy = _number(memory, "maxmemory"), memory.get("maxmemory_policy")
    if limit is None or policy is None:
        return unknown("redis eviction", "INFO does not report maxmemory and its policy")
    if limit and policy != "noeviction":
        fix = "set maxmemory-policy to noeviction: an evicted key is a lost fact"
        return failed("redis eviction", f"maxmemory is set, and the policy is {policy}", fix)
    return ok("redis eviction", f"policy {policy}" if limit else "maxmemory is not set, so nothing is evicted")


def memory_left(memory: Mapping[str, str]) -> Finding:
    """Checks how much of its memory Redis uses."""
    limit, used = _number(memory, "maxmemory"), _number(memory, "used_memory")
    if limit is None or used is None:
        return unknown("redis memory", "INFO does not report maxmemory and the used memory")
    if not limit:
        return ok("redis memory", f"{_mebibytes(used)} used, no limit set")
    found = f"{_mebibytes(used)} of {_mebibytes(limit)} used, {used / limit:.0%}"
    if used >= limit * _FULL_SHARE:
        return warning(
            "redis memory", found, "raise maxmemory, or lower BCS_REDIS_TTL_SECONDS: a full Redis refuses events"
        )
    return ok("redis memory", found)


def persistence(info: Mapping[str, str], save: str | None) -> Finding:
    """Checks that the data of Redis survives a restart.

    :param info: the section `persistence` of INFO.
    :param save: the setting `save`, the intervals of RDB snapshots; None where Redis does not report it.
    """
    check = "redis persistence"
    if "err" in (info.get("aof_last_write_status"), info.get("rdb_last_bgsave_status")):
        return failed(check, "the last write to disk failed", "check Redis's disk: Redis may refuse all writes now")
    kinds = (["AOF"] if info.get("aof_enabled") == "1" else []) + (["RDB snapshots"] if save else [])
    if kinds:
        return ok(check, f"{' and '.join(kinds)} on")
    if "aof_enabled" not in info or save is None:
        off = "AOF is off, and " if info.get("aof_enabled") == "0" else ""
        return unknown(
            check, f"{off}Redis does not report whether {'RDB snapshots are' if off else 'AOF or RDB is'} on"
        )
    return warning(
        check, "neither AOF nor RDB is on", "turn appendonly on: a restart of Redis loses batches and outbox"
    )


def outbox(length: int, oldest_seconds: float | None, limit: int) -> Finding:
    """Checks that messages leave the outbox.

    :param oldest_seconds: how long the oldest message has waited; None where that is unknown.
    :param limit: how many messages may wait.
    """
    if not length:
        return ok("outbox", "no message waits for Kafka")
    oldest = "" if oldest_seconds is None else f", the oldest for {max(0.0, oldest_seconds):.0f} s"
    found = f"{_messages(length)} for Kafka{oldest}"
    if length >= limit:
        fix = "start Kafka and the service: requests that prune are refused until some messages are delivered"
        return failed("outbox", f"{found}; it is full", fix)
    if oldest_seconds is None or oldest_seconds > _OLD_SECONDS:
        return warning("outbox", found, "make sure that the service runs and reaches Kafka")
    return ok("outbox", found)


def parked(length: int, key: str) -> Finding:
    """Reports messages that Kafka will never accept."""
    if not length:
        return ok("outbox parked", "no message is parked")
    found = f"{length} parked, because Kafka will never accept them"
    return failed(
        "outbox parked", found, f"read them (XRANGE {key} - +; the field `problem` has the reason), then XDEL them"
    )


def clock(ahead_seconds: float) -> Finding:
    """Checks that this machine and Redis agree on the time.

    :param ahead_seconds: how far Redis is ahead of this machine.
    """
    return clock_of("clock", "Redis", ahead_seconds)


def _number(info: Mapping[str, str], name: str) -> int | None:
    text = info.get(name, "")
    return int(text) if text.isdecimal() else None


def _mebibytes(count: int) -> str:
    return f"{count / _MEBIBYTE:.1f} MiB"


def _messages(count: int) -> str:
    return "1 message waits" if count == 1 else f"{count} messages wait"
