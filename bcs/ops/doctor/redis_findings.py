"""Findings from the replies of Redis. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bcs.ops.doctor.findings import Finding, clock_of, failed, ok, unknown, warning
from bcs.storage.redis.errors import reason
from bcs.storage.redis.sentinel import NamedMaster
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


def slots(masters: int, missing: int, of: int) -> Finding:
    """Checks that every slot of a cluster has a master.

    :param masters: how many masters have slots.
    :param missing: how many slots have none.
    :param of: how many slots there are.
    """
    count = "1 master has" if masters == 1 else f"{masters} masters have"
    if not missing:
        return ok("redis cluster", f"{count} all {of} slots")
    fix = "give them to a master, or let a replica take over: requests about their batches are refused"
    return failed("redis cluster", f"{missing} of {of} slots have no master that is known to work", fix)


def shard(slots: int, replicas: Sequence[str]) -> Finding:
    """Reports the slots of a master of a cluster, and checks that it has a replica.

    :param replicas: the addresses of its replicas.
    """
    has = "1 slot" if slots == 1 else f"{slots} slots"
    if not replicas:
        fix = "add one: while the master is away, requests about its batches are refused"
        return warning("redis shard", f"master of {has}, without a replica", fix)
    count = "1 replica" if len(replicas) == 1 else f"{len(replicas)} replicas"
    return ok("redis shard", f"master of {has}, with {count}: {', '.join(replicas)}")


def replicas(count: int | None) -> Finding:
    """Checks that the master of Sentinels has a replica.

    :param count: None where the server does not tell.
    """
    if count is None:
        return unknown("redis replicas", "INFO does not report the connected replicas")
    if not count:
        return warning("redis replicas", "none is connected to the master", "start one: no failover can happen now")
    return ok("redis replicas", f"{count} connected to the master")


def replication(info: Mapping[str, str]) -> Finding:
    """Checks that a replica has a connection to its master.

    :param info: the section `replication` of INFO.
    """
    status = info.get("master_link_status")
    if status is None:
        return unknown("redis replica", "INFO does not report whether its master answers")
    if status != "up":
        fix = "check it and its network: what it lacks is lost if it takes over now"
        return warning("redis replica", "its connection to its master is down", fix)
    return ok("redis replica", "connected to its master")


def sentinels(answers: Mapping[str, NamedMaster | Exception]) -> list[Finding]:
    """Checks that the Sentinels of the settings answer, and agree.

    :param answers: what each Sentinel says, by its address.
    """
    named = {address: answer for address, answer in answers.items() if isinstance(answer, NamedMaster)}
    newest = max(named.values(), key=lambda answer: answer.epoch, default=None)
    good = [answer for answer in named.values() if newest and answer.address == newest.address and not answer.down]
    # Most of them have to agree before a replica takes over.
    wrong = warning if len(good) > len(answers) // 2 else failed
    found = []
    for address, answer in answers.items():
        if isinstance(answer, Exception):
            fix = "check it, and its place in BCS_REDIS_URL: a failover needs most of the Sentinels"
            found.append(wrong("redis sentinel", f"{address}: {reason(answer)}", fix))
        elif answer.down:
            fix = "check the master, and the network between the two"
            found.append(wrong("redis sentinel", f"{address}: does not reach the master {answer.address}", fix))
        elif newest and answer.address != newest.address:
            fix = f"check the network between the Sentinels: a newer answer names {newest.address}"
            found.append(wrong("redis sentinel", f"{address}: names the former master {answer.address}", fix))
        else:
            found.append(ok("redis sentinel", f"{address}: names the master {answer.address}"))
    return found


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
