"""A batch with foreign data under its keys is refused and reported at once, and blocks no other."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from aiokafka import ConsumerRecord

from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.gateway import RedisGateway
from bcs.wire import topics
from bcs.wire.dead_letters.encode import RESOLUTION_FAILED
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import DEFINE, Orchestrator, RunningService
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

EVENTS = 50
PROMPT_SECONDS = 2.0


@pytest.fixture
async def bad(unique_name: Callable[[str], str], gateway: RedisGateway, service: RunningService) -> str:
    batch = unique_name("bad")
    await gateway.call(("SET", BatchKeys(service.service.settings.redis_key_prefix, batch).facts, "junk"))
    return batch


async def test_its_events_become_dead_letters_and_other_batches_go_on(
    service: RunningService,
    kafka_bootstrap_servers: str,
    orchestrator: Orchestrator,
    bad: str,
    unique_name: Callable[[str], str],
) -> None:
    before = service.restarts()
    good, essays = unique_name("good"), [f"essay-{number}" for number in range(EVENTS)]
    async with Platform(kafka_bootstrap_servers) as platform:
        bad_events = [spellchecked(bad, essay) for essay in essays]
        good_events = [spellchecked(good, essay) for essay in essays]
        sent = await platform.send(*bad_events)
        await platform.send(registered(good, essays), *good_events)
        await wait_until(lambda: platform.caught_up(service.group), 10, description="all offsets are committed")
        assert await orchestrator.to_run(good) == ["ai_feedback"]

        async def all_letters() -> list[ConsumerRecord] | None:
            found = await platform.messages(topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED), bad)
            return found if len(found) >= EVENTS else None

        records = await wait_until(all_letters)
    letters = [json.loads(record.value) for record in records]
    assert {letter["dlq_reason"] for letter in letters} == {"processing_failed"}
    positions = [
        (about["source_partition"], about["source_offset"])
        for about in (letter["additional_metadata"] for letter in letters)
    ]
    assert sorted(positions) == sorted((taken.partition, taken.offset) for taken in sent), "one letter for each"
    assert all(any(event.value in record.value for record in records) for event in bad_events)
    assert service.restarts() == before
    assert not await orchestrator.metric("bcs_actor_restarts_total", actor="batches/*")


async def test_a_report_on_it_is_answered_at_once(orchestrator: Orchestrator, bad: str) -> None:
    watch = Stopwatch()
    answer = await orchestrator.complete(bad, "spellcheck")
    assert watch.seconds < PROMPT_SECONDS
    assert answer.status == 500, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"


async def test_a_resolution_of_it_fails_and_becomes_a_dead_letter(
    kafka_bootstrap_servers: str, orchestrator: Orchestrator, bad: str
) -> None:
    request = {
        "correlation_id": "strange order, strange spaces",
        "batch_id": bad,
        "requested_pipeline": "ai_feedback",
        "batch_metadata": {"prompt_attached": True, "prompt_source": "context", "assignment_id": "assignment-7"},
        "from the future": [1.50, "ä"],
    }
    body = json.dumps(request, indent=3, ensure_ascii=False).encode()
    watch = Stopwatch()
    answer = await orchestrator.request("POST", DEFINE, data=body, headers={"Content-Type": "application/json"})
    assert watch.seconds < PROMPT_SECONDS
    assert answer.status == 500, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["correlation_id"] == request["correlation_id"]
    assert "junk" not in answer.body.decode()
    async with Platform(kafka_bootstrap_servers) as platform:
        [letter] = await wait_until(lambda: platform.messages(topics.dead_letter_topic(topics.RESOLUTION), bad))
    assert json.loads(letter.value)["failed_event_envelope"] == request
    assert b'"failed_event_envelope":' + body + b"," in letter.value
    labels = {"topic": topics.RESOLUTION, "reason": RESOLUTION_FAILED}
    await wait_until(lambda: has_metric(orchestrator, "bcs_dead_letters_total", 1, labels))


async def has_metric(orchestrator: Orchestrator, name: str, least: float, labels: dict[str, str]) -> bool:
    value = await orchestrator.metric(name, **labels)
    return value is not None and value >= least
