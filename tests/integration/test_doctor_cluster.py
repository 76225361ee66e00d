"""`bcs doctor` looks at every node of a Redis Cluster, and a node that is away hides nothing of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bcs.config.loading import load_settings
from bcs.config.settings import Settings
from bcs.ops.doctor.findings import Finding, Status
from bcs.ops.doctor.redis_checks import check_redis
from tests.support.redis_cluster import ClusterNode, RedisCluster, running_cluster

# At every commit: tests/unit/test_doctor_findings.py.
pytestmark = [pytest.mark.anyio, pytest.mark.release]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    with running_cluster(tmp_path, replicas=1) as running:
        yield running


def settings_of(cluster: RedisCluster) -> Settings:
    return load_settings(redis_url=cluster.url, redis_deadline_seconds=0.5)


async def test_every_node_is_looked_at(cluster: RedisCluster) -> None:
    first, *_ = masters = await cluster.masters()
    await first.ask("CONFIG", "SET", "maxmemory", "100mb")
    await first.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    found = await check_redis(settings_of(cluster))
    assert texts(found, "redis cluster") == ["3 masters have all 16384 slots"]
    shards = texts(found, "redis shard")
    for master in masters:
        [replica] = await cluster.replicas_of(master)
        slots = len(await cluster.slots_of(master))
        assert f"{master.address}: master of {slots} slots, with 1 replica: {replica.address}" in shards
        assert f"{replica.address}: connected to its master" in texts(found, "redis replica")
        assert f"{master.address}: Redis accepts all commands that the service sends" in texts(found, "redis commands")
    for node in cluster.nodes:
        assert any("reachable, Valkey" in text for text in of(node, found, "redis"))
        assert of(node, found, "redis memory")
        assert of(node, found, "redis eviction")
    failures = [finding.found for finding in found if finding.status is Status.FAILED]
    assert failures == [f"{first.address}: maxmemory is set, and the policy is allkeys-lru"]
    assert len(texts(found, "clock")) == len(masters)


async def test_nodes_that_are_away_are_named(cluster: RedisCluster) -> None:
    first, second, third = await cluster.masters()
    [replica] = await cluster.replicas_of(second)
    first.server.freeze()
    replica.server.kill()
    found = await check_redis(settings_of(cluster))
    assert of(first, found, "redis") == [f"{first.address}: out of reach: it did not answer in time"]
    assert of(replica, found, "redis replica") == [f"{replica.address}: out of reach: Connection refused"]
    for node in (second, third):
        assert any("reachable, Valkey" in text for text in of(node, found, "redis"))
    first.server.thaw()


async def test_a_right_that_one_node_lacks_is_named(cluster: RedisCluster) -> None:
    first, second, _ = await cluster.masters()
    await second.ask("ACL", "SETUSER", "default", "-hset")
    found = await check_redis(settings_of(cluster))
    [refused] = of(second, found, "redis commands")
    assert "hset" in refused
    [accepted] = of(first, found, "redis commands")
    assert "accepts all" in accepted


def texts(found: Sequence[Finding], check: str) -> list[str]:
    return [finding.found for finding in found if finding.check == check]


def of(node: ClusterNode, found: Sequence[Finding], check: str) -> list[str]:
    return [text for text in texts(found, check) if text.startswith(f"{node.address}: ")]
