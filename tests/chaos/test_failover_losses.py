"""Row 20: a master is killed before its replica has what it acknowledged last: how much is lost, with figures.

`BCS_TEST_CHAOS=full python -m pytest -n 0 tests/chaos/test_failover_losses.py` prints them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from bcs.config.store_urls import redis_url as url_of_redis
from bcs.storage.backfill import ArchiveBackfill
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.cluster import ClusterNodes
from bcs.storage.redis.topology import slot_of
from tests.chaos.figures import Note
from tests.integration.cluster_load import ClusterLoad
from tests.support.databases import archive_in
from tests.support.laws import LAW
from tests.support.proxied_cluster import ProxiedCluster

pytestmark = [pytest.mark.anyio, pytest.mark.release]

PREFIX = "losses:"
REPLICAS_OF_BCS = 2
UNDISTURBED_SECONDS = 2.0
# What the replica had before it was held up may still have been on its way. And this machine is busy.
SLACK_SECONDS = 0.5
BACK_SECONDS = 5.0


async def nothing_waits(_: str) -> int:
    return 0


@asynccontextmanager
async def loaded(cluster: ProxiedCluster, archive: PostgresArchive | None) -> AsyncIterator[ClusterLoad]:
    """The stores of two replicas of BCS, to write to and to read from."""
    backfill = ArchiveBackfill(archive, nothing_waits) if archive else None
    async with AsyncExitStack() as stack:
        stores = []
        for _ in range(REPLICAS_OF_BCS):
            nodes = ClusterNodes(
                url_of_redis(cluster.url),
                max_connections=4,
                deadline_seconds=1,
                breaker_failures=5,
                breaker_open_seconds=0.2,
            )
            stack.push_async_callback(nodes.aclose)
            stores.append(RedisStateStore(nodes, law=LAW, key_prefix=PREFIX, ttl_seconds=600, backfill=backfill))
        yield ClusterLoad(stores, archive)


@pytest.mark.parametrize("with_archive", [False, True], ids=["without", "with"])
@pytest.mark.parametrize("behind_seconds", [0.0, 0.1, 1.0])
async def test_what_a_replica_does_not_have_yet_is_lost_without_an_archive_and_kept_with_one(
    tmp_path: Path, database_url: str, note_figure: Note, behind_seconds: float, with_archive: bool
) -> None:
    """The replica gets nothing for some time before the kill; 0: it gets all as fast as it can."""
    async with (
        archive_in(database_url) as archive,
        ProxiedCluster(tmp_path, replicas=1) as cluster,
        loaded(cluster, archive if with_archive else None) as load,
    ):
        master = (await cluster.masters())[0]
        [replica] = await cluster.replicas_of(master)
        slots = await cluster.slots_of(master)
        its_batches = {batch for batch in load.acknowledged if slot_of(BatchKeys(PREFIX, batch).facts) in slots}
        async with load.running():
            # The load runs for a while before, so that there is something to lose.
            await anyio.sleep(UNDISTURBED_SECONDS)
            behind_since = anyio.current_time()
            if behind_seconds:
                cluster.stop_replication(replica, master)
                # The fault is its length: so long the replica is behind.
                await anyio.sleep(behind_seconds)
            master.server.kill()
            killed_at = anyio.current_time()
            acknowledged = [at for batch in its_batches for at in load.acknowledged[batch].values()]
            await cluster.wait_until_master(replica)
            cluster.heal()
            assert await load.until_all_answer() < BACK_SECONDS
        lost = [load.acknowledged[batch][essay] for batch, essays in (await load.lost()).items() for essay in essays]
    in_the_gap = [at for at in acknowledged if at >= behind_since]
    note_figure(
        20,
        f"{'with' if with_archive else 'without'} an archive, a replica {behind_seconds:.1f} s behind: {len(lost)} of "
        f"{len(acknowledged)} facts lost that the killed master had acknowledged, {len(in_the_gap)} since then; "
        f"{len(load.wrong)} batches with a wrong answer",
    )
    assert not behind_seconds or len(in_the_gap) > 0
    if with_archive:
        assert not lost
        assert not load.wrong
    else:
        assert not lost or behind_since - SLACK_SECONDS < min(lost) <= max(lost) <= killed_at + SLACK_SECONDS
        assert bool(lost) or not behind_seconds, "the replica was not behind"
