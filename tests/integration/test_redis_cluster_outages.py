"""A Redis Cluster that loses nodes, gets nodes, and gives their slots to others, under load."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from random import Random

import anyio
import anyio.lowlevel
import pytest

from bcs.domain.facts import EssaysRegistered
from bcs.domain.state import delta_of
from bcs.errors import StoreUnavailable
from bcs.storage.backfill import ArchiveBackfill
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.stream_layouts import number_in, stream_key
from bcs.storage.redis.topology import slot_of
from tests.integration.cluster_load import ClusterLoad
from tests.integration.stores import MakeStore, completed
from tests.integration.test_redis_cluster import SLACK_SECONDS, connected_to
from tests.support.redis_cluster import SLOTS, ClusterNode, RedisCluster, frozen, name_in
from tests.support.redis_queues import USUAL_STREAMS as STREAMS
from tests.support.redis_queues import archive_queue
from tests.support.service import Orchestrator, running_service
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.release]

DEADLINE_SECONDS = 1.0
BACK_SECONDS = 5.0
NO_KAFKA = NOWHERE = "127.0.0.1:1"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[RedisCluster]:
    async with RedisCluster(tmp_path / "cluster", replicas=1) as cluster:
        yield cluster


@pytest.fixture
async def load(cluster: RedisCluster, in_redis: MakeStore) -> AsyncIterator[ClusterLoad]:
    """Two processes' stores."""
    nodes = [connected_to(cluster, DEADLINE_SECONDS) for _ in range(2)]
    yield ClusterLoad([in_redis(each, ttl_seconds=600) for each in nodes])
    for each in nodes:
        await each.aclose()


def assert_sound(load: ClusterLoad) -> None:
    assert not load.wrong
    assert load.slowest_seconds < DEADLINE_SECONDS + SLACK_SECONDS
    assert load.counts["answers"] > 0


async def test_slots_that_move_under_load_cost_no_answer(cluster: RedisCluster, load: ClusterLoad) -> None:
    first, second, third = await cluster.masters()
    used = set(map(slot_of, load.acknowledged))
    async with load.running():
        for slot in sorted(used & set(await cluster.slots_of(first)))[:30]:
            await cluster.move_slot(slot, second)
        slots = await cluster.slots_of(third)
        await cluster.move_slots(slots.start, slots.start + 2000, second)
        await load.until_all_answer()
    assert_sound(load)
    assert (load.counts["failed commits"], load.counts["failed answers"]) == (0, 0)
    assert await load.lost() == {}


async def test_a_new_node_that_takes_slots_is_found(cluster: RedisCluster, load: ClusterLoad) -> None:
    async with load.running():
        owner = (await cluster.masters())[1]
        node = await cluster.add_node()
        slots = await cluster.slots_of(owner)
        await cluster.move_slots(slots.start, slots.start + 3000, node)
        assert await load.until_all_answer() < BACK_SECONDS
    assert_sound(load)
    assert (load.counts["failed commits"], load.counts["failed answers"]) == (0, 0)
    assert await load.lost() == {}


async def test_a_failover_that_is_asked_for_loses_nothing(cluster: RedisCluster, load: ClusterLoad) -> None:
    async with load.running():
        for master in (await cluster.masters())[:2]:
            [replica] = await cluster.replicas_of(master)
            await cluster.fail_over(replica)
            assert await load.until_all_answer() < BACK_SECONDS
    assert_sound(load)
    assert await load.lost() == {}


async def test_after_a_killed_master_its_replica_answers(cluster: RedisCluster, load: ClusterLoad) -> None:
    master = (await cluster.masters())[0]
    [replica] = await cluster.replicas_of(master)
    async with load.running():
        master.server.kill()
        await cluster.wait_until_master(replica)
        assert await load.until_all_answer() < BACK_SECONDS
        master.server.start()
        await cluster.wait_until_ok()
        await load.until_all_answer()
    # Without an archive, what a master acknowledged and its replica did not get yet is lost.
    assert load.wrong <= set(await load.lost())
    assert load.slowest_seconds < DEADLINE_SECONDS + SLACK_SECONDS


