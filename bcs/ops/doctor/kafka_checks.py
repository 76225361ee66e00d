"""Queries Kafka for the checks of `bcs doctor`. Some brokers do not answer all requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, NoError, for_code

from bcs.config.settings import Settings
from bcs.errors import PartitionStalled, os_reason
from bcs.kafka.brokers import Broker, advertised_brokers
from bcs.kafka.causes import cause_of, is_refusal, problem_of, start
from bcs.kafka.clients import KafkaClients
from bcs.kafka.isolation import IsolatingConsumer, Stall
from bcs.kafka.offsets import CommitNote, Offsets
from bcs.kafka.status import close
from bcs.ops.dlq.reading import DeadLetterIndex, dead_letter_reader
from bcs.ops.doctor import kafka_findings as findings_of
from bcs.ops.doctor.findings import Finding, failed, ok, unknown
from bcs.ops.doctor.kafka_findings import TopicConfig
from bcs.wire import topics
from bcs.wire.topics import dead_letter_topic

_STEP_SECONDS = 5.0
_DEAD_LETTERS_SECONDS = 4.0
_CLOSE_SECONDS = 2.0
_READ_SECONDS = 2.0
_RETRY_SECONDS = 1.0
_POLL_MS = 100
_CREATES_TOPICS = "auto.create.topics.enable"
_OURS = (*topics.CONSUMED, *topics.PUBLISHED)
# Errors of Kafka, no answer in time, and a broker that supports none of aiokafka's versions of a request.
_NO_ANSWER = (KafkaError, OSError, TimeoutError, NotImplementedError)


async def check_kafka(settings: Settings, service: str | None) -> list[Finding]:
    """All checks of Kafka. Each check has its own deadline, and may end without a result.

    :param service: the URL of the service that answers on this machine; None if no service answers.
    """
    # Errors become findings; aiokafka would print them to standard error as well.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL + 1)
    servers = settings.kafka_bootstrap_servers
    try:
        async with _admin(settings) as admin:
            brokers = advertised_brokers(admin)
            findings = [ok("kafka", f"reachable at {servers}")]
            unreachable = await _unreachable(admin, brokers)
            findings += findings_of.listeners(unreachable)
            if len(unreachable) == len(brokers):
                return findings  # all other requests would go to these brokers, and time out
            partitions: dict[str, dict[int, bool]] = {}

            async def check_topics() -> list[Finding]:
                partitions.update(await _partitions(admin))
                return _topics(partitions)

            findings += await _step("topics", check_topics)
            consumed = {name: tuple(partitions[name]) for name in topics.CONSUMED if name in partitions}
            # The checks run one after the other, because some brokers close the connection after an unknown request.
            findings += await _creation(admin, brokers)
            findings += await _step("topic settings", lambda: _configs(admin, partitions, settings))
            findings += await _step("dead letters", lambda: _dead_letters(settings, partitions))
            findings += await _step("consumer group", lambda: _group(admin, settings.kafka_consumer_group_id, service))
            findings += await _step("lag", lambda: _lag(admin, settings, consumed))
    except _NO_ANSWER as error:
        cause = cause_of(error)
        names_setting = "BCS_KAFKA_" in cause.replace("BCS_KAFKA_BOOTSTRAP_SERVERS", "")
        fix = "correct the setting that is named" if names_setting else "check Kafka, and BCS_KAFKA_BOOTSTRAP_SERVERS"
        state = f"refuses at {servers}" if is_refusal(error) else "out of reach"
        return [failed("kafka", f"{state}: {cause}", fix)]
    return findings


async def _step(check: str, query: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    try:
        with anyio.fail_after(_STEP_SECONDS):
            return await query()
    except GroupAuthorizationFailedError as error:
        return [failed(check, cause_of(error), "grant the right that is named")]
    except Exception as error:  # noqa: BLE001 (aiokafka raises any error if a response is unexpected)
        return [unknown(check, cause_of(error))]


@asynccontextmanager
async def _admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(
        **KafkaClients.of(settings).options(),
        request_timeout_ms=int(settings.kafka_request_timeout_seconds * 1000),
    )
    try:
        await start(admin, settings.kafka_bootstrap_servers, _STEP_SECONDS)
        yield admin
    finally:
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await admin.close()


async def _partitions(admin: AIOKafkaAdminClient) -> dict[str, dict[int, bool]]:
    """All topics with their partitions. The value of a partition is True if the partition has a leader.

    The request is for all topics, because some brokers create a missing topic if a client asks about it.
    """
    return {
        topic["topic"]: {partition["partition"]: partition["leader"] >= 0 for partition in topic["partitions"]}
        for topic in await admin.describe_topics()
    }


def _topics(partitions: Mapping[str, Mapping[int, bool]]) -> list[Finding]:
    uses = [("consumed", name) for name in topics.CONSUMED] + [("published", name) for name in topics.PUBLISHED]
    return [
        findings_of.topic(use, name, partitions[name].values() if name in partitions else None) for use, name in uses
    ]


async def _unreachable(admin: AIOKafkaAdminClient, brokers: Iterable[Broker]) -> dict[Broker, str]:
    """The brokers that can't be used at their advertised addresses, with the reasons."""
    problems: dict[Broker, str] = {}

    async def connect(broker: Broker) -> None:
        try:
            with anyio.fail_after(_STEP_SECONDS):
                _, writer = await asyncio.open_connection(broker.host, broker.port)
                writer.close()
                # The certificate may be for another host than the advertised one.
                if not await admin._client.ready(broker.node_id):
                    problems[broker] = problem_of(admin._client, broker.host, broker.port)
        except TimeoutError:
            problems[broker] = f"no answer in {_STEP_SECONDS:.0f} s"
        except OSError as error:
            problems[broker] = os_reason(error)

    async with anyio.create_task_group() as group:
        for broker in brokers:
            group.start_soon(connect, broker)
    return problems


