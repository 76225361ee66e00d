"""Events that a producer sent in a transaction count once it is committed, and never if it is aborted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from aiokafka import AIOKafkaProducer

from bcs.wire import topics
from tests.kafka.group import Group
from tests.kafka.services import SESSION_SECONDS, service_on
from tests.support.commands import bcs, settings_of
from tests.support.databases import archive_in
from tests.support.events import Event, registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Orchestrator
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def transactions(kafka: str, name: str) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=name)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def send_all(producer: AIOKafkaProducer, *events: Event) -> None:
    for event in events:
        await producer.send_and_wait(event.topic, event.value, event.key)


async def test_only_committed_transactions_count_and_no_marker_stays_behind(
    kafka: str, redis_url: str, batch: str
) -> None:
    async with (
        service_on(kafka, redis_url) as service,
        Platform(kafka) as platform,
        Group(kafka, service.group) as group,
        Orchestrator(service.base) as orchestrator,
        transactions(kafka, batch) as producer,
    ):
        await platform.send(registered(batch, ["a", "b"]), spellchecked(batch, "a"))
        async with producer.transaction():
            await send_all(producer, spellchecked(f"{batch}-committed", "a"))
        await producer.begin_transaction()
        await send_all(producer, spellchecked(batch, "b"), spellchecked(f"{batch}-aborted", "a"))
        await producer.abort_transaction()
        await group.caught_up()
        assert await orchestrator.to_run(f"{batch}-committed") == ["ai_feedback"]
        assert await orchestrator.to_run(batch) == ["spellcheck", "ai_feedback"]
        assert await orchestrator.to_run(f"{batch}-aborted") == ["spellcheck", "ai_feedback"]
        await wait_until(lambda: no_lag(orchestrator), description="behind the markers nothing is left to read")
        ran = await bcs("doctor", "--json", **settings_of(service))
        lag = [finding["found"] for finding in ran.json["findings"] if finding["check"] == "lag"]
        assert lag == [f"{name}: 0 messages to be read" for name in topics.CONSUMED]


async def no_lag(orchestrator: Orchestrator) -> bool:
    lags = [value for name, _, value in await orchestrator.samples() if name == "bcs_kafka_consumer_lag"]
    return bool(lags) and not any(lags)


async def test_an_open_transaction_holds_its_own_partition_up_until_it_ends(
    kafka: str, redis_url: str, batch: str
) -> None:
    async with (
        service_on(kafka, redis_url) as service,
        Platform(kafka) as platform,
        Group(kafka, service.group) as group,
        Orchestrator(service.base) as orchestrator,
        transactions(kafka, batch) as producer,
    ):
        await producer.begin_transaction()
        await send_all(producer, registered(batch, ["a"]), spellchecked(batch, "a"))
        await platform.send(registered(f"{batch}-other", ["b"]))
        assert await orchestrator.to_run(batch) == ["spellcheck", "ai_feedback"]
        await producer.commit_transaction()

        async def counts() -> bool:
            return await orchestrator.to_run(batch) == ["ai_feedback"]

        await wait_until(counts)
        await group.caught_up()


async def test_aborted_messages_are_not_read_by_rebuild_or_dlq_list(
    kafka: str, redis_url: str, batch: str, database_url: str, redis_key_prefix: str, unique_name: Callable[[str], str]
) -> None:
    dead_letters = topics.dead_letter_topic(topics.CJ_COMPLETED)
    async with transactions(kafka, batch) as producer:
        async with producer.transaction():
            await send_all(producer, spellchecked(batch, "kept"))
        await producer.begin_transaction()
        await send_all(producer, spellchecked(batch, "aborted"))
        aborted = await producer.send_and_wait(dead_letters, b"aborted", b"key")
        await producer.abort_transaction()
    settings = {
        "BCS_REDIS_URL": redis_url,
        "BCS_REDIS_KEY_PREFIX": redis_key_prefix,
        "BCS_KAFKA_BOOTSTRAP_SERVERS": kafka,
        "BCS_KAFKA_CONSUMER_GROUP_ID": unique_name("group"),
        "BCS_KAFKA_SESSION_TIMEOUT_SECONDS": SESSION_SECONDS,
        "BCS_KAFKA_HEARTBEAT_INTERVAL_SECONDS": SESSION_SECONDS / 3,
        "BCS_DATABASE_URL": database_url,
    }
    assert (await bcs("db", "upgrade", **settings)).exit_code == 0
    rebuilt = await bcs("db", "rebuild", "--json", **settings)
    assert (rebuilt.exit_code, rebuilt.error) == (0, ""), rebuilt
    async with archive_in(database_url) as record:
        assert (await record.state(batch)).first_seen_us.keys() == {"kept"}
    listed = await bcs("dlq", "list", "--each", "--topic", topics.CJ_COMPLETED, "--json", **settings)
    assert not [one for one in listed.json["unreadable"] if batch in str(one)]
    assert listed.exit_code == 0
    # Sooner than Kafka would count as out of reach.
    with anyio.fail_after(5):
        marker = f"{dead_letters}/{aborted.partition}/{aborted.offset + 1}"
        shown = await bcs("dlq", "show", marker, **settings)
    assert (shown.exit_code, "is a transaction's marker" in shown.error) == (1, True)
