"""Queries every node of a Redis Cluster for the checks of `bcs doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from redis.asyncio import Connection
from redis.exceptions import RedisError

from bcs.config.settings import Settings
from bcs.config.store_urls import StoreUrl
from bcs.errors import StoreUnavailable
from bcs.ops.doctor import redis_findings as findings_of
from bcs.ops.doctor.findings import Finding, warning
from bcs.ops.doctor.queue_checks import check_queues
from bcs.ops.doctor.server_checks import OF_A_REPLICA, MasterReplies, ask_master, replica_findings, unreachable
from bcs.ops.stores import connected, one_node
from bcs.storage.deadlines import Deadline
from bcs.storage.redis.connecting import connection_pool, handshake
from bcs.storage.redis.discovery import Discovery
from bcs.storage.redis.dry_run import DryRun
from bcs.storage.redis.errors import reason
from bcs.storage.redis.exchange import exchange
from bcs.storage.redis.topology import SLOTS, NodeAddress, Topology, slot_of


async def check_cluster(settings: Settings) -> list[Finding]:
    """All checks of a cluster. A node that does not answer hides nothing of the others."""
    url = settings.redis
    discovery = Discovery(lambda at: url.at(*at), deadline_seconds=settings.redis_deadline_seconds)
    try:
        topology = await discovery.topology([NodeAddress(*at) for at in url.servers.listed], None)
    except StoreUnavailable as error:
        return [unreachable(error)]
    finally:
        await discovery.aclose()
    shards = topology.shards()
    found = [findings_of.slots(len(shards), SLOTS - sum(shards.values()), SLOTS)]
    clock: Any = RedisError("no master answers")
    clocks: list[Finding] = []
    for address, slots in shards.items():
        replicas = sorted(topology.replicas.get(address, ()))
        of_shard = [findings_of.shard(slots, [str(replica) for replica in replicas])]
        master = await _ask_master(settings, topology, address)
        if isinstance(master, Finding):
            of_shard.append(master)
        else:
            of_shard += master.findings(needs_identity=settings.database_url is not None)
            clock = master.clock
            clocks += _named(address, [master.clock_finding()])
        found += _named(address, of_shard)
        for replica in replicas:
            found += _named(replica, await _check_replica(url.at(*replica), settings.redis_deadline_seconds))
    async with connected(settings) as nodes:
        return [*found, *await check_queues(nodes, settings, clock), *clocks]


async def _ask_master(settings: Settings, topology: Topology, address: NodeAddress) -> MasterReplies | Finding:
    try:
        async with one_node(settings, address) as node, node.session() as session:
            return await ask_master(session, _dry_run_at(topology, address, DryRun(settings.redis_key_prefix)))
    except StoreUnavailable as error:
        return unreachable(error, "start it, or let a replica take over: requests about its batches are refused")


def _dry_run_at(topology: Topology, address: NodeAddress, dry_run: DryRun) -> DryRun:
    """The dry run with keys that a node has; with any keys if none of the first ones is there."""
    owners = topology.owners()
    tried = (dry_run.numbered(number) for number in range(SLOTS))
    return next((one for one in tried if owners[slot_of(one.key)] == address), dry_run)


async def _check_replica(url: StoreUrl, deadline_seconds: float) -> list[Finding]:
    """What is said of a replica. Connections of the service refuse it, so this makes one of its own."""
    connection: Connection = connection_pool(url, redis_connect_func=handshake).make_connection()  # type: ignore[no-untyped-call]
    try:
        with Deadline(deadline_seconds) as deadline:
            await connection.connect()  # type: ignore[no-untyped-call]
            replies = await exchange(connection, OF_A_REPLICA)
        if deadline.expired:
            raise TimeoutError
    except (RedisError, OSError) as error:
        return [warning("redis replica", f"out of reach: {reason(error)}", "start it: its master has one replica less")]
    finally:
        await connection.disconnect(nowait=True)
    return replica_findings(replies)


def _named(address: NodeAddress, findings: Sequence[Finding]) -> list[Finding]:
    return [replace(finding, found=f"{address}: {finding.found}") for finding in findings]
