"""Queries Redis for the checks of `bcs doctor`: one server, the master that Sentinels name, or a cluster."""

from __future__ import annotations

from bcs.config.redis_servers import RedisKind
from bcs.config.settings import Settings
from bcs.errors import StoreUnavailable
from bcs.ops.doctor import redis_findings as findings_of
from bcs.ops.doctor.cluster_checks import check_cluster
from bcs.ops.doctor.findings import Finding, warning
from bcs.ops.doctor.queue_checks import check_queues
from bcs.ops.doctor.server_checks import ask_master, unreachable
from bcs.ops.stores import connected
from bcs.storage.redis.dry_run import DryRun
from bcs.storage.redis.sentinel import Sentinels


async def check_redis(settings: Settings) -> list[Finding]:
    """All checks of Redis, with the deadline in the settings."""
    if settings.use_mock_repository:
        found = "not checked: BCS_USE_MOCK_REPOSITORY keeps the state in the service's memory"
        return [warning("redis", found, "unset it where the state has to outlive the process")]
    kind = settings.redis.servers.kind
    if kind is RedisKind.CLUSTER:
        return await check_cluster(settings)
    sentinels = await _check_sentinels(settings) if kind is RedisKind.SENTINEL else []
    dry_run = DryRun(settings.redis_key_prefix)
    try:
        async with connected(settings) as nodes:
            async with nodes.at(dry_run.key).session() as session:
                master = await ask_master(session, dry_run)
            queues = await check_queues(nodes, settings, master.clock)
    except StoreUnavailable as error:
        return [unreachable(error), *sentinels]
    return [
        *master.findings(needs_identity=settings.database_url is not None),
        *sentinels,
        *([findings_of.replicas(master.replicas)] if sentinels else []),
        *queues,
        master.clock_finding(),
    ]


async def _check_sentinels(settings: Settings) -> list[Finding]:
    sentinels = Sentinels(settings.redis, timeout_seconds=settings.redis_deadline_seconds, moved=lambda: None)
    try:
        return findings_of.sentinels(await sentinels.each())
    finally:
        await sentinels.aclose()
