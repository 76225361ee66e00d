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
from tests.integration.record_world import RecordWorld
from tests.support.past import AT_US
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

BEGUN: list[Fact] = [
    EssaysRegistered(("e1", "e2"), 2, AT_US),
    EssayPhaseEnded("spellcheck", "e1", Outcome.COMPLETED, AT_US),
]
DONE: list[Fact] = [EssayPhaseEnded("spellcheck", "e2", Outcome.COMPLETED, AT_US)]
UNDONE: list[Fact] = [EssayPhaseEnded("spellcheck", "e1", Outcome.FAILED, AT_US + 1)]


@pytest.fixture
async def world(tmp_path: Path, database_url: str) -> AsyncIterator[RecordWorld]:
    async with RecordWorld(tmp_path, database_url) as world:
        yield world


async def to_run(world: RecordWorld, batch: str) -> list[str]:
    answer = await world.resolve(batch)
    assert answer.status == 200, answer.body
    phases: list[str] = answer.json["final_pipeline"]
    return phases


async def test_a_redis_that_lost_its_last_seconds_is_backfilled(world: RecordWorld, batch: str) -> None:
    await world.notify(batch, BEGUN)
    lagging = await world.snapshot()
    await world.notify(batch, DONE)
    assert await to_run(world, batch) == ["ai_feedback"]
    await world.roll_back(lagging)
    assert await to_run(world, batch) == ["ai_feedback"]


async def test_a_redis_that_lost_data_gives_no_answers_without_the_archive(world: RecordWorld, batch: str) -> None:
    await world.notify(batch, [*BEGUN, *DONE])
    lagging = await world.snapshot()
    await world.notify(batch, UNDONE)
    world.database_proxy.refuse()
    await world.database_proxy.cut()
    await world.roll_back(lagging, wait=False)

    async def refused() -> bool:
        answer = await world.resolve(batch)
        assert answer.status == 503 or answer.json["final_pipeline"] == ["spellcheck", "ai_feedback"], answer.body
        return answer.status == 503 and b"postgresql" in answer.body

    await wait_until(refused)
    world.database_proxy.accept()
    await world.reached_again()
    assert await to_run(world, batch) == ["spellcheck", "ai_feedback"]


async def test_who_writes_to_a_redis_that_lost_its_last_seconds_writes_those_too(
    world: RecordWorld, batch: str
) -> None:
    await world.notify(batch, [*BEGUN, *DONE])
    lagging = await world.snapshot()
    await world.notify(batch, UNDONE)
    await world.roll_back(lagging)
    later = EssayPhaseEnded("nlp", "e1", Outcome.COMPLETED, AT_US)
    await world.notify(batch, [later])
    assert await world.stored(batch) == delta_of([*BEGUN, *DONE, *UNDONE, later])
    assert await to_run(world, batch) == ["spellcheck", "ai_feedback"]


async def test_a_record_that_was_made_anew_gets_what_redis_knows(
    world: RecordWorld, database_url: str, batch: str
) -> None:
    await world.notify(batch, [*BEGUN, *DONE])
    archive = world.running.service.persistence.archive
    assert archive is not None
    before = archive.postgres.identity
    connection = await asyncpg.connect(database_url)
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()
    await wait_until(lambda: archive.postgres.reachable and archive.postgres.identity != before)
    assert await to_run(world, batch) == ["ai_feedback"]
    await world.flush()
    assert await to_run(world, batch) == ["ai_feedback"]


async def tells(world: RecordWorld, cause: str) -> bool:
    """True if `/healthz` names this problem of Redis."""
    redis = (await world.bos.get("/healthz")).json["dependencies"]["redis"]
    return redis["status"] == "unhealthy" and cause in redis["message"]


NO_INFO = ("--user", "bcs", "on", ">secret", "~*", "+@all", "-info")


async def test_a_redis_that_tells_no_identity_is_never_trusted(
    tmp_path: Path, database_url: str, batch: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with RecordWorld(tmp_path, database_url, redis_options=NO_INFO, redis_login="bcs:secret@") as world:
        await world.notify(batch, [*BEGUN, *DONE])
        assert await to_run(world, batch) == ["ai_feedback"]
        lagging = await world.snapshot()
        await world.notify(batch, UNDONE)
        await world.roll_back(lagging)
        assert await to_run(world, batch) == ["spellcheck", "ai_feedback"]

        [cause] = [vars(record)["cause"] for record in caplog.records if record.msg == "redis_identity_unknown"]
        # It asks nobody: what the rollback's restart cut off stands there until the next look.
        await wait_until(partial(tells, world, "'info'"))
        [finding] = [one for one in await check_redis(world.running.service.settings) if one.check == "redis identity"]
        assert finding.status is Status.WARNING
        assert "'info'" in cause
        assert "'info'" in finding.found

        world.database_proxy.refuse()
        await world.database_proxy.cut()

        async def refused() -> bool:
            answer = await world.resolve(batch)
            assert answer.status == 503 or answer.json["final_pipeline"] == ["spellcheck", "ai_feedback"], answer.body
            return answer.status == 503 and b"postgresql" in answer.body

        await wait_until(refused)
