"""With a permanent record: nothing that was accepted is missing from it, and Redis may forget at any time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from bcs.embedded import EmbeddedServer, valkey
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A store that may be flushed."""
    with valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="module")
def service_settings(own_valkey: EmbeddedServer, module_database_url: str) -> dict[str, object]:
    return {"redis_url": f"redis://{own_valkey.address}", "database_url": module_database_url}


@pytest.fixture
async def flush(own_valkey: EmbeddedServer) -> AsyncIterator[Callable[[], Any]]:
    """Makes Redis forget everything."""
    async with Redis.from_url(f"redis://{own_valkey.address}") as redis:
        yield redis.flushall


@pytest.fixture
async def spellchecked_batch(batch: str, bos: Orchestrator, platform: Platform) -> str:
    """A batch of two essays whose spellcheck is complete."""
    await platform.send(registered(batch, ["e1", "e2"]))
    await platform.send(spellchecked(batch, "e1"))
    await platform.send(spellchecked(batch, "e2"))

    async def pruned() -> bool:
        return await bos.to_run(batch) == ["ai_feedback"]

    await wait_until(pruned)
    return batch


async def test_what_redis_forgets_the_record_knows(
    spellchecked_batch: str, bos: Orchestrator, flush: Callable[[], Any]
) -> None:
    await flush()
    assert await bos.to_run(spellchecked_batch) == ["ai_feedback"]
