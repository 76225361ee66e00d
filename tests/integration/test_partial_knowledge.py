"""While the archive is away, a batch that Redis has only in part gets no answer."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
import pytest

from bcs.domain.state import BatchState
from bcs.errors import StoreUnavailable
from bcs.storage.backfill import ArchiveBackfill
from bcs.storage.ports import REDIS
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from bcs.usecases.batch_reader import BatchReader
from tests.chaos.history import told
from tests.integration.stores import BREAKER_FAILURES, MakeStore
from tests.support.events import Event, registered, spellchecked

pytestmark = pytest.mark.anyio


class AwayArchive:
    """A record that does not answer."""

    reachable = False
    identity = None

    async def state(self, batch_id: str) -> BatchState:
        raise StoreUnavailable("postgresql", batch_id)

    async def add_states(self, states: Mapping[str, BatchState]) -> None:
        raise StoreUnavailable("postgresql", str(states))


@pytest.fixture
def store(gateway: RedisGateway, in_redis: MakeStore) -> RedisStateStore:
    async def none(_batch_id: str) -> int:
        return 0

    return in_redis(gateway, backfill=ArchiveBackfill(AwayArchive(), none))


async def commit(store: RedisStateStore, *events: Event) -> None:
    for one in map(told, events):
        await store.commit(one.batch, one.delta)


async def test_one_essay_that_came_after_redis_forgot_thirty_completes_nothing(store: RedisStateStore) -> None:
    await commit(store, spellchecked("batch", "e1"))
    for _ in range(2):  # by the summary that was stored, too
        with pytest.raises(StoreUnavailable):
            await store.summary("batch")


async def test_a_batch_that_was_registered_meanwhile_is_known(store: RedisStateStore) -> None:
    await commit(store, registered("batch", ["e1"]), spellchecked("batch", "e1"))
    assert (await store.summary("batch")).expected == 1


async def test_a_report_is_accepted_on_what_redis_alone_knows(store: RedisStateStore) -> None:
    await commit(store, spellchecked("batch", "e1"))
    reader = BatchReader(store=store, store_name=REDIS, archive=None)
    assert (await reader.state_for_report("batch")).first_seen_us.keys() == {"e1"}
    with pytest.raises(StoreUnavailable, match="postgresql"):
        await reader.state("batch")


async def test_to_refuse_says_nothing_about_redis(store: RedisStateStore, gateway: RedisGateway) -> None:
    async def ask(number: int) -> None:
        with pytest.raises(StoreUnavailable, match="postgresql"):
            await store.summary(f"batch-{number}")

    # At the same time: each of them begins with an answer of Redis's, which would end a row of failures.
    async with anyio.create_task_group() as group:
        for number in range(BREAKER_FAILURES * 2):
            group.start_soon(ask, number)
    assert gateway.circuit == "closed"
