"""Events in from Kafka, answers out over HTTP, announcements out to Kafka: all of it real."""

import json
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

import pytest

from bcs.wire import topics
from bcs.wire.published import as_uuid
from tests.support.events import Event, cj_completed, now, phase_outcome, registered, spellchecked
from tests.support.kafka import Platform, values
from tests.support.service import Orchestrator, RunningService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

BOTH = ["spellcheck", "ai_feedback"]
ESSAYS = [f"essay-{number}" for number in range(30)]


@pytest.fixture
async def orchestrator(service: RunningService) -> AsyncIterator[Orchestrator]:
    async with Orchestrator(service.base, keep_alive=True) as caller:
        yield caller


@pytest.fixture
def apply(service: RunningService, platform: Platform) -> Callable[..., Any]:
    """Publishes events, and returns when the service has made all of them durable."""

    async def publish_and_wait(*events: Event) -> None:
        await platform.send(*events)
        await wait_until(lambda: platform.caught_up(service.group))

    return publish_and_wait


async def announcements(platform: Platform, batch: str) -> list[dict[str, Any]]:
    return values(await platform.messages(topics.PHASE_SKIPPED, batch))


async def test_a_phase_is_pruned_once_the_last_of_30_essays_has_completed_it(
    service: RunningService, platform: Platform, orchestrator: Orchestrator, apply: Callable[..., Any], batch: str
) -> None:
    await apply(registered(batch, ESSAYS), *(spellchecked(batch, essay) for essay in ESSAYS[:29]))
    before = await orchestrator.define(batch)
    assert before.json["final_pipeline"] == BOTH
    assert before.json["pruned_phases"] == []
    assert "29 of 30" in before.json["analysis_summary"]

    await apply(spellchecked(batch, ESSAYS[29]))
    correlation_id = str(uuid.uuid4())
    after = await orchestrator.define(batch, correlation_id=correlation_id)
    assert after.json["batch_id"] == batch
    assert after.json["final_pipeline"] == ["ai_feedback"]
    assert after.json["pruned_phases"] == ["spellcheck"]
    assert "spellcheck" in after.json["analysis_summary"]

    [record] = await wait_until(lambda: platform.messages(topics.PHASE_SKIPPED, batch))
    announced = json.loads(record.value)
    assert uuid.UUID(announced.pop("event_id"))
    assert datetime.fromisoformat(announced.pop("event_timestamp")).utcoffset() is not None
    assert datetime.fromisoformat(announced["data"]["metadata"].pop("timestamp")).utcoffset() is not None
    assert announced == {
        "event_type": topics.PHASE_SKIPPED,
        "source_service": "batch_conductor_service",
        "schema_version": 1,
        "correlation_id": correlation_id,
        "data_schema_uri": None,
        "data": {
            "event": "batch.phase.skipped",
            "batch_id": batch,
            "phase_name": "spellcheck",
            "skip_reason": "already_completed",
            "storage_id": None,
            "correlation_id": correlation_id,
            "metadata": {"entity_id": batch, "entity_type": "batch", "event": "batch.phase.skipped"},
        },
        "metadata": {"partition_key": batch},
    }


async def test_a_repeated_request_announces_nothing_a_new_one_another_event(
    platform: Platform, orchestrator: Orchestrator, apply: Callable[..., Any], batch: str
) -> None:
    await apply(spellchecked(batch, "essay"))
    # A teacher's click asks twice: for a preview, and to run the phases.
    for correlation_id in ("first", "first", "second", "first"):
        assert await orchestrator.to_run(batch, correlation_id=correlation_id) == ["ai_feedback"]

    async def two() -> list[dict[str, Any]] | None:
        return found if len(found := await announcements(platform, batch)) >= 2 else None

    announced = await wait_until(two)
    assert [event["data"]["correlation_id"] for event in announced] == list(map(as_uuid, ("first", "second")))
    first, second = (event["event_id"] for event in announced)
    assert first != second
    assert all(event["correlation_id"] == event["data"]["correlation_id"] for event in announced)


async def test_a_failed_essay_keeps_the_phase_until_it_succeeds(
    platform: Platform, orchestrator: Orchestrator, apply: Callable[..., Any], batch: str
) -> None:
    await apply(
        registered(batch, ["a", "b"]), spellchecked(batch, "a"), spellchecked(batch, "b", "failed", at=now(-60))
    )
    assert await orchestrator.to_run(batch) == BOTH
    await apply(spellchecked(batch, "b", "completed", at=now(-120)))
    assert await orchestrator.to_run(batch) == BOTH, "an older success supersedes no newer failure"
    await apply(spellchecked(batch, "b", "in_progress"))
    assert await orchestrator.to_run(batch) == BOTH, "only an ending counts"
    assert await announcements(platform, batch) == []
    await apply(spellchecked(batch, "b"))
    assert await orchestrator.to_run(batch) == ["ai_feedback"]


async def test_the_outcome_of_a_whole_phase_prunes_it(
    orchestrator: Orchestrator, apply: Callable[..., Any], batch: str
) -> None:
    await apply(registered(batch, ["a", "b"]), phase_outcome(batch, "spellcheck", ["a", "b"]))
    assert await orchestrator.to_run(batch, "nlp") == ["nlp"]
    await apply(phase_outcome(batch, "nlp", ["a"], failed=["b"]))
    assert await orchestrator.to_run(batch, "nlp") == ["nlp"]
    await apply(phase_outcome(batch, "nlp", ["b"]))
    assert await orchestrator.to_run(batch, "nlp") == []


