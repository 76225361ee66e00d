"""The publisher crashes with messages of the outbox in hand; the next one publishes them."""

from __future__ import annotations

import pytest

from bcs.contracts import topics
from bcs.failpoints import FailPoint
from tests.support.kafka import Platform, values
from tests.support.service import Orchestrator, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("crash_at", [FailPoint.PUBLISHER_LEASED, FailPoint.PUBLISHER_ACKNOWLEDGED])
async def test_what_a_publisher_held_when_it_crashed_is_published_by_the_next(
    kafka_bootstrap_servers: str, batch: str, crash_at: FailPoint
) -> None:
    crashes = 0

    async def crash_once(point: FailPoint, _: str) -> None:
        nonlocal crashes
        if point is crash_at and not crashes:
            crashes += 1
            raise RuntimeError("the test says so")

    async with (
        Platform(kafka_bootstrap_servers) as platform,
        running_service(
            crash_once,
            use_mock_repository=True,
            kafka_bootstrap_servers=kafka_bootstrap_servers,
            # So late that only the next publisher can be the one that publishes.
            outbox_takeover_seconds=600.0,
        ) as service,
        Orchestrator(service.base) as bos,
    ):
        assert (await bos.complete(batch, "spellcheck")).status == 200
        assert await bos.to_run(batch) == ["ai_feedback"]

        async def published() -> bool:
            return crashes == 1 and await platform.messages(topics.PHASE_SKIPPED, batch) != []

        await wait_until(published, 8)

        async def nothing_left() -> bool:
            return service.run(service.service.outbox.backlog) == 0

        await wait_until(nothing_left, 8)
        records = values(await platform.messages(topics.PHASE_SKIPPED, batch))
        assert len({record["event_id"] for record in records}) == 1
        # What Kafka had acknowledged before the crash is published again.
        assert len(records) == (2 if crash_at is FailPoint.PUBLISHER_ACKNOWLEDGED else 1)
