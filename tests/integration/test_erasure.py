"""An erased batch: gone from Redis and PostgreSQL, and nothing brings it back while its tombstone is there."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from bcs.domain.erasure import ErasureRecorded
from bcs.domain.facts import EssaysRegistered, RecordedUnder
from bcs.domain.progress import BatchSummary
from bcs.domain.state import delta_of
from bcs.errors import BatchErased, TooManyEssays
from bcs.storage.backfill import ArchiveBackfill
from bcs.storage.committing import CommitPolicy
from bcs.storage.memory import MemoryStateStore
from bcs.storage.ports import ErasedCopy, StateStore
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.stored_batches import StoredBatches
from tests.integration.stores import ByTransaction, MakeStore, completed
from tests.support.history_entries import answered, consumed
from tests.support.laws import LAW
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

FACTS = delta_of(
    [EssaysRegistered(("a", "b"), 2, at_us=1), completed("a", at_us=2), RecordedUnder("spellcheck", "definition", 2)]
)
LATE = delta_of([completed("b", at_us=3)])
WEEK_US = 7 * 86_400_000_000


def erasure_of(batch: str, *, seconds: float = 604_800) -> ErasureRecorded:
    now_us = time.time_ns() // 1000
    return ErasureRecorded(
        uuid.uuid4(),
        batch,
        now_us,
        correlation_id="request-7",
        erased_by="Ä. Operator",
        reason="asked for by the school \0",
        until_us=now_us + int(seconds * 1_000_000),
    )


async def nothing_waits(_batch_id: str) -> int:
    return 0


@pytest.fixture(params=["script", "transaction", "memory"])
def store(
    request: pytest.FixtureRequest, gateway: RedisGateway, in_redis: MakeStore, redis_key_prefix: str
) -> StateStore:
    """A store without an archive."""
    if request.param == "memory":
        return MemoryStateStore(law=LAW, ttl_seconds=1000, clock=time.monotonic, max_essays=2)
    kind = ByTransaction if request.param == "transaction" else RedisStateStore
    return kind(gateway, law=LAW, key_prefix=redis_key_prefix, ttl_seconds=1000, policy=CommitPolicy(), max_essays=2)


async def test_all_of_a_batch_is_removed_and_nothing_is_added(store: StateStore, batch: str) -> None:
    await store.commit(batch, FACTS)
    erasure = erasure_of(batch)
    assert (await store.erasable(batch)).essays == 2
    erased = await store.erase(batch, erasure.tombstone)
    assert (erased.known, erased.essays) == (True, 2)
    for attempt in (
        lambda: store.commit(batch, LATE),
        lambda: store.summary(batch),
        lambda: store.state(batch),
        lambda: store.partial_state(batch),
        lambda: store.ensure_room(batch, ("x", "y", "z")),
    ):
        with pytest.raises(BatchErased) as refusal:
            await attempt()
        assert refusal.value.tombstone == erasure.tombstone


async def test_more_essays_than_a_batch_may_have_are_no_reason_for_a_dead_letter(store: StateStore, batch: str) -> None:
    """The event would become a dead letter with all that it says of the pupils."""
    await store.erase(batch, erasure_of(batch).tombstone)
    with pytest.raises(BatchErased):
        await store.commit(batch, delta_of([EssaysRegistered(("x", "y", "z"), 3, at_us=1)]))


async def test_a_batch_is_new_when_its_tombstone_has_ended(store: StateStore, batch: str) -> None:
    await store.commit(batch, FACTS)
    await store.erase(batch, erasure_of(batch, seconds=-1).tombstone)
    # Redis forgets it after a millisecond.
    await wait_until(lambda: store.commit(batch, LATE), ignoring=(BatchErased,))
    assert await store.state(batch) == LATE
    with pytest.raises(TooManyEssays):
        await store.ensure_room(batch, ("x", "y", "z"))


async def test_what_an_interrupted_erasure_left_is_removed_by_the_next(
    gateway: RedisGateway, in_redis: MakeStore, redis_key_prefix: str, batch: str
) -> None:
    store = in_redis(gateway)
    await store.commit(batch, FACTS)
    other = in_redis(gateway)
    summary = await store.summary(batch)
    assert await other.summary(batch) == summary
    await store.store_summary(batch, summary)
    keys = BatchKeys(redis_key_prefix, batch)
    other_law = keys.summary("0123456789abcdef")
    await gateway.call(
        ("SET", other_law, "of another replica"), ("HSET", keys.facts, "laws", f"{LAW.fingerprint},0123456789abcdef")
    )
    # As after a crash behind the first step: the tombstone stands in the hash with all facts.
    await gateway.call(("HSET", keys.facts, "erased", '[1, 2, "somebody", "why"]'))
    with pytest.raises(BatchErased):
        await store.commit(batch, LATE)
    await gateway.call(("DEL", keys.summary(LAW.fingerprint)))
    await other.store_summary(batch, summary)
    assert await gateway.call(("EXISTS", keys.summary(LAW.fingerprint))) == [0]
    await gateway.call(("SET", keys.summary(LAW.fingerprint), "a summary"))
    erasure = erasure_of(batch)
    assert await store.erase(batch, erasure.tombstone) == ErasedCopy(True, 2, summaries=2)
    assert await gateway.call(("KEYS", f"{keys.stem}*"), ("HKEYS", keys.facts)) == [[keys.facts.encode()], [b"erased"]]
    [remaining_ms] = await gateway.call(("PTTL", keys.facts))
    assert WEEK_US // 1000 - 60_000 < remaining_ms <= WEEK_US // 1000 + 60_000
    assert not (await store.erase(batch, erasure.tombstone)).known


async def test_no_writer_beside_it_brings_anything_back(
    archive: PostgresArchive, gateway: RedisGateway, in_redis: MakeStore, redis_key_prefix: str, batch: str
) -> None:
    """Each waits for the archive, and then for Redis, as the actor of a batch does."""
    store = in_redis(gateway, backfill=ArchiveBackfill(archive, nothing_waits))
    refused = 0

    async def write(number: int) -> None:
        nonlocal refused
        for at_us in range(5):
            await archive.write([consumed(batch)])
            with suppress(BatchErased):
                await store.commit(batch, delta_of([completed(f"essay-{number}", at_us=at_us)]))
                continue
            refused += 1

    await write(0)
    async with anyio.create_task_group() as writers:
        for number in range(8):
            writers.start_soon(write, number)
        erasure = erasure_of(batch)
        await archive.refuse(erasure)
        await store.erase(batch, erasure.tombstone)
        await archive.erase(batch)
    assert refused
    left = await archive.erasable(batch)
    assert (left.essays, left.facts, left.entries) == (0, 0, 0)
    assert await gateway.call(("HKEYS", BatchKeys(redis_key_prefix, batch).facts)) == [[b"erased"]]


async def test_a_summary_that_another_process_keeps_is_no_answer(
    gateway: RedisGateway, in_redis: MakeStore, batch: str
) -> None:
    one, other = in_redis(gateway), in_redis(gateway)
    await one.commit(batch, FACTS)
    assert (await other.summary(batch)).known == 2
    await one.erase(batch, erasure_of(batch).tombstone)
    with pytest.raises(BatchErased):
        await other.summary(batch)


async def test_the_archive_keeps_only_the_entry_about_the_erasure(archive: PostgresArchive, batch: str) -> None:
    await archive.write([consumed(batch), consumed(batch), answered(batch)])
    await archive.add_states({batch: FACTS})
    before = await archive.erasable(batch)
    assert (before.essays, before.facts, before.entries) == (3, 3, 3)
    erasure = erasure_of(batch)
    await archive.refuse(erasure)
    # Nothing is added from the tombstone on, though not yet everything is deleted.
    await archive.write([consumed(batch)])
    await archive.add_states({batch: LATE})
    assert await archive.erase(batch) == before
    with pytest.raises(BatchErased) as refusal:
        await archive.state(batch)
    assert refusal.value.tombstone == erasure.tombstone
    await archive.write([consumed(batch)])
    await archive.add_states({batch: LATE})
    [entry] = await archive.history(batch, limit=10)
    assert entry.entry == erasure
    assert (await archive.erase(batch)).entries == 0


async def test_the_archive_takes_a_batch_again_when_its_tombstone_has_ended(
    archive: PostgresArchive, batch: str
) -> None:
    await archive.add_states({batch: FACTS})
    await archive.refuse(erasure_of(batch, seconds=-1))
    await archive.erase(batch)
    assert (await archive.state(batch)).empty
    await archive.add_states({batch: LATE})
    assert await archive.state(batch) == LATE


async def test_a_tombstone_that_lasts_longer_stays(archive: PostgresArchive, batch: str) -> None:
    long, short = erasure_of(batch, seconds=1000), erasure_of(batch, seconds=10)
    await archive.refuse(long)
    await archive.refuse(short)
    with pytest.raises(BatchErased) as refusal:
        await archive.state(batch)
    assert refusal.value.tombstone == long.tombstone
    assert [each.entry for each in await archive.history(batch, limit=10)] == [short, long]


async def test_retention_does_not_end_a_tombstone(archive: PostgresArchive, batch: str) -> None:
    await archive.refuse(erasure_of(batch))
    await archive.delete_expired(datetime.now(UTC) + timedelta(days=2), 1000, 10)
    with pytest.raises(BatchErased):
        await archive.state(batch)


@pytest.mark.parametrize("act", ["commit", "summary"])
async def test_redis_gets_its_lost_tombstone_from_the_archive(
    archive: PostgresArchive,
    gateway: RedisGateway,
    in_redis: MakeStore,
    redis_key_prefix: str,
    batch: str,
    act: str,
) -> None:
    """Redis lost everything, and while PostgreSQL was away it took late facts."""
    erasure = erasure_of(batch)
    await archive.refuse(erasure)
    await in_redis(gateway).commit(batch, LATE)
    store = in_redis(gateway, backfill=ArchiveBackfill(archive, nothing_waits))
    with pytest.raises(BatchErased):
        await (store.commit(batch, FACTS) if act == "commit" else store.summary(batch))
    keys = BatchKeys(redis_key_prefix, batch)
    assert await gateway.call(("HKEYS", keys.facts)) == [[b"erased"]]
    with pytest.raises(BatchErased) as refusal:
        await in_redis(gateway).commit(batch, FACTS)
    assert refusal.value.tombstone == erasure.tombstone


async def test_a_rebuild_leaves_the_tombstone(
    archive: PostgresArchive, gateway: RedisGateway, in_redis: MakeStore, redis_key_prefix: str, batch: str
) -> None:
    """It writes to the archive, and takes away the stamp in Redis."""
    erasure = erasure_of(batch)
    await archive.refuse(erasure)
    store = in_redis(gateway, backfill=ArchiveBackfill(archive, nothing_waits))
    await store.erase(batch, erasure.tombstone)
    await archive.write([consumed(batch)], deadline_seconds=10)
    await StoredBatches(gateway, key_prefix=redis_key_prefix).invalidate([batch])
    with pytest.raises(BatchErased):
        await store.summary(batch)
    assert [each.entry for each in await archive.history(batch, limit=10)] == [erasure]


async def test_another_batch_is_not_touched(
    store: StateStore, archive: PostgresArchive, batch: str, unique_name: Callable[[str], str]
) -> None:
    other = unique_name("batch")
    await store.commit(other, FACTS)
    await archive.write([consumed(other), consumed(batch)])
    await archive.refuse(erasure_of(batch))
    # In one statement with the erased one.
    await archive.add_states({batch: LATE, other: LATE})
    await archive.erase(batch)
    await store.erase(batch, erasure_of(batch).tombstone)
    assert await store.state(other) == FACTS
    assert "b" in (await archive.state(other)).first_seen_us
    assert len(await archive.history(other, limit=10)) == 1
    assert isinstance(await store.summary(other), BatchSummary)
