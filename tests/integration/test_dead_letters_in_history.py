"""The history of a batch tells of its dead letters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

from bcs.storage.redis.batch_codec import BatchKeys
from tests.support.commands import bcs, settings_of
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator, RunningService, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def service(redis_url: str, module_database_url: str, kafka_bootstrap_servers: str) -> Iterator[RunningService]:
    with service_in_thread(
        redis_url=redis_url,
        database_url=module_database_url,
        kafka_bootstrap_servers=kafka_bootstrap_servers,
        max_essays_per_batch=3,
    ) as service:
        yield service


async def test_an_event_and_a_request_that_became_dead_letters_are_in_the_history(
    service: RunningService, orchestrator: Orchestrator, platform: Platform, batch: str, redis_url: str
) -> None:
    await platform.send(registered(batch, ["a", "b", "c"]))
    await wait_until(lambda: platform.caught_up(service.group))
    await platform.send(spellchecked(batch, "one-too-many"))
    path = f"/internal/v1/batches/{batch}/history"

    async def dead_letters() -> list[dict[str, object]]:
        entries: list[dict[str, object]] = (await orchestrator.request("GET", f"{path}?type=DeadLettered")).json[
            "entries"
        ]
        return entries

    [event] = await wait_until(dead_letters)
    assert event["facts"] == []
    assert str(event["reason"]).startswith("too_many_essays: ")
    assert isinstance(event["source"], dict)
    assert event["source"]["topic"] == "huleedu.batch.spellcheck.phase.completed.v1"
    for query in ("type=facts", "type=SpellcheckPhaseCompletedV1", "type=PhaseReported"):
        entries = (await orchestrator.request("GET", f"{path}?{query}")).json["entries"]
        assert "DeadLettered" not in [entry["event_type"] for entry in entries]

    other = f"{batch}-corrupt"
    async with Redis.from_url(redis_url) as redis:
        await redis.set(BatchKeys(service.service.settings.redis_key_prefix, other).facts, "not a hash")
    failed = await orchestrator.define(other, "ai_feedback")
    assert failed.status == 500
    path = f"/internal/v1/batches/{other}/history"
    [request] = await wait_until(dead_letters, ignoring=(KeyError,))
    assert str(request["reason"]).startswith("pipeline_resolution_failed: ")
    assert request["source"] is None
    url = service.service.settings.database_url
    assert url is not None
    ran = await bcs("batches", "history", other, **settings_of(service), BCS_DATABASE_URL=url.get_secret_value())
    assert "became a dead letter: pipeline_resolution_failed" in ran.output
