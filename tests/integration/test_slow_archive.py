"""A PostgreSQL that takes its time is no fault of Redis's."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
import pytest

from bcs.domain.state import BatchState
from bcs.storage.backfill import ArchiveBackfill
from tests.chaos.history import told
from tests.integration.stores import MakeGateway, MakeStore
from tests.support.events import spellchecked

pytestmark = pytest.mark.anyio

REDIS_DEADLINE_SECONDS = 0.3


class SlowArchive:
    """Takes longer than Redis may."""

    reachable = True
    identity = None

    async def state(self, batch_id: str) -> BatchState:
        # What is tested: an archive that takes longer than Redis may.
        await anyio.sleep(REDIS_DEADLINE_SECONDS * 2)
        return BatchState()

    async def add_states(self, states: Mapping[str, BatchState]) -> None:
        assert states


async def test_redis_is_not_taken_for_away_because_the_record_is_slow(
    redis_url: str, make_gateway: MakeGateway, in_redis: MakeStore
) -> None:
    async def none(_batch_id: str) -> int:
        return 0

    gateway = make_gateway(redis_url, deadline=REDIS_DEADLINE_SECONDS, failures=1, connections=4)
    store = in_redis(gateway, backfill=ArchiveBackfill(SlowArchive(), none))
    one = told(spellchecked("batch", "essay"))
    await store.summary("batch")
    await store.commit("batch", one.delta)
    assert await store.state("batch") == one.delta
    assert gateway.circuit == "closed"
