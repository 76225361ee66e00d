"""Batches are found by their state and their last change, in the archive and in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlencode

import anyio.to_thread
import asyncpg
import pytest
from yarl import URL

from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome
from bcs.domain.state import delta_of
from tests.support.commands import bcs, settings_of
from tests.support.history_entries import AT_US, answered, consumed
from tests.support.service import Answer, Orchestrator, RunningService, running_service, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

BATCHES = "/internal/v1/batches"


@pytest.fixture(scope="module", params=["redis", "postgresql", pytest.param("memory", marks=pytest.mark.release)])
def service(request: pytest.FixtureRequest, redis_url: str) -> Iterator[RunningService]:
    settings: dict[str, object] = {"redis_url": redis_url, "kafka_bootstrap_servers": "127.0.0.1:1"}
    if request.param == "postgresql":
        settings["database_url"] = request.getfixturevalue("module_database_url")
    settings["use_mock_repository"] = request.param == "memory"
    with service_in_thread(**settings) as service:
        yield service


async def put(service: RunningService, batch: str, *facts: Fact) -> None:
    """Store facts as the actor of the batch does."""
    archive = service.service.persistence.archive

    async def write() -> None:
        if archive:
            await archive.postgres.write([consumed(batch, *facts)])
        await service.service.store.commit(batch, delta_of(facts))

    await anyio.to_thread.run_sync(service.run, write)


def roster(*essays: str) -> Fact:
    return EssaysRegistered(essays, len(essays), AT_US)


def ended(essay: str, outcome: Outcome = Outcome.COMPLETED, phase: str = "spellcheck") -> Fact:
    return EssayPhaseEnded(phase, essay, outcome, AT_US)


async def get(orchestrator: Orchestrator, **query: object) -> Answer:
    return await orchestrator.request("GET", URL(f"{BATCHES}?{urlencode(query)}", encoded=True))


async def pages(orchestrator: Orchestrator, **query: object) -> AsyncIterator[dict[str, Any]]:
    following = f"{BATCHES}?{urlencode(query)}"
    while following:
        answer = await orchestrator.request("GET", URL(following, encoded=True))
        assert answer.status == 200, answer.body
        yield answer.json
        following = answer.json["next"]


async def found(orchestrator: Orchestrator, prefix: str, **query: object) -> list[str]:
    """The batches of a test, in their order; others use the same stores."""
    return [
        batch["batch_id"].removeprefix(prefix)
        async for page in pages(orchestrator, **query)
        for batch in page["batches"]
        if batch["batch_id"].startswith(prefix)
    ]


async def is_found(orchestrator: Orchestrator, prefix: str, *names: str) -> None:
    async def all_there() -> bool:
        return set(await found(orchestrator, prefix)) >= set(names)

    await wait_until(all_there)


async def test_a_batch_is_found_by_each_state_that_holds(
    service: RunningService, orchestrator: Orchestrator, batch: str
) -> None:
    await put(service, f"{batch}-done", roster("e1"), ended("e1"))
    await put(service, f"{batch}-failed", roster("e1", "e2"), ended("e1"), ended("e2", Outcome.FAILED))
    await put(service, f"{batch}-waits", roster("e1", "e2"), ended("e1"))
    await put(service, f"{batch}-loose", ended("e1", phase="nlp"))
    await is_found(orchestrator, batch, "-done", "-failed", "-waits", "-loose")

    async def names(**query: object) -> set[str]:
        return set(await found(orchestrator, batch, **query))

    assert await names(phase="spellcheck") == {"-done", "-failed", "-waits"}
    assert await names(pipeline="nlp") == {"-done", "-failed", "-waits", "-loose"}
    assert await names(state="blocked") == {"-failed"}
    assert await names(state="blocked", pipeline="nlp") == {"-failed"}
    assert await names(state="blocked", phase="nlp") == set()
    assert await names(state="complete") == {"-done", "-loose"}
    assert await names(state="complete", phase="spellcheck") == {"-done"}
    assert await names(state="incomplete", phase="spellcheck") == {"-failed", "-waits", "-loose"}
    assert await names(state="unregistered") == {"-loose"}
    assert await names(state="stale") == set()
    assert await names(since="2020-01-01T00:00:00Z") == {"-done", "-failed", "-waits", "-loose"}
    assert await names(until="2020-01-01T00:00:00Z") == set()
    assert await names(since="2100-01-01T00:00:00Z") == set()
    answer = (await get(orchestrator, limit=500)).json
    [failed] = [one for one in answer["batches"] if one["batch_id"] == f"{batch}-failed"]
    assert failed.pop("changed_at") > "2025"
    assert failed == {
        "batch_id": f"{batch}-failed",
        "registered": True,
        "essays_known": 2,
        "essays_expected": 2,
        "states": ["blocked", "incomplete"],
        "phases": [
            {
                "phase": "spellcheck",
                "complete": False,
                "completed": 1,
                "failed": 1,
                "failed_before": 0,
                "left_out": 0,
                "blocked_by_failures": True,
            }
        ],
    }
    assert answer["unreadable"] == []
    assert answer["source"] == service.service.persistence.store_name or answer["source"] == "postgresql"


async def test_no_batch_is_left_out_while_others_come_and_change(
    service: RunningService, orchestrator: Orchestrator, batch: str
) -> None:
    names = [f"-{number:02}" for number in range(12)]
    for name in names:
        await put(service, f"{batch}{name}", roster("e1"))
    await is_found(orchestrator, batch, *names)
    seen: list[str] = []
    number = 0
    async for page in pages(orchestrator, limit=3):
        assert len(page["batches"]) <= 3
        seen += [one["batch_id"].removeprefix(batch) for one in page["batches"] if one["batch_id"].startswith(batch)]
        # The first that came changes while the pages are read, and leaves its place for the front.
        if number == 1:
            await put(service, f"{batch}{names[0]}", ended("e1"))
            await put(service, f"{batch}-new", roster("e1"))
            await is_found(orchestrator, batch, "-new")
        number += 1
    assert set(seen) >= set(names)


async def test_what_is_only_asked_for_is_not_found(
    service: RunningService, orchestrator: Orchestrator, batch: str
) -> None:
    archive = service.service.persistence.archive
    if archive:
        await anyio.to_thread.run_sync(service.run, archive.postgres.write, [answered(batch)])
    assert (await orchestrator.define(batch, "ai_feedback")).status == 200
    await put(service, f"{batch}-known", roster("e1"))
    await is_found(orchestrator, batch, "-known")
    assert await found(orchestrator, batch) == ["-known"]


@pytest.mark.parametrize("service", ["postgresql"], indirect=True)
async def test_a_question_about_a_batch_is_no_change(
    service: RunningService, orchestrator: Orchestrator, batch: str
) -> None:
    archive = service.service.persistence.archive
    assert archive is not None
    await put(service, batch, roster("e1"))
    before = (await get(orchestrator, limit=1)).json["batches"]
    await anyio.to_thread.run_sync(service.run, archive.postgres.write, [answered(batch)])
    assert (await get(orchestrator, limit=1)).json["batches"] == before


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"state": "odd"}, "state"),
        ({"phase": "odd"}, "phase"),
        ({"phase": "nlp", "pipeline": "nlp"}, "phase"),
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"cursor": "odd"}, "cursor"),
        ({"cursor": "WzEsMl0"}, "cursor"),
        ({"stale_seconds": 0}, "stale_seconds"),
    ],
)
async def test_an_invalid_parameter_is_named(orchestrator: Orchestrator, query: dict[str, object], field: str) -> None:
    answer = await get(orchestrator, **query)
    assert answer.status == 400, answer.body
    assert [error["field"] for error in answer.json["errors"]] == [field]


async def test_an_unknown_pipeline_is_no_empty_page(orchestrator: Orchestrator) -> None:
    answer = await get(orchestrator, pipeline="odd")
    assert answer.status == 404
    assert answer.json["type"] == "urn:bcs:problem:unknown-pipeline"


@pytest.mark.release  # each command takes a second
async def test_the_command_finds_what_the_service_finds(
    service: RunningService, orchestrator: Orchestrator, batch: str
) -> None:
    url = service.service.settings.database_url
    settings = {**settings_of(service), **({"BCS_DATABASE_URL": url.get_secret_value()} if url else {})}
    if service.service.settings.use_mock_repository:
        ran = await bcs("batches", "list", **settings, BCS_USE_MOCK_REPOSITORY="1")
        assert (ran.exit_code, ran.output) == (2, "")
        return
    await put(service, f"{batch}-failed", roster("e1", "e2"), ended("e1"), ended("e2", Outcome.FAILED))
    await put(service, f"{batch}-done", roster("e1"), ended("e1"))
    await is_found(orchestrator, batch, "-failed", "-done")
    ran = await bcs("batches", "list", "--state", "blocked", "--since", "1h", "--json", **settings)
    assert (ran.exit_code, ran.error) == (0, "")
    answer = (await get(orchestrator, state="blocked", limit=500)).json
    assert ran.json == answer
    ran = await bcs("batches", "list", "--phase", "spellcheck", "--limit", "1", **settings)
    assert ran.exit_code == 0, ran.error
    first, cursor = ran.output.split("--cursor ")
    assert "1 batch found" in first
    assert (await bcs("batches", "list", "--cursor", cursor.strip(), **settings)).exit_code == 0
    ran = await bcs("batches", "list", "--pipeline", "odd", **settings)
    assert (ran.exit_code, ran.output) == (1, "")
    ran = await bcs("batches", "list", "--since", "odd", **settings)
    assert ran.exit_code == 2
    assert "90m" in ran.error


@pytest.mark.parametrize("service", ["postgresql"], indirect=True)
async def test_a_batch_that_only_the_release_before_wrote_is_found_by_its_day(
    service: RunningService, orchestrator: Orchestrator, batch: str
) -> None:
    await put(service, batch, roster("e1"))
    url = service.service.settings.database_url
    assert url is not None
    connection = await asyncpg.connect(url.get_secret_value())
    try:
        await connection.execute(
            "UPDATE batches SET changed_at = NULL, listed_at = NULL, touched_on = '2026-01-02' WHERE batch_id = $1",
            batch,
        )
    finally:
        await connection.close()
    day = {"since": "2026-01-01T12:00:00Z", "until": "2026-01-02T12:00:00Z"}
    [found_batch] = (await get(orchestrator, **day)).json["batches"]
    assert (found_batch["batch_id"], found_batch["changed_at"]) == (batch, "2026-01-02T00:00:00.000000Z")
    await put(service, batch, ended("e1"))
    assert (await get(orchestrator, **day)).json["batches"] == []


@pytest.mark.release  # it takes a second until they are stale
async def test_an_incomplete_batch_without_a_change_is_stale(
    service: RunningService, orchestrator: Orchestrator, batch: str
) -> None:
    await put(service, f"{batch}-done", roster("e1"), ended("e1"))
    await put(service, f"{batch}-waits", roster("e1", "e2"), ended("e1"))

    async def stale() -> list[str]:
        return await found(orchestrator, batch, state="stale", stale_seconds=1)

    assert await stale() == []
    assert await wait_until(stale) == ["-waits"]
    await put(service, f"{batch}-waits", ended("e1", phase="nlp"))
    assert await stale() == []


@pytest.mark.release
@pytest.mark.parametrize("away", ["redis_url", "database_url"])
async def test_nothing_is_found_while_the_store_is_away(redis_url: str, away: str) -> None:
    nowhere = {"redis_url": "redis://127.0.0.1:1", "database_url": "postgresql://nobody@127.0.0.1:1/nothing"}[away]
    settings: dict[str, object] = {"redis_url": redis_url, "kafka_bootstrap_servers": "127.0.0.1:1", away: nowhere}
    async with running_service(**settings) as service, Orchestrator(service.base) as caller:
        answer = await get(caller)
        assert (answer.status, answer.json["type"]) == (503, "urn:bcs:problem:unavailable")