async def test_a_frozen_master_costs_the_others_nothing(cluster: RedisCluster, load: ClusterLoad) -> None:
    master = (await cluster.masters())[0]
    [replica] = await cluster.replicas_of(master)
    async with load.running():
        async with frozen(master):
            await cluster.wait_until_master(replica)
            assert await load.until_all_answer() < BACK_SECONDS
        await cluster.wait_until_ok()
        assert await load.until_all_answer() < BACK_SECONDS
    assert load.slowest_seconds < DEADLINE_SECONDS + SLACK_SECONDS


async def test_with_an_archive_a_killed_master_costs_no_fact_and_no_answer_is_wrong(
    cluster: RedisCluster, archive: PostgresArchive, in_redis: MakeStore
) -> None:
    nodes = [connected_to(cluster, DEADLINE_SECONDS) for _ in range(2)]
    backfill = ArchiveBackfill(archive, nothing_waits)
    load = ClusterLoad([in_redis(each, ttl_seconds=600, backfill=backfill) for each in nodes], archive)
    async with load.running():
        for master in (await cluster.masters())[:2]:
            [replica] = await cluster.replicas_of(master)
            master.server.kill()
            await cluster.wait_until_master(replica)
            assert await load.until_all_answer() < BACK_SECONDS
    assert load.slowest_seconds < DEADLINE_SECONDS + SLACK_SECONDS
    assert not load.wrong
    assert await load.lost() == {}
    for each in nodes:
        await each.aclose()


async def test_callers_who_give_up_while_slots_move_mix_up_no_replies(
    cluster: RedisCluster, redis_key_prefix: str
) -> None:
    nodes, first, second = connected_to(cluster), *(await cluster.masters())[:2]
    keys = [f"{redis_key_prefix}{{{number}}}" for number in range(100)]
    for key in keys:
        await nodes.at(key).call(("SET", key, key))
    answered = 0

    async def ask(number: int) -> None:
        nonlocal answered
        choice = Random(number)
        while True:
            key = choice.choice(keys)
            call = choice.choice((nodes.at(key).call, nodes.at(key).call_multiplexed))
            with anyio.move_on_after(choice.choice((0.0005, 0.001, 0.002, 1))) as scope:
                assert await call(("GET", key)) == [key.encode()]
                answered += 1
            if scope.cancelled_caught:
                await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(ask, number)
        slots = await cluster.slots_of(first)
        for slot in [slot for slot in map(slot_of, keys) if slot in slots][:20]:
            await cluster.move_slot(slot, second)
        group.cancel_scope.cancel()
    assert answered > 100
    for key in keys:
        assert await nodes.at(key).call(("GET", key)) == [key.encode()]
    await nodes.aclose()


async def nothing_waits(_: str) -> int:
    return 0


async def has_no_problem(store: RedisStateStore) -> bool:
    await store.ping()
    return not store.problem


async def test_a_stamp_comes_back_with_its_slot_unless_facts_may_be_lost(
    tmp_path: Path, archive: PostgresArchive, in_redis: MakeStore, redis_key_prefix: str
) -> None:
    async with RedisCluster(tmp_path, options=("--appendonly", "yes")) as cluster:
        nodes = connected_to(cluster)
        store = in_redis(nodes, backfill=ArchiveBackfill(archive, nothing_waits))
        slot, batch = slot_of(BatchKeys(redis_key_prefix, redis_key_prefix).facts), redis_key_prefix
        source = await cluster.owner_of(slot)
        target = next(node for node in await cluster.masters() if node is not source)

        async def moved_to(node: ClusterNode) -> None:
            await cluster.move_slot(slot, node)
            await store.ping()

        async def known_after_the_archive_got(essay: str) -> int:
            await archive.add_states({batch: delta_of([completed(essay)])})
            return (await store.summary(batch)).known

        await store.ping()
        assert await known_after_the_archive_got("a") == 1
        assert await known_after_the_archive_got("b") == 1  # the copy has a stamp, so the archive is not read
        await moved_to(target)
        await moved_to(source)
        assert await known_after_the_archive_got("c") == 1
        await moved_to(target)
        target.server.kill()
        target.server.start()
        await cluster.wait_until_ok()
        await wait_until(lambda: has_no_problem(store), ignoring=(StoreUnavailable,))
        await moved_to(source)
        assert await known_after_the_archive_got("d") == 4
        await nodes.aclose()


