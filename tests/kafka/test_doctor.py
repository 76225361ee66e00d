"""`bcs doctor` on Apache Kafka, which answers every question of its exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bcs.devtools.servers.embedded import create_topics, free_port
from bcs.wire import topics
from tests.kafka.services import SESSION_SECONDS
from tests.support.apache_kafka import apache_kafka
from tests.support.commands import bcs, settings_of
from tests.support.events import cj_completed, spellchecked
from tests.support.kafka import Platform
from tests.support.service import running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


async def test_the_lag_is_exact_and_members_are_counted(kafka: str, redis_url: str, batch: str) -> None:
    async def found(environment: dict[str, object]) -> dict[str, list[str]]:
        ran = await bcs("doctor", "--json", **environment)
        assert ran.error == ""
        # Other tests leave letters on the broker that they share.
        assert {one["check"] for one in ran.json["findings"] if one["status"] == "failed"} <= {"dead letters"}
        by_check: dict[str, list[str]] = {}
        for finding in ran.json["findings"]:
            by_check.setdefault(finding["check"], []).append(finding["found"])
        return by_check

    nowhere = {"BCS_HTTP_PORT": free_port()}
    where = {"redis_url": redis_url, "kafka_bootstrap_servers": kafka, "kafka_auto_offset_reset": "latest"}
    async with Platform(kafka) as platform:
        async with running_service(**where, kafka_session_timeout_seconds=SESSION_SECONDS) as service:
            environment = {**settings_of(service), "BCS_KAFKA_AUTO_OFFSET_RESET": "latest"}
            group = service.group
            await wait_until(lambda: service.service.kafka.connected)
            await wait_until(lambda: has_member(environment))
            # To every partition, so that the group has an offset of its own on each.
            await platform.send(*(spellchecked(batch, f"essay-{number}") for number in range(64)))
            await wait_until(lambda: platform.caught_up(group))
            alive = await found(environment)
            assert alive["consumer group"] == [f"{group}: 1 member (Stable)"]
            assert alive["lag"] == [f"{name}: 0 messages to be read" for name in topics.CONSUMED]
        await platform.send(
            *(spellchecked(batch, f"essay-{number}") for number in range(7)), cj_completed(batch, ["a"])
        )
        stopped = await found({**environment, **nowhere})
    assert stopped["consumer group"] == [f"{group}: no members (Empty)"]
    assert stopped["lag"][0] == f"{topics.SPELLCHECK_COMPLETED}: 7 messages to be read"


async def has_member(environment: dict[str, object]) -> bool:
    ran = await bcs("doctor", "--json", **environment)
    return any(finding["check"] == "consumer group" and finding["status"] == "ok" for finding in ran.json["findings"])


@pytest.mark.release
async def test_topics_that_lose_dead_letters_or_are_created_are_reported(
    apache_kafka_jars: Path, tmp_path: Path, redis_url: str
) -> None:
    letters = topics.dead_letter_topic(topics.CJ_COMPLETED)
    lossy = {"retention.ms": "3600000", "retention.bytes": "1000000", "cleanup.policy": "compact,delete"}
    short = {"retention.ms": "600000"}
    with apache_kafka(apache_kafka_jars, tmp_path, auto_create_topics_enable="true") as broker:
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
        await admin.start()
        await admin.create_topics(
            [NewTopic(letters, 1, 1, topic_configs=lossy), NewTopic(topics.CJ_COMPLETED, 1, 1, topic_configs=short)]
        )
        await admin.close()
        await create_topics(broker.address, [*topics.CONSUMED, *topics.PUBLISHED], 1)
        ran = await bcs("doctor", "--json", BCS_KAFKA_BOOTSTRAP_SERVERS=broker.address, BCS_REDIS_URL=redis_url)
    assert ran.exit_code == 1
    found = [(one["status"], one["found"]) for one in ran.json["findings"] if one["check"] == "dead-letter topics"]
    assert [status for status, _ in found] == ["failed", "failed", "warning", "warning"]
    for (_, said), words in zip(
        found,
        ("compacted: ", "for 1.0 hours, and Redis a batch for 7.0 days", "1000000 bytes", "originals"),
        strict=True,
    ):
        assert words in said
        assert letters in said
    assert [one["status"] for one in ran.json["findings"] if one["check"] == "topic creation"] == ["warning"]


@pytest.mark.release
async def test_a_group_without_members_beside_a_running_service_is_a_failure(kafka: str, redis_url: str) -> None:
    async with running_service(redis_url=redis_url, kafka_bootstrap_servers=kafka) as service:
        # A broker that is new knows no group before the first member has come.
        await wait_until(lambda: has_member(settings_of(service)))
        environment = {**settings_of(service), "BCS_KAFKA_CONSUMER_GROUP_ID": f"{service.group}-mistyped"}
        ran = await bcs("doctor", "--json", **environment)
    [found] = [one for one in ran.json["findings"] if one["check"] == "consumer group"]
    assert (found["status"], f"although a service runs at {service.base}" in found["found"]) == ("failed", True)
    assert "start the service" not in found["fix"]
