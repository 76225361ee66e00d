"""The state store on a Redis Cluster, while slots move between its nodes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from bcs.config.store_urls import redis_url as url_of_redis
from bcs.domain.state import BatchState, delta_of
from bcs.errors import RedisUnusable, StoreUnavailable
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.cluster import ClusterNodes
from bcs.storage.redis.discovery import Discovery
from bcs.storage.redis.dry_run import DryRun
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.nodes import Nodes
from bcs.storage.redis.topology import NodeAddress, slot_of
from tests.integration.stores import ByTransaction, MakeStore, completed
from tests.support.redis_cluster import SLOTS, ClusterNode, RedisCluster, frozen, name_in
from tests.support.redis_servers import VALKEY
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

DEADLINE_SECONDS = 5.0
# What a call needs to notice that its time is over.
SLACK_SECONDS = 1.0
KINDS = pytest.mark.parametrize("kind", [RedisStateStore, ByTransaction])


@pytest.fixture
async def nodes(redis_cluster: RedisCluster) -> AsyncIterator[ClusterNodes]:
    nodes = connected_to(redis_cluster)
    yield nodes
    await nodes.aclose()


def connected_to(cluster: RedisCluster, deadline_seconds: float = DEADLINE_SECONDS) -> ClusterNodes:
    return ClusterNodes(
        url_of_redis(cluster.url),
        max_connections=4,
        deadline_seconds=deadline_seconds,
        breaker_failures=5,
        breaker_open_seconds=0.2,
    )


@pytest.fixture
def keys(redis_key_prefix: str) -> BatchKeys:
    return BatchKeys(redis_key_prefix, "b")


async def another_than(owner: ClusterNode, cluster: RedisCluster) -> ClusterNode:
    return next(node for node in await cluster.masters() if node is not owner)


async def essays_of(store: RedisStateStore) -> set[str]:
    """The essays of the batch, which its summary counts, too."""
    state = await store.state("b")
    assert (await store.summary("b")).known == len(state.first_seen_us)
    return set(state.first_seen_us)


def of(essay: str) -> BatchState:
    return delta_of([completed(essay)])


@KINDS
async def test_answers_and_commits_follow_a_slot_that_moves(
    redis_cluster: RedisCluster, nodes: Nodes, in_redis: MakeStore, keys: BatchKeys, kind: type[RedisStateStore]
) -> None:
    store, slot = in_redis(nodes, kind=kind), slot_of(keys.facts)
    await store.commit("b", of("before"))
    source = await redis_cluster.begin_move(slot, await another_than(await redis_cluster.owner_of(slot), redis_cluster))
    target = await another_than(source, redis_cluster)
    # The facts are still on the first node. Keys that exist nowhere are asked for on the second one.
    await store.commit("b", of("on the first node"))
    assert await essays_of(in_redis(nodes)) == {"before", "on the first node"}
    await redis_cluster.move_keys(slot, source, target, [keys.facts])
    await store.commit("b", of("on the second node"))
    assert await essays_of(in_redis(nodes)) == {"before", "on the first node", "on the second node"}
    await redis_cluster.end_move(slot, target)
    await store.commit("b", of("after"))
    found = await essays_of(in_redis(nodes))
    assert found == {"before", "on the first node", "on the second node", "after"}
    await redis_cluster.move_slot(slot, source)
    assert await essays_of(store) == found


async def test_a_transaction_waits_for_the_end_of_the_move(
    redis_cluster: RedisCluster, nodes: Nodes, keys: BatchKeys
) -> None:
    node, slot = nodes.at(keys.facts), slot_of(keys.facts)
    source = await redis_cluster.owner_of(slot)
    target = await another_than(source, redis_cluster)
    await node.call(("HSET", keys.facts, "field", 1))
    await redis_cluster.begin_move(slot, target)
    replies, before = list[object](), await refusals_of(source)

    async def was_refused() -> bool:
        return await refusals_of(source) > before

    async def transact() -> None:
        commands = (("HINCRBY", keys.facts, "field", 1), ("HSET", keys.stem, "field", 1))
        replies.extend(await node.call(("MULTI",), *commands, ("EXEC",)))

    async with anyio.create_task_group() as group:
        group.start_soon(transact)
        await wait_until(was_refused)
        assert not replies
        await redis_cluster.end_move(slot, target)
    assert replies[-1] == [2, 1]  # once, and both
    await redis_cluster.move_slot(slot, source)
    assert await node.call(("HGET", keys.facts, "field")) == [b"2"]


async def refusals_of(node: ClusterNode) -> int:
    """How many commands a node refused because their slot moves."""
    async with node.client() as client:
        errors = await client.info("errorstats")
    return sum(errors[name]["count"] for name in ("errorstat_TRYAGAIN", "errorstat_ASK") if name in errors)


async def test_a_move_that_does_not_end_is_a_refusal_within_the_deadline(
    redis_cluster: RedisCluster, keys: BatchKeys
) -> None:
    slot = slot_of(keys.facts)
    source = await redis_cluster.owner_of(slot)
    target = await another_than(source, redis_cluster)
    # Long enough for a busy machine: a deadline that ends before the first answer would name another cause.
    nodes = connected_to(redis_cluster, deadline_seconds=1.0)
    node = nodes.at(keys.facts)
    await node.call(("HSET", keys.facts, "field", 1))
    await redis_cluster.begin_move(slot, target)
    try:
        for call in (node.call, node.call_multiplexed):
            with (
                anyio.fail_after(1.0 + SLACK_SECONDS),
                pytest.raises(StoreUnavailable, match=f"the slot {slot}") as raised,
            ):
                await call(("MULTI",), ("HDEL", keys.facts, "field"), ("HSET", keys.stem, "field", 1), ("EXEC",))
            assert raised.value.late
            assert source.address in raised.value.address
        assert await node.call(("HGET", keys.facts, "field")) == [b"1"]
    finally:
        await redis_cluster.end_move(slot, target)
        await redis_cluster.move_slot(slot, source)
        await nodes.aclose()


@pytest.mark.parametrize("multiplexed", [False, pytest.param(True, marks=pytest.mark.release)])
async def test_an_attempt_without_an_answer_after_a_refusal_says_that_the_slot_moves(
    redis_cluster: RedisCluster, keys: BatchKeys, multiplexed: bool
) -> None:
    slot = slot_of(keys.facts)
    source = await redis_cluster.owner_of(slot)
    target = await another_than(source, redis_cluster)
    nodes = connected_to(redis_cluster, deadline_seconds=2.0)
    node = nodes.at(keys.facts)
    send = node.call_multiplexed if multiplexed else node.call
    await node.call(("HSET", keys.facts, "field", 1))
    await redis_cluster.begin_move(slot, target)
    before = await refusals_of(source)

    async def was_refused() -> bool:
        return await refusals_of(source) > before

    ended = anyio.Event()

    async def transact() -> None:
        with pytest.raises(StoreUnavailable, match=f"the slot {slot} .*did not answer in time") as raised:
            await send(("MULTI",), ("HDEL", keys.facts, "field"), ("HSET", keys.stem, "field", 1), ("EXEC",))
        assert raised.value.late
        ended.set()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(transact)
            await wait_until(was_refused)
            async with frozen(source):
                await ended.wait()
    finally:
        await redis_cluster.end_move(slot, target)
        await redis_cluster.move_slot(slot, source)
        await nodes.aclose()


async def test_commands_for_several_slots_of_one_node_survive_the_move_of_one(
    redis_cluster: RedisCluster, nodes: Nodes, redis_key_prefix: str
) -> None:
    source = (await redis_cluster.masters())[0]
    slots = await redis_cluster.slots_of(source)
    names = [f"{redis_key_prefix}{{{number}}}" for number in range(100)]
    keys = [name for name in names if slot_of(name) in slots][:3]
    for key in keys:
        await nodes.at(key).call(("SET", key, key, "PX", 60_000))
    assert len({nodes.at(key).address for key in keys}) == 1
    await redis_cluster.move_slot(slot_of(keys[1]), await another_than(source, redis_cluster))
    expected = [key.encode() for key in keys]
    for call in (nodes.at(keys[0]).call, nodes.at(keys[0]).call_multiplexed):
        assert await call(*(("GET", key) for key in keys)) == expected
    await redis_cluster.move_slot(slot_of(keys[1]), source)
    assert await nodes.at(keys[1]).call(("GET", keys[1])) == [expected[1]]


@pytest.mark.parametrize("multiplexed", [False, True])
async def test_a_call_whose_outcome_is_unknown_is_not_sent_again(
    redis_cluster: RedisCluster, nodes: Nodes, keys: BatchKeys, multiplexed: bool
) -> None:
    owner = await redis_cluster.node_of(keys.facts)
    node = nodes.at(keys.facts)
    send = node.call_multiplexed if multiplexed else node.call
    assert await send(("EXISTS", keys.facts)) == [0]

    # Until the end of the block, however busy the machine is.
    await owner.ask("CLIENT", "PAUSE", 60_000, "WRITE")
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(lose_connections_once, owner)
            with pytest.raises(StoreUnavailable):
                await send(("HINCRBY", keys.facts, "count", 1))
    finally:
        await owner.ask("CLIENT", "UNPAUSE")
    assert await send(("EXISTS", keys.facts)) == [0]


async def lose_connections_once(node: ClusterNode) -> None:
    """Wait until the node holds a command back, then reset all connections of clients."""

    async def holds_one() -> bool:
        return bool((await node.ask("INFO", "clients"))["blocked_clients"])

    await wait_until(holds_one)
    await node.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def test_each_form_of_the_url_leads_only_to_its_kind_of_server(
    redis_cluster: RedisCluster, redis_url: str
) -> None:
    alone = url_of_redis(redis_url.removesuffix("/0").replace("redis://", "redis+cluster://"))
    cluster = ClusterNodes(alone, max_connections=1, deadline_seconds=2, breaker_failures=5, breaker_open_seconds=1)
    with pytest.raises(RedisUnusable, match="must begin with redis:// or rediss://"):
        await cluster.ensure_usable()
    with pytest.raises(StoreUnavailable, match="must begin with redis:// or rediss://"):
        await cluster.at("key").call(("GET", "key"))
    one = RedisGateway(
        f"redis://{redis_cluster.nodes[0].address}",
        max_connections=1,
        deadline_seconds=2,
        breaker_failures=5,
        breaker_open_seconds=1,
    )
    with pytest.raises(RedisUnusable, match=re.escape("must begin with redis+cluster://")):
        await one.ensure_usable()
    await one.aclose()
    await cluster.aclose()


async def test_one_answering_node_of_the_url_is_enough(redis_cluster: RedisCluster, free_port: int) -> None:
    node = redis_cluster.nodes[1]
    url = url_of_redis(f"redis+cluster://127.0.0.1:{free_port},{node.address}")
    nodes = ClusterNodes(url, max_connections=1, deadline_seconds=5, breaker_failures=5, breaker_open_seconds=1)
    await nodes.ensure_usable()
    await nodes.ping(DryRun("test:"))
    assert (nodes.problem, nodes.circuit, nodes.partly_reachable) == ("", "closed", False)
    assert len(await nodes.all_nodes()) == len(await redis_cluster.masters())
    await nodes.aclose()


async def test_to_ask_again_where_slots_are_makes_no_connection_unless_the_node_closed_it(
    redis_cluster: RedisCluster,
) -> None:
    node = redis_cluster.nodes[0]
    url = url_of_redis(redis_cluster.url)
    asked = [NodeAddress("127.0.0.1", node.port)]
    discovery = Discovery(lambda address: url.at(*address), deadline_seconds=DEADLINE_SECONDS)
    first = await discovery.topology(asked, None)

    async def connections_made() -> int:
        made: int = (await node.ask("INFO", "stats"))["total_connections_received"]
        return made

    before = await connections_made()
    for _ in range(3):
        assert await discovery.topology(asked, first) == first
    assert await connections_made() == before + 1, "that of the question itself"
    await node.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert await discovery.topology(asked, first) == first
    await discovery.aclose()

    async def only_the_question_is_connected() -> bool:
        clients: str = await node.ask("CLIENT", "LIST", "TYPE", "normal")
        return len(clients.splitlines()) == 1

    await wait_until(only_the_question_is_connected)


async def test_a_question_that_was_given_up_leaves_no_reply_to_the_next_one(redis_cluster: RedisCluster) -> None:
    silent, other = redis_cluster.nodes[:2]
    url = url_of_redis(redis_cluster.url)
    asked = [NodeAddress("127.0.0.1", node.port) for node in (silent, other)]
    discovery = Discovery(lambda address: url.at(*address), deadline_seconds=DEADLINE_SECONDS)
    first = await discovery.topology(asked, None)
    async with frozen(silent):
        # The other one is asked after a moment, and its answer ends the question to the first one.
        assert await discovery.topology(asked, first) == first
    before = (await silent.ask("INFO", "stats"))["total_connections_received"]
    assert await discovery.topology(asked[:1], first) == first
    after = (await silent.ask("INFO", "stats"))["total_connections_received"]
    assert after == before + 2, "that of this test, and a new one for the question"
    await discovery.aclose()


async def test_batches_on_one_master_have_the_same_server(
    redis_cluster: RedisCluster, nodes: ClusterNodes, in_redis: MakeStore, redis_key_prefix: str
) -> None:
    store = in_redis(nodes)
    await nodes.ensure_usable()
    servers = {f"b{number}": store.server_of(f"b{number}") for number in range(30)}
    owners = {
        batch: await redis_cluster.owner_of(slot_of(BatchKeys(redis_key_prefix, batch).facts)) for batch in servers
    }
    assert servers == {batch: f"{owner.address} (BCS_REDIS_URL)" for batch, owner in owners.items()}
    assert len(set(servers.values())) == len(await redis_cluster.masters())


@pytest.mark.parametrize("slots", [0, 5000])
async def test_a_node_that_has_left_the_cluster_misleads_nobody(
    redis_cluster: RedisCluster, tmp_path: Path, slots: int
) -> None:
    """Such a node answers as a cluster of its own: without slots, or with those of the keys that it still has."""
    alone = ClusterNode(tmp_path / "alone", [], None, VALKEY)
    try:
        alone.server.start()
        if slots:
            await alone.ask("CLUSTER", "ADDSLOTSRANGE", 0, slots - 1)
        url = url_of_redis(f"redis+cluster://{alone.address},{redis_cluster.nodes[0].address}")
        nodes = ClusterNodes(url, max_connections=1, deadline_seconds=5, breaker_failures=5, breaker_open_seconds=1)
        for slot in (0, SLOTS // 2, SLOTS - 1):
            key = name_in(range(slot, slot + 1))
            assert await nodes.at(key).call(("GET", key)) == [None]
        await nodes.ping(DryRun("test:"))
        assert (nodes.problem, len(await nodes.all_nodes())) == ("", len(await redis_cluster.masters()))
        await nodes.aclose()
    finally:
        alone.close()


async def test_a_cluster_of_which_no_node_answers_is_told_promptly(free_port: int) -> None:
    url = url_of_redis(f"redis+cluster://127.0.0.1:{free_port}")
    nodes = ClusterNodes(url, max_connections=1, deadline_seconds=5, breaker_failures=5, breaker_open_seconds=1)
    await nodes.ensure_usable()  # it may come later
    for attempt in (
        nodes.at("key").call(("GET", "key")),
        nodes.at("key").call_multiplexed(("GET", "key")),
        nodes.ping(),
    ):
        with anyio.fail_after(SLACK_SECONDS), pytest.raises(StoreUnavailable, match="no node of the cluster answers"):
            await attempt
    with pytest.raises(StoreUnavailable, match="no node of the cluster answers"):
        nodes.ensure_reachable()
    await nodes.aclose()
