"""Events that Apache Kafka's retention removed before BCS had read them: counted, logged and named."""

from collections.abc import AsyncIterator
from functools import partial

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from bcs.ops.doctor.findings import Status
from bcs.ops.doctor.kafka_checks import check_kafka
from bcs.wire import topics
from tests.kafka.services import IN_TIME_SECONDS, OwnKafka, assert_nothing_crashed, service_on
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

TOPIC = topics.SPELLCHECK_COMPLETED


@pytest.fixture
async def admin(own_kafka: OwnKafka) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=own_kafka.address)
    await client.start()
    yield client
    await client.close()


def in_one_partition(batch: str, essay: str) -> tuple[str, bytes, bytes]:
    """An event with the key of its batch, not of its essay."""
    event = spellchecked(batch, essay)
    return event.topic, batch.encode(), event.value


async def told(orchestrator: Orchestrator) -> str:
    kafka = (await orchestrator.get("/healthz")).json["dependencies"]["kafka"]
    return str(kafka["message"])


async def names_what_was_removed(orchestrator: Orchestrator, place: str, count: int) -> bool:
    return f"{place}: {count} messages were removed before they were read" in await told(orchestrator)


async def last_committed_is_from(orchestrator: Orchestrator, partition: int, seconds: float) -> bool:
    labels = {"topic": TOPIC, "partition": str(partition)}
    return await orchestrator.metric("bcs_kafka_committed_timestamp_seconds", **labels) == pytest.approx(
        seconds, abs=0.001
    )


@pytest.mark.release
async def test_events_that_were_removed_while_bcs_was_away_are_counted_and_named(
    own_kafka: OwnKafka, redis_url: str, batch: str, admin: AIOKafkaAdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    essays = [f"essay-{number}" for number in range(50)]
    names = {"redis_key_prefix": f"{batch}:", "kafka_consumer_group_id": batch}
    async with Platform(own_kafka.address) as platform:
        async with service_on(own_kafka.address, redis_url, **names) as service:
            await platform.send(registered(batch, essays[40:]))
            await platform.send_raw(in_one_partition(batch, "essay-49"))
            await wait_until(lambda: platform.caught_up(batch), IN_TIME_SECONDS)
        sent = await platform.send_raw(*(in_one_partition(batch, essay) for essay in essays))
        partition, place = sent[0].partition, f"{TOPIC}/{sent[0].partition}"
        await admin.delete_records({TopicPartition(TOPIC, partition): RecordsToDelete(sent[40].offset)})
        async with (
            service_on(own_kafka.address, redis_url, **names) as service,
            Orchestrator(service.base) as orchestrator,
        ):
            await wait_until(lambda: platform.caught_up(batch), IN_TIME_SECONDS)
            await wait_until(partial(names_what_was_removed, orchestrator, place, 40))
            assert await orchestrator.metric("bcs_kafka_events_missed_total", topic=TOPIC) == 40
            assert await orchestrator.to_run(batch) == ["ai_feedback"], "those behind them count"
            [missed] = [record for record in caplog.records if record.msg == "events_missed"]
            assert missed.levelname == "WARNING"
            assert (missed.__dict__["from_offset"], missed.__dict__["count"]) == (sent[0].offset, 40)
            findings = await check_kafka(service.service.settings, None)
            [finding] = [finding for finding in findings if finding.check == "missed events"]
            assert finding.status is Status.FAILED
            assert finding.found.startswith(f"{place}: 40 messages")
            # The producer's own note of the time can be a millisecond off.
            last = max(
                await platform.messages(TOPIC), key=lambda record: (record.partition == partition, record.offset)
            )
            await wait_until(partial(last_committed_is_from, orchestrator, partition, last.timestamp / 1000))
            await assert_nothing_crashed(service, orchestrator)
        # The next process knows of it, too: the word stands beside the committed offset.
        async with (
            service_on(own_kafka.address, redis_url, **names) as service,
            Orchestrator(service.base) as orchestrator,
        ):
            await wait_until(partial(names_what_was_removed, orchestrator, place, 40))
            assert await orchestrator.metric("bcs_kafka_events_missed_total", topic=TOPIC) == 0
