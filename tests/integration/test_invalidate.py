"""After a rebuild, Redis does not count as complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import pytest

from bcs.domain.facts import EssaysRegistered
from bcs.domain.state import BatchState, delta_of
from bcs.errors import StoreUnavailable
from bcs.observability.failpoints import FailPoint, fail_points
from bcs.storage.backfill import ArchiveBackfill
from bcs.storage.ports import POSTGRESQL, Committed
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.stored_batches import StoredBatches
from tests.integration.stores import MakeStore, completed

pytestmark = pytest.mark.anyio

PAST = delta_of([EssaysRegistered(("a", "b"), 2, at_us=1)])
NEWS = delta_of([completed("a", at_us=2)])


async def nothing_waits(_batch_id: str) -> int:
    return 0


async def test_a_writer_that_read_the_archive_before_reads_it_again(
    archive: PostgresArchive, gateway: RedisGateway, in_redis: MakeStore, redis_key_prefix: str, batch: str
) -> None:
    """Of a batch that Redis has nothing of, so that there is nothing to delete there."""
    added = False

    async def add_past_redis(point: FailPoint, _: str) -> None:
        nonlocal added
        if point is FailPoint.BEFORE_EXEC and not added:
            added = True
            await archive.add_states({batch: PAST})
            await StoredBatches(gateway, key_prefix=redis_key_prefix).invalidate([batch])

    backfill = ArchiveBackfill(archive, nothing_waits)
    store = in_redis(gateway, backfill=backfill)
    with fail_points(add_past_redis):
        committed = await store.commit(batch, NEWS)
    assert committed.conflicts == 1
    everything = PAST.copy()
    everything.merge(NEWS)
    assert await store.state(batch) == everything
    assert (await store.summary(batch)).expected == 2


async def test_nothing_is_taken_for_complete_while_facts_wait_for_the_record(
    archive: PostgresArchive, gateway: RedisGateway, in_redis: MakeStore, batch: str
) -> None:
    async def one_waits(_batch_id: str) -> int:
        return 1

    store = in_redis(gateway, backfill=ArchiveBackfill(archive, one_waits))
    await store.commit(batch, NEWS)
    assert (await store.summary(batch)).expected is None
    await archive.add_states({batch: PAST})  # what waited has arrived
    assert (await store.summary(batch)).expected == 2


async def test_the_next_commit_backfills_an_invalidated_batch(
    archive: PostgresArchive, gateway: RedisGateway, in_redis: MakeStore, redis_key_prefix: str, batch: str
) -> None:
    store = in_redis(gateway, backfill=ArchiveBackfill(archive, nothing_waits))
    await store.commit(batch, NEWS)
    await archive.add_states({batch: PAST})
    await StoredBatches(gateway, key_prefix=redis_key_prefix).invalidate([batch])
    await store.commit(batch, delta_of([completed("b", at_us=3)]))
    assert (await store.partial_state(batch)).expected is not None


class AwayArchive:
    """An archive that is unreachable."""

    reachable = False
    identity = "1.00000001"

    async def state(self, batch_id: str) -> BatchState:
        raise StoreUnavailable(POSTGRESQL, "away")

    async def add_states(self, states: Mapping[str, BatchState]) -> None:
        raise StoreUnavailable(POSTGRESQL, "away")


async def test_while_the_archive_is_away_commits_go_by_the_script_and_leave_the_stamp(
    archive: PostgresArchive, gateway: RedisGateway, in_redis: MakeStore, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to backfill from, and to read a large batch for each fact takes long."""
    store = in_redis(gateway, backfill=ArchiveBackfill(AwayArchive(), nothing_waits))
    with monkeypatch.context() as patched:
        patched.setattr(RedisStateStore, "_commit_transaction", None)
        assert await store.commit(batch, NEWS) == Committed()
    with pytest.raises(StoreUnavailable):
        await store.summary(batch)
    await archive.add_states({batch: PAST})
    back = in_redis(gateway, backfill=ArchiveBackfill(archive, nothing_waits))
    assert (await back.summary(batch)).expected == 2


async def test_no_essay_s_row_is_invalidated(
    gateway: RedisGateway, in_redis: MakeStore, redis_key_prefix: str, batch: str
) -> None:
    """Whatever the essay is called: `t` and this id was the name of the field that is set and deleted."""
    store = in_redis(gateway)
    facts = delta_of([completed(essay) for essay in ("ouched", "invalidated", "nvalidated")])
    await store.commit(batch, facts)
    await StoredBatches(gateway, key_prefix=redis_key_prefix).invalidate([batch])
    assert await store.state(batch) == facts


async def test_a_commit_leaves_a_complete_batch_complete(
    archive: PostgresArchive,
    gateway: RedisGateway,
    in_redis: MakeStore,
    redis_key_prefix: str,
    batch: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = in_redis(gateway, backfill=ArchiveBackfill(archive, nothing_waits))
    await store.commit(batch, PAST)
    stamp = ("HGET", BatchKeys(redis_key_prefix, batch).facts, "complete")
    [before] = await gateway.call(stamp)
    assert before is not None
    reads = 0

    async def counted(self: PostgresArchive, batch_id: str) -> BatchState:
        nonlocal reads
        reads += 1
        return BatchState()

    monkeypatch.setattr(PostgresArchive, "state", counted)
    assert await store.commit(batch, NEWS) == Committed()
    assert await gateway.call(stamp) == [before]
    assert (await store.summary(batch)).known == 2
    assert reads == 0
    await StoredBatches(gateway, key_prefix=redis_key_prefix).invalidate([batch])
    await store.commit(batch, NEWS)
    assert reads == 1


async def test_while_the_archive_is_away_a_commit_needs_no_transaction(
    archive: PostgresArchive, gateway: RedisGateway, in_redis: MakeStore, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = in_redis(gateway, backfill=ArchiveBackfill(archive, nothing_waits))
    await store.commit("another", NEWS)

    def never(_: RedisGateway) -> NoReturn:
        raise AssertionError("it opens a transaction")

    with monkeypatch.context() as away:
        away.setattr(PostgresArchive, "reachable", False)
        away.setattr(RedisGateway, "session", never)
        assert await store.commit(batch, NEWS) == Committed()
    await archive.add_states({batch: PAST})
    assert (await store.summary(batch)).expected == 2, "the batch has no stamp"
