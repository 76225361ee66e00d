"""What a Redis says of itself, and whether BCS can use it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

LEAST_VERSION = "6.2"
"""XAUTOCLAIM is in it, and a WATCH that notices when a key expires. Valkey began later."""

PART_OF_A_CLUSTER = "it is a node of a Redis Cluster, which BCS supports only where one node has all slots"

# Of the forty hexadecimal digits of each id.
_CHARACTERS = 8
_VERSION = re.compile(r"(\d+)\.(\d+)")
_SLOTS = "16384"


def fields_of(info: bytes) -> dict[str, str]:
    """The fields in a reply to INFO."""
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def product_of(info: Mapping[str, str]) -> str:
    """Which server it is, with its version."""
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info.get('redis_version', 'of an unknown version')}"


def identity_of(info: Mapping[str, str]) -> str:
    """One run of one server with one history of data; empty where it does not tell both.

    The run's id is another one after each restart. The replication id is another one after each promotion, and that of
    its master while a server is a replica: so a server that was demoted and promoted again has another one.
    """
    run_id, replication_id = info.get("run_id", ""), info.get("master_replid", "")
    return f"{run_id[:_CHARACTERS]}-{replication_id[:_CHARACTERS]}" if run_id and replication_id else ""


def is_replica(role: str | None) -> bool:
    """True if a server's role, as INFO or ROLE tell it, is that of a replica."""
    return role in ("slave", "replica")


def unfit(info: Mapping[str, str]) -> str:
    """Why BCS can't use a server; empty where it can, as far as it tells.

    :param info: INFO's fields, without those that it refuses to tell.
    """
    if "sentinel" in (info.get("redis_mode"), info.get("server_mode")):
        return "it is a Sentinel, and not the Redis that the Sentinel watches"
    version = _VERSION.match(info.get("redis_version", ""))
    if version and _numbers(version) < _numbers(_VERSION.match(LEAST_VERSION)):
        return f"{product_of(info)} is older than {LEAST_VERSION}"
    if is_replica(info.get("role")):
        return "it is a replica, and BCS needs the master"
    return ""


def unfit_cluster(cluster: Mapping[str, str]) -> str:
    """Why BCS can't use a node of a cluster; empty where the node has all keys.

    :param cluster: the fields of CLUSTER INFO.
    """
    if (cluster.get("cluster_size"), cluster.get("cluster_slots_assigned")) == ("1", _SLOTS):
        return ""
    return PART_OF_A_CLUSTER


def _numbers(version: re.Match[str] | None) -> tuple[int, ...]:
    return tuple(map(int, version.groups())) if version else ()
