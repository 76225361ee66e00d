"""Completions are taken back while Redis or PostgreSQL is away: in full, or not at all, and with a clear refusal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome, PhaseInvalidated
from bcs.domain.state import BatchState
from tests.integration.service_with_archive import ServiceWithArchive
from tests.support.commands import bcs
from tests.support.fault_proxy import FaultProxy
from tests.support.history_entries import AT_US
from tests.support.service import Answer
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.release]

FACTS: list[Fact] = [EssaysRegistered(("e1",), 1, AT_US), EssayPhaseEnded("spellcheck", "e1", Outcome.COMPLETED, AT_US)]
ORDER = ("--phase", "spellcheck", "--reason", "a wrong dictionary")


@pytest.fixture
async def setup(tmp_path: Path, database_url: str, batch: str) -> AsyncIterator[ServiceWithArchive]:
    """A service that knows a batch in Redis and in PostgreSQL."""
    async with ServiceWithArchive(tmp_path, database_url) as setup:
        await setup.apply(batch, FACTS)
        await setup.wait_for_archive()
        assert (await setup.resolve(batch)).json["pruned_phases"] == ["spellcheck"]
        yield setup


async def cut_off(proxy: FaultProxy) -> None:
    proxy.refuse()
    await proxy.cut()


async def invalidate(setup: ServiceWithArchive, batch: str, **fields: object) -> Answer:
    body = {"phases": ["spellcheck"], "reason": "a wrong dictionary", **fields}
    return await setup.orchestrator.request("POST", f"/internal/v1/batches/{batch}/invalidate", json=body)


async def stored(setup: ServiceWithArchive, batch: str) -> tuple[BatchState, list[object]]:
    """What PostgreSQL has of the batch, and its entries with facts."""
    entries = [facts for facts in await setup.history_facts(batch) if facts]
    return await setup.archive.state(batch), list(entries)


@pytest.mark.parametrize("frozen", [False, True], ids=["refuses", "hangs"])
async def test_without_redis_it_is_refused_and_nothing_is_changed(
    setup: ServiceWithArchive, batch: str, frozen: bool
) -> None:
    before, redis = await stored(setup, batch), await setup.snapshot()
    if frozen:
        setup.redis_proxy.freeze()
    else:
        await cut_off(setup.redis_proxy)
    answer = await invalidate(setup, batch)
    assert answer.status == 503
    assert answer.json["type"] == "urn:bcs:problem:unavailable"
    assert "redis" in answer.json["detail"]
    assert int(answer.headers["Retry-After"]) >= 1
    for options in (("--yes",), ("--dry-run",), ()):
        ran = await bcs("batches", "invalidate", batch, *ORDER, *options, "--url", setup.running.base, given="y\n")
        assert (ran.exit_code, ran.output) == (1, "")
        [line] = ran.error.splitlines()
        assert "503 Service Unavailable: redis " in line
        assert "try again in" in line
    setup.redis_proxy.thaw()
    setup.redis_proxy.accept()
    await setup.wait_for_redis()
    await setup.wait_for_archive()
    assert await stored(setup, batch) == before
    facts = [key for key in redis if batch.encode() in key]
    after = await setup.snapshot()
    assert [after[key][1] for key in facts] == [redis[key][1] for key in facts]
    # It can be repeated.
    assert (await invalidate(setup, batch)).status == 200


async def test_without_postgresql_it_is_durable_in_the_queue_before_it_is_answered(
    setup: ServiceWithArchive, batch: str
) -> None:
    await cut_off(setup.database_proxy)
    archive = setup.running.service.persistence.archive
    assert archive
    await wait_until(lambda: not archive.postgres.reachable)
    answer = await invalidate(setup, batch)
    assert answer.status == 200, answer.body
    assert answer.json["no_longer_complete"] == ["spellcheck"]
    assert (await setup.resolve(batch)).json["final_pipeline"] == ["spellcheck", "ai_feedback"]
    await setup.restart()
    setup.database_proxy.accept()
    await setup.wait_for_archive()
    [*_, (invalidated,)] = await setup.history_facts(batch)
    assert isinstance(invalidated, PhaseInvalidated)


async def test_a_copy_that_may_lack_facts_is_no_ground_for_it(setup: ServiceWithArchive, batch: str) -> None:
    before = await stored(setup, batch)
    await setup.flush()
    await cut_off(setup.database_proxy)
    answer = await invalidate(setup, batch)
    assert answer.status == 503, answer.body
    assert answer.json["type"] == "urn:bcs:problem:unavailable"
    ran = await bcs("batches", "invalidate", batch, *ORDER, "--yes", "--url", setup.running.base)
    assert (ran.exit_code, ran.output) == (1, "")
    assert "503 Service Unavailable: postgresql " in ran.error
    setup.database_proxy.accept()
    await setup.wait_for_archive()
    assert await stored(setup, batch) == before
    assert (await setup.resolve_in_the_end(batch)).json["pruned_phases"] == ["spellcheck"]
