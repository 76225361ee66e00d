"""One of the two stores goes back to earlier data, and is completed from the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome
from bcs.domain.state import delta_of
from bcs.ops.doctor.findings import Status
from bcs.ops.doctor.redis_checks import check_redis
from tests.integration.service_with_archive import ServiceWithArchive
from tests.support.history_entries import AT_US
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

BEGUN: list[Fact] = [
    EssaysRegistered(("e1", "e2"), 2, AT_US),
    EssayPhaseEnded("spellcheck", "e1", Outcome.COMPLETED, AT_US),
]
DONE: list[Fact] = [EssayPhaseEnded("spellcheck", "e2", Outcome.COMPLETED, AT_US)]
UNDONE: list[Fact] = [EssayPhaseEnded("spellcheck", "e1", Outcome.FAILED, AT_US + 1)]


@pytest.fixture
async def setup(tmp_path: Path, database_url: str) -> AsyncIterator[ServiceWithArchive]:
    async with ServiceWithArchive(tmp_path, database_url) as setup:
        yield setup


async def to_run(setup: ServiceWithArchive, batch: str) -> list[str]:
    answer = await setup.resolve(batch)
    assert answer.status == 200, answer.body
    phases: list[str] = answer.json["final_pipeline"]
    return phases


async def test_a_redis_that_lost_its_last_seconds_is_backfilled(setup: ServiceWithArchive, batch: str) -> None:
    await setup.apply(batch, BEGUN)
    lagging = await setup.snapshot()
    await setup.apply(batch, DONE)
    assert await to_run(setup, batch) == ["ai_feedback"]
    await setup.roll_back(lagging)
    assert await to_run(setup, batch) == ["ai_feedback"]


async def test_a_redis_that_lost_data_gives_no_answers_without_the_archive(
    setup: ServiceWithArchive, batch: str
) -> None:
    await setup.apply(batch, [*BEGUN, *DONE])
    lagging = await setup.snapshot()
    await setup.apply(batch, UNDONE)
    setup.database_proxy.refuse()
    await setup.database_proxy.cut()
    await setup.roll_back(lagging, wait=False)

    async def refused() -> bool:
        answer = await setup.resolve(batch)
        assert answer.status == 503 or answer.json["final_pipeline"] == ["spellcheck", "ai_feedback"], answer.body
        return answer.status == 503 and b"postgresql" in answer.body

    await wait_until(refused)
    setup.database_proxy.accept()
    await setup.wait_for_archive()
    assert await to_run(setup, batch) == ["spellcheck", "ai_feedback"]


async def test_a_commit_after_a_rollback_restores_the_lost_facts(setup: ServiceWithArchive, batch: str) -> None:
    await setup.apply(batch, [*BEGUN, *DONE])
    lagging = await setup.snapshot()
    await setup.apply(batch, UNDONE)
    await setup.roll_back(lagging)
    later = EssayPhaseEnded("nlp", "e1", Outcome.COMPLETED, AT_US)
    await setup.apply(batch, [later])
    assert await setup.state(batch) == delta_of([*BEGUN, *DONE, *UNDONE, later])
    assert await to_run(setup, batch) == ["spellcheck", "ai_feedback"]


async def test_a_new_archive_gets_the_facts_that_redis_has(
    setup: ServiceWithArchive, database_url: str, batch: str
) -> None:
    await setup.apply(batch, [*BEGUN, *DONE])
    archive = setup.running.service.persistence.archive
    assert archive is not None
    before = archive.postgres.identity
    connection = await asyncpg.connect(database_url)
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()
    await wait_until(lambda: archive.postgres.reachable and archive.postgres.identity != before)
    assert await to_run(setup, batch) == ["ai_feedback"]
    await setup.flush()
    assert await to_run(setup, batch) == ["ai_feedback"]


async def tells(setup: ServiceWithArchive, cause: str) -> bool:
    """True if `/healthz` names this problem of Redis."""
    redis = (await setup.orchestrator.get("/healthz")).json["dependencies"]["redis"]
    return redis["status"] == "unhealthy" and cause in redis["message"]


NO_INFO = ("--user", "bcs", "on", ">secret", "~*", "+@all", "-info")


async def test_a_redis_without_an_identity_is_never_trusted(
    tmp_path: Path, database_url: str, batch: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ServiceWithArchive(tmp_path, database_url, redis_options=NO_INFO, redis_login="bcs:secret@") as setup:
        await setup.apply(batch, [*BEGUN, *DONE])
        assert await to_run(setup, batch) == ["ai_feedback"]
        lagging = await setup.snapshot()
        await setup.apply(batch, UNDONE)
        await setup.roll_back(lagging)
        assert await to_run(setup, batch) == ["spellcheck", "ai_feedback"]

        [cause] = [vars(record)["cause"] for record in caplog.records if record.msg == "redis_identity_unknown"]
        # It asks nobody: what the rollback's restart cut off stands there until the next look.
        await wait_until(partial(tells, setup, "'info'"))
        [finding] = [one for one in await check_redis(setup.running.service.settings) if one.check == "redis identity"]
        assert finding.status is Status.WARNING
        assert "'info'" in cause
        assert "'info'" in finding.found

        setup.database_proxy.refuse()
        await setup.database_proxy.cut()

        async def refused() -> bool:
            answer = await setup.resolve(batch)
            assert answer.status == 503 or answer.json["final_pipeline"] == ["spellcheck", "ai_feedback"], answer.body
            return answer.status == 503 and b"postgresql" in answer.body

        await wait_until(refused)
