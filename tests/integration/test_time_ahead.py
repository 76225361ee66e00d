"""Events, reports and clocks that are ahead of time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio.to_thread
import pytest

from bcs.domain.facts import EssayPhaseEnded, Outcome
from bcs.domain.state import delta_of
from bcs.wire import topics
from tests.support.events import now, registered, spellchecked
from tests.support.kafka import Platform, values
from tests.support.service import Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

BOTH = ["spellcheck", "ai_feedback"]
IN_2031_US = int(datetime(2031, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000


async def test_an_event_ahead_of_both_clocks_becomes_a_dead_letter(
    orchestrator: Orchestrator, service: RunningService, platform: Platform, batch: str
) -> None:
    await platform.send(registered(batch, ["a"]), spellchecked(batch, "a", at="2031-01-01T00:00:00Z"))
    await wait_until(lambda: platform.caught_up(service.group))

    async def letters() -> list[str]:
        records = await platform.messages(topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED), batch)
        return [letter["dlq_reason"] for letter in values(records)]

    assert await wait_until(letters) == ["time_in_the_future"]
    assert await orchestrator.to_run(batch) == BOTH
    await platform.send(spellchecked(batch, "a"), spellchecked(batch, "a", "failed"))
    await wait_until(lambda: platform.caught_up(service.group))
    assert await orchestrator.to_run(batch) == BOTH, "no failure is hidden by the event from the future"


async def test_a_report_counts_over_an_event_that_is_a_little_ahead(
    orchestrator: Orchestrator, service: RunningService, platform: Platform, batch: str
) -> None:
    await platform.send(registered(batch, ["a"]), spellchecked(batch, "a", at=now(300)))
    await wait_until(lambda: platform.caught_up(service.group))
    assert await orchestrator.to_run(batch) == ["ai_feedback"]
    assert (await orchestrator.complete(batch, "spellcheck", success=False)).status == 200
    assert await orchestrator.to_run(batch) == BOTH
    assert (await orchestrator.complete(batch, "spellcheck")).status == 200
    assert await orchestrator.to_run(batch) == ["ai_feedback"]


async def test_a_report_that_would_not_count_is_refused_with_the_later_fact(
    orchestrator: Orchestrator, service: RunningService, batch: str
) -> None:
    far = delta_of([EssayPhaseEnded("spellcheck", "essay 1", Outcome.COMPLETED, IN_2031_US)])
    await anyio.to_thread.run_sync(service.run, service.service.store.commit, batch, far)
    answer = await orchestrator.complete(batch, "spellcheck", success=False)
    assert answer.status == 409
    assert answer.json["type"] == "urn:bcs:problem:report-outdated"
    assert answer.json["in_the_way"] == {
        "fact": "essay_phase_ended",
        "essay_id": "essay 1",
        "at": "2031-01-01T00:00:00.000000Z",
    }
    assert await orchestrator.to_run(batch) == ["ai_feedback"], "nothing changed"


class SlowClock:
    """A clock that is two hours slow, until it is corrected."""

    def __init__(self) -> None:
        self.slow = timedelta(hours=2)

    def now(self) -> datetime:
        """The time that it shows."""
        return datetime.now(UTC) - self.slow

    def mend(self) -> None:
        """Show the right time from now on."""
        self.slow = timedelta(0)


async def test_while_the_clocks_differ_the_intake_waits_and_buries_nothing(
    redis_url: str, kafka_bootstrap_servers: str, platform: Platform, batch: str
) -> None:
    clock = SlowClock()
    servers = {"redis_url": redis_url, "kafka_bootstrap_servers": kafka_bootstrap_servers}
    async with (
        running_service(None, clock.now, **servers, kafka_auto_offset_reset="latest") as service,
        Orchestrator(service.base) as orchestrator,
    ):
        await wait_until(lambda: service.service.kafka.assigned, description="it has its partitions")
        await platform.send(registered(batch, ["a"]), spellchecked(batch, "a"))

        async def waits() -> bool:
            kafka = (await orchestrator.get("/healthz")).json["dependencies"]["kafka"]
            return kafka["status"] == "unhealthy" and "clocks" in kafka["message"]

        await wait_until(waits)
        assert (await orchestrator.get("/healthz")).status == 200
        assert await orchestrator.to_run(batch) == BOTH
        assert (await orchestrator.complete(batch, "nlp")).status == 503, "nobody can say when that was"
        clock.mend()

        async def counts() -> bool:
            return await orchestrator.to_run(batch) == ["ai_feedback"]

        await wait_until(counts)

        async def goes_on() -> bool:
            return not await waits()

        await wait_until(goes_on)
        for topic in topics.CONSUMED:
            assert await platform.messages(topics.dead_letter_topic(topic), batch) == []
