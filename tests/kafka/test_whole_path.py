"""The service on Apache Kafka itself, or on whichever broker the environment names: from events to announcements."""

import json

import pytest

from bcs.wire import topics
from bcs.wire.published import as_uuid
from tests.kafka.group import Group
from tests.kafka.services import assert_nothing_crashed, assert_outbox_empties, letter_about, original, service_on
from tests.support.events import cj_completed, phase_outcome, registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


async def test_the_whole_path_works_with_idempotent_producing(kafka: str, redis_url: str, batch: str) -> None:
    async with (
        service_on(kafka, redis_url) as service,
        Platform(kafka) as platform,
        Group(kafka, service.group) as group,
        Orchestrator(service.base) as orchestrator,
    ):
        await platform.send(registered(batch, ["a", "b"]), spellchecked(batch, "a"))
        await group.caught_up()
        assert await orchestrator.to_run(batch) == ["spellcheck", "ai_feedback"]
        junk = await platform.send_raw(*((topic, b"key", b"junk about " + batch.encode()) for topic in topics.CONSUMED))
        await platform.send(
            spellchecked(batch, "b"),
            cj_completed(batch, ["a", "b"]),
            phase_outcome(batch, "nlp", ["a", "b"]),
        )
        await group.caught_up()
        answer = await orchestrator.define(batch, correlation_id=f"{batch}-request")
        assert answer.json["final_pipeline"] == ["ai_feedback"]
        assert answer.json["pruned_phases"] == ["spellcheck"]
        [skipped] = await wait_until(lambda: platform.messages(topics.PHASE_SKIPPED, batch))
        data = json.loads(skipped.value)["data"]
        assert (data["phase_name"], data["correlation_id"]) == ("spellcheck", as_uuid(f"{batch}-request"))
        for source in junk:
            assert original(await letter_about(platform, source)) == b"junk about " + batch.encode()
        await assert_outbox_empties(orchestrator)
        await assert_nothing_crashed(service, orchestrator)