async def _creation(admin: AIOKafkaAdminClient, brokers: Iterable[Broker]) -> list[Finding]:
    """Checks if the brokers create topics; no finding if the brokers do not report it."""
    requested = [
        ConfigResource(ConfigResourceType.BROKER, str(broker.node_id), {_CREATES_TOPICS: None}) for broker in brokers
    ]
    try:
        with anyio.fail_after(_STEP_SECONDS):
            described = await _described(admin, requested)
    except _NO_ANSWER:
        return []
    return findings_of.creation(any(config.get(_CREATES_TOPICS) == "true" for config in described.values()))


async def _configs(admin: AIOKafkaAdminClient, names: Collection[str], settings: Settings) -> list[Finding]:
    requested = [ConfigResource(ConfigResourceType.TOPIC, name) for name in _OURS if name in names]
    configs = {name: TopicConfig.read(described) for name, described in (await _described(admin, requested)).items()}
    sources = {dead_letter_topic(name): configs.get(name) for name in topics.CONSUMED}
    dead_letters = {name: config for name, config in configs.items() if name in topics.DEAD_LETTERS}
    return [
        findings_of.compaction({name: config.cleanup_policy for name, config in dead_letters.items()}),
        *findings_of.retention(dead_letters, sources, kept_ms=settings.redis_ttl_seconds * 1000),
    ]


async def _described(admin: AIOKafkaAdminClient, requested: list[ConfigResource]) -> dict[str, dict[str, str]]:
    """The settings from the broker, by the name of each resource."""
    described: dict[str, dict[str, str]] = {}
    for response in await admin.describe_configs(requested) if requested else []:
        for resource in response.to_object()["resources"]:
            error: Any = for_code(resource["error_code"])
            if error is not NoError:
                raise error(resource["resource_name"])
            described[resource["resource_name"]] = {
                entry["config_names"]: entry["config_value"] or "" for entry in resource["config_entries"]
            }
    return described


