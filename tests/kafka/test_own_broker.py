"""The service on an Apache Kafka that dies, loses responses, refuses large messages, and lacks a topic."""

from contextlib import AsyncExitStack
from functools import partial

import pytest

from bcs.devtools.servers.embedded import create_topics
from bcs.wire import topics
from bcs.wire.published import as_uuid
from tests.kafka.group import Group
from tests.kafka.services import (
    IN_TIME_SECONDS,
    LATE_TOPIC,
    OwnKafka,
    assert_nothing_crashed,
    assert_outbox_empties,
    has_status,
    letter_about,
    original,
    service_on,
)
from tests.kafka.traffic import Traffic
from tests.support.events import registered, spellchecked
from tests.support.kafka import PARTITIONS, Platform, values
from tests.support.service import Orchestrator
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


async def test_an_announcement_with_a_lost_acknowledgement_is_published_once(
    own_kafka: OwnKafka, redis_url: str, batch: str
) -> None:
    async with (
        service_on(own_kafka.address, redis_url) as service,
        Platform(own_kafka.address) as platform,
        Orchestrator(service.base) as orchestrator,
    ):
        assert (await orchestrator.complete(batch, "spellcheck")).status == 200
        # A partition that is new may refuse the first tries, whose answers would not matter.
        await orchestrator.to_run(batch, correlation_id=f"{batch}-first")
        await wait_until(partial(has_published, orchestrator, 1))
        own_kafka.answers.lose_answer(as_uuid(f"{batch}-second").encode())
        await orchestrator.to_run(batch, correlation_id=f"{batch}-second")
        await wait_until(partial(has_published, orchestrator, 2), description="the second try is acknowledged")
        assert own_kafka.answers.lost == 1
        announced = values(await platform.messages(topics.PHASE_SKIPPED, batch))
        assert [one["data"]["correlation_id"] for one in announced] == [
            as_uuid(f"{batch}-{number}") for number in ("first", "second")
        ]
        await assert_nothing_crashed(service, orchestrator)


async def has_published(orchestrator: Orchestrator, count: int) -> bool:
    return await orchestrator.metric("bcs_outbox_published_total", kind="phase_skipped") == count


@pytest.mark.parametrize(
    "meanwhile", ["nothing else is published", pytest.param("announcements flow", marks=pytest.mark.release)]
)
async def test_a_letter_that_only_the_broker_finds_too_large_arrives_reduced(
    own_kafka: OwnKafka, redis_url: str, batch: str, meanwhile: str
) -> None:
    kafka, limit_bytes = own_kafka.address, own_kafka.limit_bytes
    topic, large = topics.SPELLCHECK_COMPLETED, b"\xff" * (limit_bytes - 2_000)  # in base64 a third more
    small = [f"small {number} of {batch}".encode() for number in range(20)]
    async with (
        service_on(kafka, redis_url) as service,
        Platform(kafka) as platform,
        Group(kafka, service.group) as group,
        Orchestrator(service.base) as orchestrator,
    ):
        assert service.service.settings.kafka_max_message_bytes > limit_bytes
        async with AsyncExitStack() as stack:
            if meanwhile == "announcements flow":
                traffic = Traffic(platform, orchestrator, batch)
                await stack.enter_async_context(traffic.flowing())
                await traffic.more()
            before = await platform.send_raw(*((topic, b"key", value) for value in small))
            [too_large] = await platform.send_raw((topic, b"key", large))
            behind = await platform.send_raw(*((topic, b"key", value) for value in small))
            for source, value in zip((*before, *behind), (*small, *small), strict=True):
                assert original(await letter_about(platform, source)) == value
            letter = await letter_about(platform, too_large)
            assert letter["additional_metadata"]["truncated"] is True
            assert letter["additional_metadata"]["value_bytes"] == len(large)
            assert large.startswith(original(letter))
            # And the producer is as good as new.
            [last] = await platform.send_raw((topic, b"key", b"last of " + batch.encode()))
            assert original(await letter_about(platform, last)) == b"last of " + batch.encode()
        await group.caught_up()
        await assert_outbox_empties(orchestrator)
        assert [
            value for name, _, value in await orchestrator.samples() if name == "bcs_outbox_parked_total" and value
        ] == []
        await assert_nothing_crashed(service, orchestrator)


async def test_dead_letters_for_a_missing_topic_wait_and_delay_no_others(
    own_kafka: OwnKafka, redis_url: str, batch: str
) -> None:
    kafka = own_kafka.address
    async with (
        service_on(kafka, redis_url, kafka_request_timeout_seconds=1.5) as service,
        Platform(kafka) as platform,
        Group(kafka, service.group) as group,
        Orchestrator(service.base) as orchestrator,
    ):
        waiting = await platform.send_raw(*((topics.CJ_COMPLETED, None, b"waits %d" % n) for n in range(10)))
        await group.caught_up()
        others = await platform.send_raw(*((topics.PHASE_OUTCOME, None, b"goes on %d" % n) for n in range(10)))
        for number, source in enumerate(others):
            assert original(await letter_about(platform, source)) == b"goes on %d" % number
        assert (await orchestrator.complete(batch, "spellcheck")).status == 200
        assert await orchestrator.to_run(batch) == ["ai_feedback"]
        await wait_until(lambda: platform.messages(topics.PHASE_SKIPPED, batch), IN_TIME_SECONDS)
        assert (await orchestrator.metric("bcs_outbox_backlog") or 0) >= len(waiting), "they wait"
        await create_topics(kafka, [LATE_TOPIC], PARTITIONS)
        for number, source in enumerate(waiting):
            assert original(await letter_about(platform, source)) == b"waits %d" % number
        await assert_outbox_empties(orchestrator)
        await assert_nothing_crashed(service, orchestrator)


@pytest.mark.release
async def test_a_broker_killed_and_restarted_under_traffic_costs_nothing(
    own_kafka: OwnKafka, redis_url: str, batch: str
) -> None:
    kafka = own_kafka.address
    async with (
        service_on(kafka, redis_url) as service,
        Platform(kafka) as platform,
        Group(kafka, service.group) as group,
        Orchestrator(service.base) as orchestrator,
    ):
        traffic = Traffic(platform, orchestrator, batch)
        async with traffic.flowing():
            await traffic.more()
            await platform.send(*(spellchecked(f"{batch}-last", f"essay-{number}") for number in range(100)))
            own_kafka.server.kill()
            await wait_until(lambda: has_status(orchestrator, "kafka", "unhealthy"))
            await traffic.more(events=0)  # HTTP goes on, and what it announces has to wait
            own_kafka.server.restart()  # in no other thread: it would outlive a run that is killed
            await traffic.more()
        await platform.send(registered(f"{batch}-last", [f"essay-{number}" for number in range(100)]))
        await group.caught_up()
        await traffic.assert_nothing_lost()
        assert await orchestrator.to_run(f"{batch}-last") == ["ai_feedback"], (
            "what was on the log when it died still is"
        )
        assert set(traffic.statuses) == {200}
        await wait_until(lambda: has_status(orchestrator, "kafka", "healthy"))
        await assert_outbox_empties(orchestrator)
        await assert_nothing_crashed(service, orchestrator)
