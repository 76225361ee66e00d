"""Decides from a Redis server's INFO whether BCS can use it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

LEAST_VERSION = "6.2"
"""The first version with XAUTOCLAIM, and with a WATCH that notices expired keys. Valkey began later."""

NO_CLUSTER = "it is no node of a Redis Cluster: BCS_REDIS_URL must begin with redis:// or rediss://"
PART_OF_A_CLUSTER = "it is a node of a Redis Cluster: BCS_REDIS_URL must begin with redis+cluster://"

# How many of the forty hexadecimal digits of each id are used.
_CHARACTERS = 8
_VERSION = re.compile(r"(\d+)\.(\d+)")
_SLOTS = "16384"


def fields_of(info: bytes) -> dict[str, str]:
    """The fields in a reply to INFO."""
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def product_of(info: Mapping[str, str]) -> str:
    """The server's product and version."""
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info.get('redis_version', 'of an unknown version')}"


def identity_of(info: Mapping[str, str]) -> str:
    """Identifies one run of one server with one history of data; empty where the server does not report both ids.

    The run's id changes with each restart. The replication id changes with each promotion, and a replica has that of
    its master: so a server that was demoted and promoted again has another replication id.
    """
    run_id, replication_id = info.get("run_id", ""), info.get("master_replid", "")
    return f"{run_id[:_CHARACTERS]}-{replication_id[:_CHARACTERS]}" if run_id and replication_id else ""


def is_replica(role: str | None) -> bool:
    """True if the role in INFO or ROLE is that of a replica."""
    return role in ("slave", "replica")


def server_problem(info: Mapping[str, str]) -> str:
    """Why BCS can't use a server; empty where no problem is known.

    :param info: the fields of INFO, which may be incomplete.
    """
    if "sentinel" in (info.get("redis_mode"), info.get("server_mode")):
        return "it is a Sentinel: BCS_REDIS_URL must begin with redis+sentinel:// to find the Redis that it watches"
    version = _VERSION.match(info.get("redis_version", ""))
    if version and _numbers(version) < _numbers(_VERSION.match(LEAST_VERSION)):
        return f"{product_of(info)} is older than {LEAST_VERSION}"
    if is_replica(info.get("role")):
        return "it is a replica, and BCS needs the master"
    return ""


def cluster_problem(cluster: Mapping[str, str]) -> str:
    """Why BCS can't use a node of a cluster as its only server; empty where the node has all slots.

    :param cluster: the fields of CLUSTER INFO.
    """
    if (cluster.get("cluster_size"), cluster.get("cluster_slots_assigned")) == ("1", _SLOTS):
        return ""
    return PART_OF_A_CLUSTER


def _numbers(version: re.Match[str] | None) -> tuple[int, ...]:
    return tuple(map(int, version.groups())) if version else ()
