"""Nodes of a Redis Cluster are cut off from each other, from BCS, or from both, under load at two replicas of BCS."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from redis.exceptions import RedisError

from bcs.storage.backfill import ArchiveBackfill
from bcs.storage.postgres.archive import PostgresArchive
from tests.integration.cluster_load import ClusterLoad
from tests.integration.stores import MakeStore
from tests.integration.test_redis_cluster import SLACK_SECONDS, connected_to
from tests.support.failover_load import two_replicas_under_load
from tests.support.proxied_cluster import ProxiedCluster
from tests.support.redis_cluster import NODE_TIMEOUT_MS, ClusterNode
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.release]

RECOVERY_SECONDS = 5.0
DEADLINE_SECONDS = 1.0
# Before the others suspect a node.
SHORT_SECONDS = NODE_TIMEOUT_MS / 1000 * 0.4
# Longer than the deadline of a request.
LONG_SECONDS = 4.0


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ProxiedCluster]:
    async with ProxiedCluster(tmp_path / "cluster", replicas=1, between_nodes=True) as cluster:
        yield cluster


async def until_replaced(cluster: ProxiedCluster, master: ClusterNode) -> None:
    """Wait until all nodes but a master say that its replica has its slots, and it refuses commands itself."""
    [replica] = await cluster.replicas_of(master)

    async def is_replaced() -> bool:
        others = [await node.ask("CLUSTER", "SLOTS") for node in cluster.nodes if node is not master]
        owners = [{owner[2] for _, _, owner, *_ in slots} for slots in others]
        refuses = "cluster_state:fail" in await master.ask("CLUSTER", "INFO")
        return refuses and all(replica.id in each and master.id not in each for each in owners)

    await wait_until(is_replaced, ignoring=(RedisError,))


async def from_the_others(cluster: ProxiedCluster, master: ClusterNode) -> None:
    cluster.cut_off(master)
    await until_replaced(cluster, master)


async def from_all(cluster: ProxiedCluster, master: ClusterNode) -> None:
    cluster.cut_off(master)
    cluster.cut_off_from_clients(master)
    await until_replaced(cluster, master)


async def from_the_others_then_from_all(cluster: ProxiedCluster, master: ClusterNode) -> None:
    cluster.cut_off(master)
    # The fault is its length: too short for a failover.
    await anyio.sleep(SHORT_SECONDS)
    cluster.cut_off_from_clients(master)
    await until_replaced(cluster, master)


async def from_bcs(cluster: ProxiedCluster, master: ClusterNode) -> None:
    """No failover helps here: it is over when it is healed."""
    cluster.cut_off_from_clients(master)
    # The fault is its length: as long as a failover would take.
    await anyio.sleep(LONG_SECONDS)
    await heal(cluster, master)


async def from_the_others_for_a_moment(cluster: ProxiedCluster, master: ClusterNode) -> None:
    """Too short for a failover."""
    cluster.cut_off(master)
    # The fault is its length: too short for a failover.
    await anyio.sleep(SHORT_SECONDS)
    await heal(cluster, master)


async def heal(cluster: ProxiedCluster, _: ClusterNode) -> None:
    cluster.heal()
    await cluster.wait_until_ok()


@pytest.mark.parametrize(
    ("cut_off", "archive"),
    [
        (from_the_others, True),
        (from_all, True),
        (from_the_others_then_from_all, True),
        (from_bcs, True),
        (from_the_others_for_a_moment, True),
        (from_the_others, False),
        (from_bcs, False),
    ],
)
async def test_a_master_that_is_cut_off_costs_prompt_refusals_and_nothing_else(
    cluster: ProxiedCluster,
    module_kafka: str,
    database_url: str,
    unique_name: Callable[[str], str],
    cut_off: Callable[[ProxiedCluster, ClusterNode], Awaitable[None]],
    archive: bool,
) -> None:
    settings = {"redis_url": cluster.url, **({"database_url": database_url} if archive else {})}
    master = (await cluster.masters())[0]
    async with two_replicas_under_load(
        unique_name("partition"), kafka_bootstrap_servers=module_kafka, **settings
    ) as load:
        await cut_off(cluster, master)
        over_at = time.monotonic()
        # Calls go on while the cluster is mended, and after it: none may fail later than this.
        await anyio.sleep(RECOVERY_SECONDS)
        await heal(cluster, master)
        # The same.
        await anyio.sleep(RECOVERY_SECONDS)
        await load.stop()
        load.assert_answers()
        assert not load.refused_after(over_at + RECOVERY_SECONDS)
        # Without an archive, a failover loses what the old master acknowledged meanwhile.
        if archive or cut_off is from_bcs:
            load.assert_no_answer_takes_back()
            await load.assert_nothing_is_lost()


async def nothing_waits(_: str) -> int:
    return 0


@pytest.mark.parametrize("cut_off", [from_the_others, from_all, from_the_others_then_from_all, from_bcs])
async def test_what_a_master_that_is_cut_off_still_acknowledges_comes_from_the_archive(
    cluster: ProxiedCluster,
    archive: PostgresArchive,
    in_redis: MakeStore,
    cut_off: Callable[[ProxiedCluster, ClusterNode], Awaitable[None]],
) -> None:
    """With more commits a second than whole services do, so that many are in the gap."""
    nodes = [connected_to(cluster, DEADLINE_SECONDS) for _ in range(2)]
    backfill = ArchiveBackfill(archive, nothing_waits)
    load = ClusterLoad([in_redis(each, ttl_seconds=600, backfill=backfill) for each in nodes], archive)
    async with load.running():
        await cut_off(cluster, (await cluster.masters())[0])
        assert await load.until_all_answer() < RECOVERY_SECONDS
        await heal(cluster, cluster.nodes[0])
        assert await load.until_all_answer() < RECOVERY_SECONDS
    assert load.slowest_seconds < DEADLINE_SECONDS + SLACK_SECONDS
    assert not load.wrong
    assert await load.lost() == {}
    for each in nodes:
        await each.aclose()


async def test_without_an_archive_only_what_came_after_the_cut_is_lost(
    cluster: ProxiedCluster, in_redis: MakeStore
) -> None:
    nodes = [connected_to(cluster, DEADLINE_SECONDS) for _ in range(2)]
    load = ClusterLoad([in_redis(each, ttl_seconds=600) for each in nodes])
    async with load.running():
        began = anyio.current_time()
        await from_the_others(cluster, (await cluster.masters())[0])
        assert await load.until_all_answer() < RECOVERY_SECONDS
    lost = [load.acknowledged[batch][essay] for batch, essays in (await load.lost()).items() for essay in essays]
    assert lost, "the master acknowledged nothing while it was cut off"
    # It refuses commands once it has not heard of the others for this time.
    assert began - SLACK_SECONDS < min(lost) <= max(lost) < began + NODE_TIMEOUT_MS / 1000 + SLACK_SECONDS
    assert load.slowest_seconds < DEADLINE_SECONDS + SLACK_SECONDS
    for each in nodes:
        await each.aclose()
