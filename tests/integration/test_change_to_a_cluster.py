"""The way from one Redis to a cluster, and back, as docs/operations.md describes it: nothing is copied or lost."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bcs.devtools.servers import embedded
from bcs.domain.state import delta_of
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from tests.integration.cluster_load import ClusterLoad
from tests.integration.stores import MakeGateway, MakeStore, completed
from tests.integration.test_redis_cluster import connected_to
from tests.support.redis_cluster import SLOTS, RedisCluster

pytestmark = [pytest.mark.anyio, pytest.mark.release]

BATCHES = [f"kept-{number}" for number in range(50)]


async def test_one_redis_becomes_a_cluster_and_one_redis_again(
    tmp_path: Path, make_gateway: MakeGateway, in_redis: MakeStore
) -> None:
    data = tmp_path / "cluster" / "node-0"  # where the cluster's first node looks for its data
    data.mkdir(parents=True)
    with embedded.valkey(data, append_only=True) as server:
        before = make_gateway(server.address)
        for batch in BATCHES:
            await in_redis(before, ttl_seconds=600).commit(batch, delta_of([completed("before")]))

    # 1. The same Redis, as the only node of a cluster.
    async with (
        RedisCluster(tmp_path / "cluster", masters=1, options=("--appendonly", "yes")) as cluster,
        AsyncExitStack() as opened,
    ):
        [first] = await cluster.masters()
        one: RedisGateway = make_gateway(first.address)
        assert await known(in_redis(one, ttl_seconds=600)) == {"before"}
        # 2. Replicas of BCS with both kinds of URLs, while there is one node.
        nodes, more_nodes = connected_to(cluster), connected_to(cluster)
        opened.push_async_callback(nodes.aclose)
        opened.push_async_callback(more_nodes.aclose)
        load = ClusterLoad([in_redis(each, ttl_seconds=600) for each in (one, nodes)])
        async with load.running():
            await load.until_all_answer()
        assert not load.wrong
        assert load.counts["failed commits"] + load.counts["failed answers"] == 0
        assert await load.lost() == {}
        # 3. More nodes take slots, under load, when all replicas of BCS have the URL of a cluster.
        load = ClusterLoad([in_redis(more_nodes, ttl_seconds=600), in_redis(nodes, ttl_seconds=600)])
        async with load.running():
            second = await cluster.add_node()
            await cluster.move_slots(0, SLOTS // 2, second)
            assert await known(in_redis(nodes, ttl_seconds=600)) == {"before"}
            # Back: one node takes all slots again.
            await cluster.move_slots(0, SLOTS // 2, first)
            await load.until_all_answer()
        assert not load.wrong
        assert load.counts["failed commits"] + load.counts["failed answers"] == 0
        assert await load.lost() == {}
        again: RedisGateway = make_gateway(first.address)
        assert await known(in_redis(again, ttl_seconds=600)) == {"before"}
        for batch, essays in load.acknowledged.items():
            assert set(essays) <= set((await in_redis(again, ttl_seconds=600).state(batch)).first_seen_us)


async def known(store: RedisStateStore) -> set[str]:
    """The essays that a store knows of the batches from before."""
    states = [await store.state(batch) for batch in BATCHES]
    assert len({frozenset(state.first_seen_us) for state in states}) == 1
    return set(states[0].first_seen_us)
