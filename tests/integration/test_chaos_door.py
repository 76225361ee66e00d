"""The door through which operators look at the actors, and kill them."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from urllib.parse import quote

import aiohttp
import anyio
import anyio.abc
import pytest

from bcs.observability.failpoints import FailPoint
from tests.support.events import spellchecked
from tests.support.kafka import Platform
from tests.support.service import Answer, Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

ACTORS = ["metrics", "publisher", "batches", "intake", "http"]


@pytest.fixture
async def service(redis_url: str) -> AsyncIterator[RunningService]:
    async with running_service(
        redis_url=redis_url,
        kafka_bootstrap_servers="127.0.0.1:1",
        chaos_enabled=True,
        shutdown_seconds=2.0,
        restart_backoff_maximum_seconds=0.05,
    ) as running:
        yield running


@pytest.fixture
async def orchestrator(service: RunningService) -> AsyncIterator[Orchestrator]:
    async with Orchestrator(service.base) as orchestrator:
        yield orchestrator


async def tree(orchestrator: Orchestrator) -> dict[str, Any]:
    answer = await orchestrator.get("/internal/v1/actors")
    assert answer.status == 200
    document: dict[str, Any] = answer.json
    return document


async def child(orchestrator: Orchestrator, name: str) -> dict[str, Any]:
    return next(child for child in (await tree(orchestrator))["children"] if child["path"] == name)


async def kill(orchestrator: Orchestrator, name: str) -> Answer:
    return await orchestrator.request("POST", f"/internal/v1/actors/{name}/kill")


async def test_the_tree_is_shown(orchestrator: Orchestrator) -> None:
    document = await tree(orchestrator)
    assert (document["name"], document["kind"], document["state"]) == ("bcs", "supervisor", "running")
    assert [child["path"] for child in document["children"]] == ACTORS
    assert {child["state"] for child in document["children"]} == {"running"}
    by_name = {child["name"]: child for child in document["children"]}
    assert by_name["batches"]["kind"] == "dynamic"
    assert by_name["publisher"]["mailbox"]["capacity"] == 1
    assert by_name["intake"]["mailbox"]["capacity"] is None, "unbounded, and JSON has no infinity"
    assert by_name["http"]["mailbox"] is None


@pytest.mark.parametrize("name", ACTORS)
async def test_an_actor_is_killed_and_comes_back(orchestrator: Orchestrator, name: str) -> None:
    before = await child(orchestrator, name)
    answer = await kill(orchestrator, name)
    assert answer.status == 202, answer.body
    assert answer.json == {"status": "killed", "actor": name}

    async def is_back() -> bool:
        now = await child(orchestrator, name)
        return bool(now["incarnation"] == before["incarnation"] + 1 and now["state"] == "running")

    await wait_until(is_back)
    assert (await child(orchestrator, name))["last_error"] == "killed over HTTP"
    assert (await orchestrator.get("/healthz")).status == 200


async def test_http_that_kills_itself_answers_and_keeps_its_backlog(orchestrator: Orchestrator) -> None:
    assert await orchestrator.metric("bcs_restart_intensity_used_ratio", supervisor="bcs") == 0
    for _ in range(5):
        # Each call has a connection of its own. The second one comes while HTTP is away: it waits, and is served.
        assert (await kill(orchestrator, "http")).status == 202
        assert (await orchestrator.define("any")).status == 200
    # Five of the ten restarts that a minute may have.
    assert await orchestrator.metric("bcs_restart_intensity_used_ratio", supervisor="bcs") == 0.5
    assert await orchestrator.metric("bcs_restart_intensity_used_ratio", supervisor="batches") == 0


async def test_a_batch_s_actor_is_killed_by_the_batch_s_id(redis_url: str, module_kafka: str) -> None:
    batch_id = "class 5/b: läsning 100%"
    held = threading.Event()

    async def hold(point: FailPoint, subject: str) -> None:
        if point is FailPoint.BATCH_RECEIVED and subject == batch_id and not held.is_set():
            held.set()
            await anyio.sleep_forever()

    async with (
        running_service(hold, redis_url=redis_url, kafka_bootstrap_servers=module_kafka, chaos_enabled=True) as service,
        Orchestrator(service.base) as orchestrator,
        Platform(module_kafka) as platform,
    ):
        await platform.send(spellchecked(batch_id, "essay"))
        await wait_until(held.is_set)
        [at_work] = (await child(orchestrator, "batches"))["children"]
        assert at_work["path"] == f"batches/{batch_id}"
        assert at_work["mailbox"]["depth"] == 1
        # aiohttp's client would take the percent-encoding apart.
        answer = await kill(orchestrator, quote(at_work["path"], safe=""))
        assert answer.status == 202, answer.body
        await wait_until(partial(platform.caught_up, service.group))
        assert await orchestrator.to_run(batch_id) == ["ai_feedback"]
        assert await orchestrator.metric("bcs_actor_restarts_total", actor="batches/*") == 1


@pytest.mark.parametrize("name", ["nobody", "intake/below", "batches/no-such-batch", "batches/a\nb", "bcs", "a/kill/b"])
async def test_an_unknown_name_is_not_found(orchestrator: Orchestrator, name: str) -> None:
    answer = await kill(orchestrator, quote(name, safe=""))
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["type"] == "urn:bcs:problem:unknown-actor"
    assert answer.json["known_actors"] == ACTORS
    assert {child["restarts"] for child in (await tree(orchestrator))["children"]} == {0}


async def test_one_that_is_away_already_is_a_conflict(service: RunningService, orchestrator: Orchestrator) -> None:
    # Killed twice in one turn of the loop: the second one finds it ending.
    def kill_twice() -> tuple[bool, bool]:
        return service.service.root.kill("metrics"), service.service.root.kill("metrics")

    assert service.call(kill_twice) == (True, False)


async def test_the_door_is_closed_unless_it_is_opened(redis_url: str) -> None:
    async with (
        running_service(redis_url=redis_url, kafka_bootstrap_servers="127.0.0.1:1", shutdown_seconds=2.0) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        for name in ("intake", "nobody"):
            answer = await kill(orchestrator, name)
            assert answer.status == 403
            assert answer.json["type"] == "urn:bcs:problem:chaos-disabled"
        assert {child["restarts"] for child in (await tree(orchestrator))["children"]} == {0}


async def test_callers_of_http_that_is_killed_get_an_answer_or_a_reset(orchestrator: Orchestrator) -> None:
    statuses: list[int | str] = []

    async def ask() -> None:
        try:
            statuses.append((await orchestrator.define("any")).status)
        except aiohttp.ClientConnectorError:
            statuses.append("refused")
        except aiohttp.ClientConnectionError:
            statuses.append("reset")

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(ask)
        assert (await kill(orchestrator, "http")).status == 202
    assert set(statuses) <= {200, "reset"}
    assert len(statuses) == 50
    assert statuses.count(200) >= 25, "whoever is in hand is answered, and whoever waits in the backlog is served"
