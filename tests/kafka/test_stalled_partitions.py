"""An unreadable partition of Apache Kafka blocks no other, is reported, and is read once it can be."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from bcs.ops.doctor.findings import Finding
from bcs.ops.doctor.kafka_checks import check_kafka
from bcs.wire import topics
from tests.kafka.forbidding import DESCRIBE, READ, TOPIC, forbidden
from tests.kafka.group import Group
from tests.kafka.services import IN_TIME_SECONDS, OwnKafka, assert_nothing_crashed, original, service_on
from tests.support.commands import bcs
from tests.support.events import Event, registered, spellchecked
from tests.support.kafka import PARTITIONS, Platform, values
from tests.support.record_batches import RawRecord, damaged_on_disk, record_batch, send_batch
from tests.support.service import Orchestrator, RunningService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

TOPIC_NAME, PARTITION = topics.SPELLCHECK_COMPLETED, 1
QUICK = {"kafka_partition_retry_maximum_seconds": 0.3, "kafka_metadata_max_age_seconds": 1.0}


@pytest.fixture(autouse=True)
async def _nothing_is_left(own_kafka: OwnKafka) -> AsyncIterator[None]:
    """Remove the messages of these tests, so that no later test reads them."""
    yield
    admin = AIOKafkaAdminClient(bootstrap_servers=own_kafka.address)
    await admin.start()
    try:
        read = (*topics.CONSUMED, topics.dead_letter_topic(TOPIC_NAME))
        keys = [TopicPartition(topic, number) for topic in read for number in range(PARTITIONS)]
        await admin.delete_records({key: RecordsToDelete(before_offset=-1) for key in keys})
    finally:
        await admin.close()


@asynccontextmanager
async def everything(
    own_kafka: OwnKafka, redis_url: str
) -> AsyncIterator[tuple[Platform, Group, Orchestrator, RunningService]]:
    kafka = own_kafka.address
    async with (
        service_on(kafka, redis_url, **QUICK) as service,
        Platform(kafka) as platform,
        Group(kafka, service.group) as group,
        Orchestrator(service.base) as orchestrator,
    ):
        yield platform, group, orchestrator, service
        await assert_nothing_crashed(service, orchestrator)


async def is_complete(orchestrator: Orchestrator, batch: str) -> bool:
    return await orchestrator.to_run(batch) == ["ai_feedback"]


def of_one_essay(batch: str) -> list[Event]:
    return [registered(batch, ["essay"]), spellchecked(batch, "essay")]


async def assert_others_flow(platform: Platform, orchestrator: Orchestrator, batch: str) -> None:
    """Batches of all partitions but one become complete, registrations and completions alike."""
    batches = [f"{batch}-{number}" for number in range(3 * PARTITIONS)]
    sent = await platform.send(*(event for name in batches for event in of_one_essay(name)))
    elsewhere = [name for name, where in zip(batches, sent[1::2], strict=True) if where.partition != PARTITION]
    assert elsewhere
    for name in elsewhere:
        await wait_until(partial(is_complete, orchestrator, name), IN_TIME_SECONDS)


async def has_lag_of_one(orchestrator: Orchestrator, topic: str) -> bool:
    lag = [(labels["topic"], n) for name, labels, n in await orchestrator.samples() if name == "bcs_kafka_consumer_lag"]
    return sum(messages for of_topic, messages in lag if of_topic == topic) == 1


async def stalled(orchestrator: Orchestrator) -> str:
    kafka = (await orchestrator.get("/healthz")).json["dependencies"]["kafka"]
    return str(kafka["message"]) if kafka["status"] == "unhealthy" else ""


async def test_a_record_with_an_unreadable_header_name_becomes_a_dead_letter(
    own_kafka: OwnKafka, redis_url: str, batch: str
) -> None:
    async with everything(own_kafka, redis_url) as (platform, group, orchestrator, _):
        event = spellchecked(batch, "essay")
        bad = RawRecord(event.value, event.key, ((b"good", b"1"), (b"\xff\xfe", b"\x00")))
        await send_batch(own_kafka.address, TOPIC_NAME, PARTITION, record_batch([bad]))
        await assert_others_flow(platform, orchestrator, batch)
        [letter] = await wait_until(lambda: platform.messages(topics.dead_letter_topic(TOPIC_NAME), batch))
        document = values([letter])[0]
        assert document["dlq_reason"] == "header_not_utf8"
        assert document["additional_metadata"]["source_headers_unreadable"] == [
            {"name_base64": "//4=", "value_base64": "AA=="}
        ]
        assert event.value in letter.value
        assert ("good", b"1") in letter.headers
        await group.caught_up()


async def test_a_batch_with_a_wrong_checksum_stops_its_own_partition_only(
    own_kafka: OwnKafka, redis_url: str, batch: str
) -> None:
    junk = [b"%s %d" % (batch.encode(), number) for number in range(3)]
    for value in junk:
        await send_batch(own_kafka.address, TOPIC_NAME, PARTITION, record_batch([RawRecord(value)]))
    log = own_kafka.log_of(TOPIC_NAME, PARTITION)
    async with AsyncExitStack() as damage:
        damage.enter_context(damaged_on_disk(log, junk[1]))
        async with everything(own_kafka, redis_url) as (platform, group, orchestrator, service):
            await assert_others_flow(platform, orchestrator, batch)
            said = await wait_until(lambda: stalled(orchestrator))
            assert f"{TOPIC_NAME}/{PARTITION}" in said
            assert "checksum" in said
            labels = {"topic": TOPIC_NAME, "partition": str(PARTITION)}
            assert await orchestrator.metric("bcs_kafka_partition_stalled", **labels) == 1
            [finding] = await check_kafka_for("events", own_kafka, service)
            assert f"{TOPIC_NAME}/{PARTITION} can't be read from offset" in finding.found
            stuck = TopicPartition(TOPIC_NAME, PARTITION)
            await wait_until(partial(has_committed_all_but, group, stuck), description="what is finished is committed")
            await damage.aclose()
            await group.caught_up()
            await wait_until(partial(is_healthy, orchestrator))
            await wait_until(partial(has_letters_of, platform, junk))


async def check_kafka_for(check: str, own_kafka: OwnKafka, service: RunningService) -> list[Finding]:
    settings = service.service.settings.model_copy(update={"kafka_bootstrap_servers": own_kafka.address})
    return [finding for finding in await check_kafka(settings, None) if finding.check == check]


async def has_letters_of(platform: Platform, junk: list[bytes]) -> bool:
    letters = values(await platform.messages(topics.dead_letter_topic(TOPIC_NAME)))
    found = [original(letter) for letter in letters if "raw_base64" in letter["failed_event_envelope"]]
    return sorted(value for value in found if value in junk) == junk


async def has_committed_all_but(group: Group, stuck: TopicPartition) -> bool:
    return await group.behind() == {stuck}


async def is_healthy(orchestrator: Orchestrator) -> bool:
    return not await stalled(orchestrator)


@pytest.mark.parametrize("right", [READ, pytest.param(DESCRIBE, marks=pytest.mark.release)])
async def test_a_topic_that_may_not_be_read_holds_up_no_other(
    own_kafka: OwnKafka, redis_url: str, batch: str, right: int
) -> None:
    async with AsyncExitStack() as rights:
        await rights.enter_async_context(forbidden(own_kafka.address, TOPIC, topics.PHASE_OUTCOME, right))
        async with everything(own_kafka, redis_url) as (platform, group, orchestrator, _):
            await assert_others_flow(platform, orchestrator, batch)
            said = await wait_until(lambda: stalled(orchestrator))
            assert topics.PHASE_OUTCOME in said
            # Without DESCRIBE some requests are refused for the right, others because the topic is unknown.
            assert "TOPIC_AUTHORIZATION_FAILED" in said or (right == DESCRIBE and "DESCRIBE" in said)
            junk = (topics.PHASE_OUTCOME, batch.encode(), b"junk")
            if right == READ:  # nobody may even see the topic otherwise
                await group.caught_up()
                await platform.send_raw(junk)
                await wait_until(partial(has_lag_of_one, orchestrator, topics.PHASE_OUTCOME))
                assert await orchestrator.metric("bcs_kafka_up") == 1
            await rights.aclose()
            if right == DESCRIBE:
                await platform.send_raw(junk)
            await group.caught_up()
            await wait_until(partial(is_healthy, orchestrator))


@pytest.mark.release
async def test_commands_read_past_a_record_with_an_unreadable_header_name(
    own_kafka: OwnKafka, redis_url: str, batch: str, database_url: str
) -> None:
    variables = {
        "BCS_REDIS_URL": redis_url,
        "BCS_REDIS_KEY_PREFIX": f"{batch}:",
        "BCS_KAFKA_BOOTSTRAP_SERVERS": own_kafka.address,
        "BCS_DATABASE_URL": database_url,
    }
    letters = topics.dead_letter_topic(TOPIC_NAME)
    bad = record_batch([RawRecord(spellchecked(batch, "essay").value, batch.encode(), ((b"\xff\xfe", b""),))])
    for topic in (TOPIC_NAME, letters):
        await send_batch(own_kafka.address, topic, PARTITION, bad)
    async with Platform(own_kafka.address) as platform:
        await platform.send(registered(batch, ["essay"]))
    rebuilt = await bcs("db", "rebuild", "--json", **variables)
    assert rebuilt.exit_code == 0, rebuilt
    assert (rebuilt.json["facts"], rebuilt.json["undecodable"]) == (1, 1)
    listed = await bcs("dlq", "list", "--each", "--json", "--topic", letters, **variables)
    assert listed.exit_code == 0, listed
    assert [place for place in listed.json["unreadable"] if place.startswith(f"{letters}/{PARTITION}/")]
    with damaged_on_disk(own_kafka.log_of(letters, PARTITION), batch.encode()):
        listed = await bcs("dlq", "list", "--json", "--topic", letters, **variables)
    assert listed.exit_code == 1
    assert f"{letters}/{PARTITION} can't be read from offset" in listed.error


async def test_every_codec_of_kafka_is_read(own_kafka: OwnKafka, redis_url: str, batch: str) -> None:
    async with everything(own_kafka, redis_url) as (_, group, orchestrator, _service):
        for codec in ("gzip", "snappy", "lz4", "zstd"):
            producer = AIOKafkaProducer(bootstrap_servers=own_kafka.address, compression_type=codec)
            await producer.start()
            try:
                for event in of_one_essay(f"{batch}-{codec}"):
                    await producer.send_and_wait(event.topic, event.value, event.key)
            finally:
                await producer.stop()
            await wait_until(partial(is_complete, orchestrator, f"{batch}-{codec}"))
        await group.caught_up()


@pytest.mark.release
async def test_an_operator_passes_over_a_message_that_cannot_be_read(
    own_kafka: OwnKafka, redis_url: str, batch: str
) -> None:
    junk = [b"%s %d" % (batch.encode(), number) for number in range(3)]
    for value in junk:
        await send_batch(own_kafka.address, TOPIC_NAME, PARTITION, record_batch([RawRecord(value)]))
    with damaged_on_disk(own_kafka.log_of(TOPIC_NAME, PARTITION), junk[1]):
        async with everything(own_kafka, redis_url) as (platform, group, orchestrator, service):
            kafka = service.service.kafka
            await wait_until(lambda: (TOPIC_NAME, PARTITION) in kafka.stalled)
            offset = kafka.stalled[TOPIC_NAME, PARTITION].offset
            variables = {
                "BCS_REDIS_URL": redis_url,
                "BCS_REDIS_KEY_PREFIX": service.service.settings.redis_key_prefix,
                "BCS_KAFKA_BOOTSTRAP_SERVERS": own_kafka.address,
            }
            skip = ("intake", "skip", TOPIC_NAME, str(PARTITION), str(offset), "--reason", "the disk failed")
            refused = await bcs(*skip, given="n\n", **variables)
            assert refused.exit_code == 1
            assert "checksum" in refused.output
            assert await stalled(orchestrator), "nothing was done without a yes"
            done = await bcs(*skip, "--yes", "--json", **variables)
            assert done.exit_code == 0, done
            [row] = done.json["skips"]
            assert (row["offset"], row["reason"]) == (offset, "the disk failed")
            assert row["outcome"] == "skipped, dead letter with its position only"
            await group.caught_up()
            letters = values(await platform.messages(topics.dead_letter_topic(TOPIC_NAME)))
            [letter] = [letter for letter in letters if letter["dlq_reason"] == "skipped_by_operator"]
            about = letter["additional_metadata"]
            assert (about["source_topic"], about["source_partition"], about["source_offset"]) == (
                TOPIC_NAME,
                PARTITION,
                offset,
            )
            assert "the disk failed" in about["error_message"]
            told = (await bcs("intake", "history", "--json", **variables)).json["skips"]
            assert [event["outcome"] for event in told] == [row["outcome"], "ordered"]
            again = await bcs(*skip, "--yes", "--json", **variables)
            assert again.exit_code == 1
            assert again.json["skips"][0]["outcome"] == "not skipped, it was processed before"