@asynccontextmanager
async def serving(cluster: RedisCluster, **settings: object) -> AsyncIterator[Orchestrator]:
    settings |= {"redis_url": cluster.url, "kafka_bootstrap_servers": NO_KAFKA}
    async with (
        running_service(**settings, redis_deadline_seconds=DEADLINE_SECONDS) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        yield orchestrator


async def redis_in_health(orchestrator: Orchestrator) -> tuple[str, str]:
    health = (await orchestrator.get("/healthz")).json["dependencies"]["redis"]
    return health["status"], health["message"]


async def answers_from_the_archive(orchestrator: Orchestrator) -> bool:
    health = (await orchestrator.get("/healthz")).json
    return bool(health["dependencies"]["postgresql"]["status"] == "healthy")


def has_status(orchestrator: Orchestrator, status: str) -> Callable[[], object]:
    async def has() -> bool:
        return (await redis_in_health(orchestrator))[0] == status

    return has


def with_outbox_in(its_slots: range, slots: range, prefix: str = "batch") -> str:
    """A batch in some slots whose stream of the outbox is in others."""
    names = (name_in(slots, f"{prefix}-{number}") for number in count())
    return next(name for name in names if slot_of(stream_key("", number_in(STREAMS, name.encode()))) in its_slots)


@pytest.mark.parametrize("archived", [False, True])
async def test_one_shard_away_refuses_only_its_own_batches(tmp_path: Path, database_url: str, archived: bool) -> None:
    database = {"database_url": database_url} if archived else {}
    async with RedisCluster(tmp_path) as cluster, serving(cluster, **database) as orchestrator:
        gone, *others = await cluster.masters()
        slots = await cluster.slots_of(gone)
        its_batch = name_in(slots)
        # Their announcements go to streams of the shard that will be away.
        other_slots = [await cluster.slots_of(node) for node in others]
        other_batches = [with_outbox_in(slots, each) for each in other_slots]
        await wait_until(has_status(orchestrator, "healthy"))
        if archived:
            await wait_until(lambda: answers_from_the_archive(orchestrator))
        for batch in (its_batch, *other_batches):
            assert (await orchestrator.define(batch)).status == 200
        gone.server.kill()
        await wait_until(has_status(orchestrator, "degraded"))
        _, message = await redis_in_health(orchestrator)
        assert f"{gone.address} ({len(slots)} of {SLOTS} slots) is out of reach" in message
        assert not any(node.address in message.partition(" (BCS_REDIS_URL)")[2] for node in others)
        assert (await orchestrator.get("/readyz")).status == 200
        assert await orchestrator.metric("bcs_redis_up", store="redis") in (0, None)
        new_batches = [with_outbox_in(slots, each, "new") for each in other_slots]
        for batch in other_batches + new_batches:
            assert (await orchestrator.define(batch)).status == 200
            for phase in ("spellcheck", "nlp"):
                assert (await orchestrator.complete(batch, phase)).status == 200
            assert (await orchestrator.define(batch)).json["pruned_phases"]
        for ask in (orchestrator.define(its_batch), orchestrator.complete(its_batch, "nlp")):
            with anyio.fail_after(DEADLINE_SECONDS + SLACK_SECONDS):
                refused = await ask
            assert refused.status == 503
            assert "Retry-After" in refused.headers
        gone.server.start()
        await cluster.wait_until_ok()
        with anyio.fail_after(BACK_SECONDS):
            await wait_until(has_status(orchestrator, "healthy"))
            assert (await orchestrator.define(its_batch)).status == 200


async def test_with_an_archive_a_shard_of_the_queues_that_is_away_refuses_no_other_batch(
    tmp_path: Path, archive: PostgresArchive, in_redis: MakeStore, redis_key_prefix: str
) -> None:
    """A process that starts now can't know whether facts wait there."""
    async with RedisCluster(tmp_path) as cluster:
        gone = await cluster.owner_of(slot_of(stream_key("", 0)))
        other = next(node for node in await cluster.masters() if node is not gone)
        gone_slots, other_slots = await cluster.slots_of(gone), await cluster.slots_of(other)
        gone.server.kill()
        nodes = connected_to(cluster, DEADLINE_SECONDS)
        queue = archive_queue(nodes, redis_key_prefix)
        store = in_redis(nodes, backfill=ArchiveBackfill(archive, queue.waiting))
        for batch in (name_in(other_slots, redis_key_prefix), with_outbox_in(gone_slots, other_slots)):
            await store.commit(batch, delta_of([EssaysRegistered(("a",), 1, 0), completed("a")]))
            assert (await store.summary(batch)).complete("spellcheck")
        await nodes.aclose()


async def test_without_postgresql_a_shard_away_refuses_only_facts_that_would_wait_there(tmp_path: Path) -> None:
    """Facts of many batches are written together."""
    async with (
        RedisCluster(tmp_path) as cluster,
        serving(cluster, database_url=f"postgresql://{NOWHERE}/none") as orchestrator,
    ):
        gone, other, _ = await cluster.masters()
        gone_slots, other_slots = await cluster.slots_of(gone), await cluster.slots_of(other)
        await wait_until(has_status(orchestrator, "healthy"))
        gone.server.kill()
        await wait_until(has_status(orchestrator, "degraded"))
        statuses: dict[str, set[int]] = {"there": set(), "away": set()}

        async def report(kind: str, batch: str) -> None:
            statuses[kind].add((await orchestrator.complete(batch, "nlp")).status)

        async with anyio.create_task_group() as group:
            for number in range(30):
                there = with_outbox_in(other_slots, other_slots, f"there-{number}")
                group.start_soon(report, "there", there)
                group.start_soon(report, "away", with_outbox_in(gone_slots, other_slots, f"away-{number}"))
        assert statuses == {"there": {200}, "away": {503}}


async def test_a_cluster_that_is_away_is_an_unreachable_redis(tmp_path: Path) -> None:
    async with RedisCluster(tmp_path) as cluster, serving(cluster) as orchestrator:
        await wait_until(has_status(orchestrator, "healthy"))
        for node in cluster.nodes:
            node.server.kill()
        await wait_until(has_status(orchestrator, "unhealthy"))
        for answer in (await orchestrator.get("/readyz"), await orchestrator.define("b")):
            assert answer.status == 503, answer.body
        for node in cluster.nodes:
            node.server.start()
        await cluster.wait_until_ok()
        with anyio.fail_after(BACK_SECONDS):
            await wait_until(has_status(orchestrator, "healthy"))
            assert (await orchestrator.define("b")).status == 200


async def test_a_service_starts_before_its_cluster(tmp_path: Path) -> None:
    async with RedisCluster(tmp_path) as cluster:
        for node in cluster.nodes:
            node.server.kill()
        async with serving(cluster) as orchestrator:
            await wait_until(has_status(orchestrator, "unhealthy"))
            _, message = await redis_in_health(orchestrator)
            assert "no node of the cluster answers" in message
            for node in cluster.nodes:
                node.server.start()
            await cluster.wait_until_ok()
            with anyio.fail_after(BACK_SECONDS):
                await wait_until(has_status(orchestrator, "healthy"))


async def test_with_full_coverage_one_shard_away_is_a_cluster_away(tmp_path: Path) -> None:
    async with RedisCluster(tmp_path, full_coverage=True) as cluster, serving(cluster) as orchestrator:
        gone, *_ = await cluster.masters()
        await wait_until(has_status(orchestrator, "healthy"))
        gone.server.kill()
        await wait_until(has_status(orchestrator, "unhealthy"))
        gone.server.start()
        await cluster.wait_until_ok()
        with anyio.fail_after(BACK_SECONDS):
            await wait_until(has_status(orchestrator, "healthy"))
            assert (await orchestrator.define("b")).status == 200