async def _dead_letters(settings: Settings, names: Collection[str]) -> list[Finding]:
    index, complete = DeadLetterIndex(), False
    # There may be very many dead letters. The time is shorter than that of the step, so a partial result is reported.
    with anyio.move_on_after(_DEAD_LETTERS_SECONDS):
        async with dead_letter_reader(settings) as reader:
            async for record in reader.records([name for name in topics.DEAD_LETTERS if name in names]):
                index.take(record)
            complete = not reader.stalled
    waiting = {*index.dead_letters, *index.unreadable} - index.replayed
    of_others = {where for where in waiting if where in index.dead_letters and not index.dead_letters[where].is_ours}
    by_topic = Counter(where.topic for where in sorted(waiting - of_others))
    return [findings_of.dead_letters(by_topic, of_others=len(of_others), complete=complete)]


async def _group(admin: AIOKafkaAdminClient, name: str, service: str | None) -> list[Finding]:
    [response] = await admin.describe_consumer_groups([name])
    [described] = response.to_object()["groups"]
    error: Any = for_code(described["error_code"])
    if error is not NoError:
        raise error(name)
    return [findings_of.group(name, described["state"], len(described["members"]), service)]


async def _lag(admin: AIOKafkaAdminClient, settings: Settings, consumed: Mapping[str, Iterable[int]]) -> list[Finding]:
    keys = [TopicPartition(name, partition) for name, partitions in consumed.items() for partition in partitions]
    if not keys:
        return [unknown("lag", "no consumed topic was found")]
    committed = await admin.list_consumer_group_offsets(settings.kafka_consumer_group_id, partitions=keys)
    # The consumer has no group, so the group of the service is not rebalanced.
    consumer = IsolatingConsumer(
        partition_retry_maximum_seconds=_RETRY_SECONDS,
        **KafkaClients.of(settings).options(),
        enable_auto_commit=False,
        isolation_level="read_committed",
    )
    try:
        await consumer.start()
        consumer.assign(keys)
        first, end = await consumer.beginning_offsets(keys), await consumer.end_offsets(keys)
        next_to_read = {key: max(first[key], _offset(committed.get(key)) or 0) for key in keys}
        stalled = await _stalled(consumer, {key: at for key, at in next_to_read.items() if at < end[key]})
    finally:
        await close(consumer, _CLOSE_SECONDS)
    registered = any(end[key] > 0 for key in keys if key.topic == topics.ESSAYS_REGISTERED)
    offsets = {
        name: {
            key.partition: Offsets(first[key], end[key], _offset(committed.get(key)), _note(committed.get(key)))
            for key in keys
            if key.topic == name
        }
        for name in consumed
    }
    lags = [
        findings_of.lag(
            name,
            offsets[name],
            from_earliest=settings.kafka_auto_offset_reset == "earliest",
            many=settings.intake_max_in_flight,
        )
        for name in consumed
    ]
    now_ms = int(time.time() * 1000)
    lags += [finding for name in consumed for finding in findings_of.missed(name, offsets[name], now_ms=now_ms)]
    reading = findings_of.reading(
        [PartitionStalled(key.topic, key.partition, stall.offset, stall.cause) for key, stall in stalled.items()]
    )
    return [*lags, *reading, findings_of.registration(required=settings.require_registration, seen=registered)]


async def _stalled(
    consumer: IsolatingConsumer, next_to_read: Mapping[TopicPartition, int]
) -> dict[TopicPartition, Stall]:
    """The partitions whose next message can't be read."""
    if not next_to_read:
        return {}  # without an assignment, aiokafka would wait forever
    consumer.assign(list(next_to_read))
    for key, offset in next_to_read.items():
        consumer.seek(key, offset)
    waiting = set(next_to_read)
    # If only transaction markers are left, no message ever arrives.
    with anyio.move_on_after(_READ_SECONDS):
        while waiting:
            polled = await consumer.getmany(timeout_ms=_POLL_MS, max_records=len(next_to_read))
            consumer.pause(*polled)
            waiting -= polled.keys() | consumer.stalled.keys()
    return consumer.stalled


def _note(committed: Any) -> CommitNote:
    return CommitNote.decode(None if committed is None else committed.metadata)


def _offset(committed: Any) -> int | None:
    return None if committed is None or committed.offset < 0 else int(committed.offset)
