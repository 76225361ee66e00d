"""Apache Kafka refuses a message for good: the message is set aside alone, and the messages beside it are published."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bcs.actors import publisher
from bcs.ops.dlq.reading import position_of
from bcs.storage.memory import MemoryOutbox
from bcs.wire import topics
from bcs.wire.dead_letters.decode import read_dead_letter
from bcs.wire.published import OutboundMessage
from tests.kafka.services import SESSION_SECONDS
from tests.support.kafka import Platform, configured
from tests.support.service import RunningService, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

REFUSED_TIME = b"a time that the broker refuses"
AN_HOUR_MS = 3_600_000


class SendsOneOldMessage(AIOKafkaProducer):  # type: ignore[misc] # aiokafka has no types
    """A real producer that gives the messages with one key a time in the past."""

    async def send(self, topic: str, value: Any = None, key: Any = None, partition: Any = None, **rest: Any) -> Any:
        if key == REFUSED_TIME:
            rest["timestamp_ms"] = int(time.time() * 1000) - 2 * AN_HOUR_MS
        return await super().send(topic, value, key, partition, **rest)


@pytest.fixture
async def service(kafka: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningService]:
    """A service with an outbox in memory, which reads nothing that came before it."""
    monkeypatch.setattr(publisher, "AIOKafkaProducer", SendsOneOldMessage)
    async with running_service(
        use_mock_repository=True,
        kafka_bootstrap_servers=kafka,
        kafka_enable_idempotence=True,
        kafka_session_timeout_seconds=SESSION_SECONDS,
        kafka_auto_offset_reset="latest",
    ) as service:
        yield service


@asynccontextmanager
async def administrator(kafka: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def topic_with(kafka: str, name: str, **configs: str) -> str:
    """A topic of one partition; dots stand for the underscores in the names of its configs."""
    dotted = {config.replace("_", "."): value for config, value in configs.items()}
    async with administrator(kafka) as admin:
        await admin.create_topics([NewTopic(name, 1, 1, topic_configs=dotted)])
    return name


async def records_of(kafka: str, topic: str) -> list[ConsumerRecord]:
    """All records of a topic of one partition."""
    reader = AIOKafkaConsumer(topic, bootstrap_servers=kafka, auto_offset_reset="earliest", fetch_max_wait_ms=20)
    await reader.start()
    try:
        [partition] = await wait_until(reader.assignment)
        [end] = (await reader.end_offsets([partition])).values()
        found: list[ConsumerRecord] = []
        while await reader.position(partition) < end:
            found += (await reader.getmany(timeout_ms=50)).get(partition, [])
        return found
    finally:
        await reader.stop()


def outbox_of(service: RunningService) -> MemoryOutbox:
    assert isinstance(service.service.outbox, MemoryOutbox)
    return service.service.outbox


async def publish(service: RunningService, messages: Sequence[OutboundMessage]) -> list[tuple[OutboundMessage, str]]:
    """Have these published; return the messages that were set aside, each with the reason."""
    outbox = outbox_of(service)
    service.run(outbox.append, messages)
    await wait_until(lambda: service.run(outbox.backlog) == 0, description="nothing is stuck in the outbox")
    return list(outbox.parked)


def message(topic: str, key: bytes | None, value: bytes = b"value", reduced: bytes | None = None) -> OutboundMessage:
    return OutboundMessage("dead_letter", topic, key, value, truncated=reduced)


async def test_a_record_that_a_compacted_topic_refuses_is_set_aside_alone(
    kafka: str, service: RunningService, unique_name: Callable[[str], str]
) -> None:
    compacted = await topic_with(kafka, unique_name("compacted"), cleanup_policy="compact")
    other = await topic_with(kafka, unique_name("other"))
    keys = [b"a", b"b", None, b"c", None, b"d"]
    parked = await publish(service, [*(message(compacted, key) for key in keys), message(other, None)])
    assert [(one.topic, one.key) for one, _ in parked] == [(compacted, None)] * 2
    assert all("87" in problem and "INVALID_RECORD" in problem for _, problem in parked)
    assert [record.key for record in await records_of(kafka, compacted)] == [b"a", b"b", b"c", b"d"]
    assert len(await records_of(kafka, other)) == 1
    # The producer is as good as new.
    assert len(await publish(service, [message(compacted, b"e")])) == 2
    assert [record.key for record in await records_of(kafka, compacted)][4:] == [b"e"]


async def test_a_record_whose_time_the_broker_refuses_is_set_aside_alone(
    kafka: str, service: RunningService, unique_name: Callable[[str], str]
) -> None:
    strict = await topic_with(kafka, unique_name("strict"), message_timestamp_before_max_ms=str(AN_HOUR_MS))
    keys = [b"a", REFUSED_TIME, b"b", REFUSED_TIME, b"c"]
    parked = await publish(service, [message(strict, key) for key in keys])
    assert [one.key for one, _ in parked] == [REFUSED_TIME] * 2
    assert all("INVALID_TIMESTAMP" in problem for _, problem in parked)
    assert [record.key for record in await records_of(kafka, strict)] == [b"a", b"b", b"c"]


async def test_messages_that_are_too_large_only_together_are_published(
    kafka: str, service: RunningService, unique_name: Callable[[str], str]
) -> None:
    narrow = await topic_with(kafka, unique_name("narrow"), max_message_bytes="1000")
    values = [b"%d" % number * 100 for number in range(10, 30)]
    large = message(narrow, b"large", b"x" * 5_000, b"instead")
    messages = [message(narrow, b"key", value) for value in values]
    parked = await publish(service, [*messages[:9], large, *messages[9:], message(narrow, b"hopeless", b"x" * 5_000)])
    assert [one.key for one, _ in parked] == [b"hopeless"]
    assert sorted(record.value for record in await records_of(kafka, narrow)) == sorted([*values, b"instead"])


async def test_every_letter_has_a_key_so_that_a_compacted_topic_takes_it(
    kafka: str, service: RunningService, batch: str
) -> None:
    letters = topics.dead_letter_topic(topics.CJ_COMPLETED)
    junk = [b"junk %d of %s" % (number, batch.encode()) for number in range(5)]
    async with Platform(kafka) as platform, configured(kafka, {letters: {"cleanup.policy": "compact"}}):
        await wait_until(lambda: service.service.kafka.connected)
        sent = await platform.send_raw(*((topics.CJ_COMPLETED, None, value) for value in junk))

        async def arrived() -> dict[bytes | None, ConsumerRecord]:
            found = {
                read_dead_letter(position_of(record), record.key, record.value, record.headers).value: record
                for record in await platform.messages(letters)
                if record.value is not None
            }
            return found if found.keys() >= set(junk) else {}

        found = await wait_until(arrived)
    for value, source in zip(junk, sent, strict=True):
        record = found[value]
        assert record.key == f"{source.topic}/{source.partition}/{source.offset}".encode()
        assert json.loads(record.value)["additional_metadata"]["source_key_base64"] is None
        assert read_dead_letter(position_of(record), record.key, record.value, record.headers).key is None
    assert not outbox_of(service).parked