async def test_a_newer_failure_of_every_essay_replaces_an_older_success(
    orchestrator: Orchestrator, apply: Callable[..., Any], batch: str
) -> None:
    await apply(phase_outcome(batch, "spellcheck", ["a"]))
    assert await orchestrator.to_run(batch) == ["ai_feedback"]
    await apply(phase_outcome(batch, "spellcheck", [], failed=["a"], status="failed_critically"))
    assert await orchestrator.to_run(batch) == BOTH


async def test_a_comparative_judgement_with_a_failed_essay_is_not_complete(
    orchestrator: Orchestrator, apply: Callable[..., Any], batch: str
) -> None:
    await apply(registered(batch, ["a", "b", "c"]), phase_outcome(batch, "spellcheck", ["a", "b", "c"]))
    await apply(cj_completed(batch, ["a", None, "b"], failed=["c", None]))
    assert await orchestrator.to_run(batch, "cj_assessment") == ["cj_assessment"]
    await apply(cj_completed(batch, ["a", "b", "c"]))
    assert await orchestrator.to_run(batch, "cj_assessment") == []


async def test_an_unregistered_batch_counts_the_essays_that_were_seen(
    orchestrator: Orchestrator, apply: Callable[..., Any], batch: str
) -> None:
    assert await orchestrator.to_run(batch) == BOTH
    await apply(spellchecked(batch, "only"))
    assert await orchestrator.to_run(batch) == ["ai_feedback"]
    await apply(registered(batch, ["only"], expected=2))
    assert await orchestrator.to_run(batch) == BOTH, "one of two is not all"


async def test_everything_complete_is_a_success_with_nothing_to_run(
    platform: Platform, orchestrator: Orchestrator, apply: Callable[..., Any], batch: str
) -> None:
    phases = ["spellcheck", "nlp", "cj_assessment", "ai_feedback"]
    await apply(registered(batch, ["a"]), *(phase_outcome(batch, phase, ["a"]) for phase in phases))
    answer = await orchestrator.define(batch, "comprehensive")
    assert answer.status == 200
    assert answer.json["final_pipeline"] == []
    assert answer.json["pruned_phases"] == phases
    assert "nothing is left to run" in answer.json["analysis_summary"].lower()

    async def all_four() -> bool:
        return [event["data"]["phase_name"] for event in await announcements(platform, batch)] == phases

    await wait_until(all_four)


async def test_what_is_reported_over_http_counts_like_an_event(
    orchestrator: Orchestrator, apply: Callable[..., Any], batch: str
) -> None:
    await apply(registered(batch, ["a", "b"]))
    assert (await orchestrator.complete(batch, "spellcheck")).status == 200
    assert await orchestrator.to_run(batch) == ["ai_feedback"]
    await apply(spellchecked(batch, "b", "failed"))
    assert await orchestrator.to_run(batch) == BOTH
    await apply(registered(batch, ["a", "b", "late"], expected=3), spellchecked(batch, "b"))
    assert await orchestrator.to_run(batch) == BOTH, "an essay that joined later is not covered by the earlier report"


async def test_the_lag_of_every_partition_is_measured_and_falls_to_nothing(
    orchestrator: Orchestrator, apply: Callable[..., Any], batch: str
) -> None:
    await apply(registered(batch, ["a"]), spellchecked(batch, "a"))

    async def lags() -> dict[tuple[str, str], float]:
        samples = await orchestrator.samples()
        return {
            (labels["topic"], labels["partition"]): value
            for name, labels, value in samples
            if name == "bcs_kafka_consumer_lag"
        }

    async def all_read() -> bool:
        measured = await lags()
        return {topic for topic, _ in measured} == set(topics.CONSUMED) and not any(measured.values())

    await wait_until(all_read)


async def test_strange_batch_ids_touch_no_other_batch(
    orchestrator: Orchestrator, apply: Callable[..., Any], batch: str
) -> None:
    ends = [
        "",
        ":a",
        "*",
        "?",
        "{",
        "}",
        "{}",
        "[",
        "]",
        "[a]",
        " .",
        "  .",
        "🦉",
        "a",
        "a:b",
        "%3Aa",
        "%",
        "/a",
        "..",
        "\\",
    ]
    ids = [batch + end for end in ends]
    ids += [f"{{{batch}}}", f"*{batch}", batch.upper(), batch.ljust(255, "x"), batch.ljust(255, "🦉")]
    ids += [batch.ljust(254, "x") + "y", batch.ljust(254, "x"), f"\x00{batch}", f"{batch}\r\n."]
    # The same essay in all of them: only the batch tells them apart. Any two ids differ in some bit of their position,
    # so in some rounds the phase is complete for the one and failed, by a newer event, for the other.
    moment = -3600.0
    for bit in range(len(ids).bit_length()):
        for inverted in (False, True):
            done = {batch_id for position, batch_id in enumerate(ids) if (position >> bit & 1) != inverted}
            moment += 10
            await apply(
                *(spellchecked(batch_id, "essay", at=now(moment)) for batch_id in ids if batch_id in done),
                *(
                    spellchecked(batch_id, "essay", "failed", now(moment + 5))
                    for batch_id in ids
                    if batch_id not in done
                ),
            )
            answers = {batch_id: await orchestrator.to_run(batch_id) for batch_id in ids}
            assert answers == {batch_id: ["ai_feedback"] if batch_id in done else BOTH for batch_id in ids}
    await apply(registered(ids[0], ["essay", "another"]), spellchecked(ids[0], "essay"))
    assert await orchestrator.to_run(ids[0]) == BOTH
    assert [await orchestrator.to_run(batch_id) for batch_id in ids[1:]] == [answers[batch_id] for batch_id in ids[1:]]
