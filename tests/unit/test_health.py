"""`/healthz` has the most specific problem with Kafka, whichever actor found it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import cast

import pytest
from aiohttp import web

from bcs.actors.redis_probe import RedisStatus
from bcs.config.pipelines import load_pipelines
from bcs.config.settings import Settings
from bcs.http.routes.health import HealthHandlers
from bcs.kafka.status import KafkaStatus
from bcs.observability.waits import CONNECT_PRODUCER, Waits
from bcs.storage.ports import StateStore
from bcs.supervision import Snapshot, State
from bcs.usecases.active_definitions import ActiveDefinitions
from tests.support.runtimes import runtime_with

pytestmark = pytest.mark.anyio

REFUSED = "the broker has no idempotent producers"


async def message_about_kafka(kafka: KafkaStatus, *, refused: bool) -> tuple[str, str]:
    """The status and the message of Kafka in `/healthz`."""
    waits = Waits(lambda: datetime.now(UTC))
    if refused:
        waits.begin("publisher", CONNECT_PRODUCER, REFUSED)
    health = HealthHandlers(
        settings=Settings(use_mock_repository=True),
        store=cast("StateStore", None),
        archive=None,
        redis_address="",
        redis=cast("RedisStatus", None),
        kafka=kafka,
        waits=waits,
        render_metrics=lambda: b"",
        snapshot=lambda: Snapshot("bcs", "supervisor", State.RUNNING),
        draining=lambda: False,
        definitions=ActiveDefinitions(load_pipelines(None), runtime=runtime_with(), load=lambda: load_pipelines(None)),
    )
    response = await health.healthz(cast("web.Request", None))
    assert isinstance(response.body, bytes)
    found = json.loads(response.body)["dependencies"]["kafka"]
    return found["status"], found["message"]


@pytest.mark.parametrize("connected", [None, True])
async def test_a_refusal_is_named_also_before_kafka_is_known_to_answer(connected: bool | None) -> None:
    status, message = await message_about_kafka(KafkaStatus(connected=connected), refused=True)
    assert (status, message.endswith(REFUSED)) == ("unhealthy", True)


async def test_before_the_first_attempt_kafka_is_not_connected_yet() -> None:
    status, message = await message_about_kafka(KafkaStatus(), refused=False)
    assert (status, message.endswith("not connected yet")) == ("unhealthy", True)


async def test_a_broker_that_is_away_counts_more_than_what_was_refused_before() -> None:
    kafka = KafkaStatus()
    kafka.mark_disconnected(ConnectionRefusedError("connection refused"))
    status, message = await message_about_kafka(kafka, refused=True)
    assert (status, REFUSED in message) == ("unhealthy", False)


async def test_a_broker_that_answers_and_refuses_nothing_is_healthy() -> None:
    assert await message_about_kafka(KafkaStatus(connected=True), refused=False) == ("healthy", "reachable")
