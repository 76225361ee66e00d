"""`bcs doctor`, against real servers: healthy ones, absent ones, and some that are set up badly."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from bcs.config.loading import load_settings
from bcs.devtools.servers.embedded import EmbeddedServer, create_topics, free_port, kafka
from bcs.domain.history import FactsRecorded
from bcs.ops.doctor.findings import Status
from bcs.ops.doctor.redis_checks import check_redis
from bcs.storage.ports import LeasedMessage
from bcs.storage.redis.archive_queue import FACTS, FORMER_FACTS, ArchiveStream
from bcs.storage.redis.queue import KnownLengths
from bcs.wire import topics
from bcs.wire.published import SERVICE, OutboundMessage
from tests.integration.stores import MakeGateway
from tests.support.commands import Ran, bcs, bcs_at_terminal, settings_of
from tests.support.kafka import PARTITIONS, Platform
from tests.support.redis_queues import redis_outbox
from tests.support.service import RunningService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

CONSUMED = len(topics.CONSUMED)
NO_KAFKA_CHECKS = {"kafka", "topic consumed", "topic published", "consumer group", "lag", "registration"}


def findings(ran: Ran) -> dict[str, list[dict[str, str]]]:
    """The findings by the name of the check."""
    by_check: dict[str, list[dict[str, str]]] = {}
    for finding in ran.json["findings"]:
        by_check.setdefault(finding["check"], []).append(finding)
    return by_check


def only(ran: Ran, check: str) -> dict[str, str]:
    [finding] = findings(ran)[check]
    return finding


async def doctor(environment: Mapping[str, object], **more: object) -> Ran:
    # Unless a test names its service, none answers on this machine.
    ran = await bcs("doctor", "--json", **{"BCS_HTTP_PORT": free_port(), **environment, **more})
    assert ran.error == ""
    return ran


async def test_beside_a_running_service_nothing_fails(service: RunningService) -> None:
    async def settled() -> dict[str, Any]:
        ran = await doctor(settings_of(service))
        return ran.json if only(ran, "consumer group")["status"] == "ok" else {}

    document = await wait_until(settled)
    assert document["healthy"] is True
    by_check: dict[str, list[str]] = {}
    for finding in document["findings"]:
        assert finding["status"] != "failed", finding
        by_check.setdefault(finding["check"], []).append(finding["found"])
    assert by_check["topic consumed"] == [f"{name}: {PARTITIONS} partitions" for name in topics.CONSUMED]
    assert by_check["topic published"] == [f"{name}: {PARTITIONS} partitions" for name in topics.PUBLISHED]
    assert by_check["lag"] == [f"{name}: 0 messages to be read" for name in topics.CONSUMED]
    assert by_check["consumer group"] == [f"{service.group}: 1 member (Stable)"]
    assert by_check["service"] == [f"at {service.base}: all actors run and all dependencies answer"]
    assert by_check["dead letters"] == ["none waits"]
    assert by_check["redis"][0].startswith("reachable, ")
    assert by_check["outbox parked"] == ["no message is parked"]
    assert len(by_check["clock"]) == 1
    assert by_check["postgresql"] == ["BCS_DATABASE_URL is not set: there is no archive"]
    assert "archive backlog" not in by_check


async def test_each_check_is_a_line_for_a_person(service: RunningService) -> None:
    ran = await bcs("doctor", **settings_of(service))
    assert (ran.exit_code, ran.error) == (0, "")
    heading, *lines, empty, summary = ran.output.splitlines()
    assert heading.split() == ["status", "check", "found"]
    assert {line.split()[0] for line in lines} <= {"ok", "warning"}
    assert all("Fix: " in line for line in lines if line.startswith("warning"))
    assert empty == ""
    fine, warned = (sum(line.startswith(word) for line in lines) for word in ("ok", "warning"))
    assert summary.startswith(f"{fine} ok, {warned} warning")
    assert summary.endswith(", 0 failed")
    at_terminal = await bcs_at_terminal(80, "doctor", **settings_of(service))
    assert "\x1b[" in at_terminal.output
    assert max(map(len, at_terminal.uncoloured.splitlines())) <= 80
    assert "…" not in at_terminal.uncoloured


async def test_redis_away_hides_nothing_of_kafka(service: RunningService) -> None:
    ran = await doctor(settings_of(service), BCS_REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    assert ran.exit_code == 1
    assert ran.json["healthy"] is False
    assert only(ran, "redis")["status"] == "failed"
    assert "BCS_REDIS_URL" in only(ran, "redis")["fix"]
    assert findings(ran).keys() >= NO_KAFKA_CHECKS
    assert all(finding["status"] == "ok" for finding in findings(ran)["topic consumed"])


async def test_a_record_is_looked_at_where_one_is_kept(service: RunningService, database_url: str) -> None:
    ran = await doctor(settings_of(service), BCS_DATABASE_URL=database_url)
    assert only(ran, "postgresql")["found"].startswith("reachable, PostgreSQL ")
    assert (only(ran, "postgresql schema")["status"], only(ran, "postgresql clock")["status"]) == ("warning", "ok")
    assert "bcs db upgrade" in only(ran, "postgresql schema")["fix"]
    assert [only(ran, f"archive {queue}")["status"] for queue in ("backlog", "parked")] == ["ok", "ok"]


async def test_postgresql_away_hides_nothing_of_the_others(service: RunningService) -> None:
    away = f"postgresql://bob:a-secret@127.0.0.1:{free_port()}/bcs"
    ran = await doctor(settings_of(service), BCS_DATABASE_URL=away)
    assert ran.exit_code == 1
    assert only(ran, "postgresql")["status"] == "failed"
    assert "BCS_DATABASE_URL" in only(ran, "postgresql")["fix"]
    assert "a-secret" not in ran.output
    assert [only(ran, server)["status"] for server in ("redis", "kafka")] == ["ok", "ok"]


async def test_kafka_away_hides_nothing_of_redis(service: RunningService) -> None:
    ran = await doctor(settings_of(service), BCS_KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}")
    assert ran.exit_code == 1
    assert only(ran, "kafka")["status"] == "failed"
    assert "BCS_KAFKA_BOOTSTRAP_SERVERS" in only(ran, "kafka")["fix"]
    assert findings(ran).keys() & NO_KAFKA_CHECKS == {"kafka"}
    assert only(ran, "redis")["status"] == "ok"
    assert only(ran, "clock")["status"] == "ok"


@pytest.fixture
async def page() -> AsyncIterator[str]:
    """The address of a server that answers everything with an HTTP error."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_what_is_neither_redis_nor_kafka_is_told_apart_from_a_crash(page: str) -> None:
    ran = await doctor({"BCS_REDIS_URL": f"redis://{page}", "BCS_KAFKA_BOOTSTRAP_SERVERS": page})
    assert ran.exit_code == 1
    assert [only(ran, check)["status"] for check in ("redis", "kafka")] == ["failed", "failed"]
    shown = await bcs("batches", "show", "b", BCS_REDIS_URL=f"redis://{page}")
    assert (shown.exit_code, shown.output) == (1, "")
    assert len(shown.error.splitlines()) == 1


async def test_a_database_that_redis_does_not_have_hides_nothing_of_kafka(
    redis_url: str, kafka_bootstrap_servers: str
) -> None:
    url = f"{redis_url.removesuffix('/0')}/4711"
    ran = await doctor({"BCS_REDIS_URL": url, "BCS_KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap_servers})
    assert only(ran, "redis")["status"] == "failed"
    assert "DB index" in only(ran, "redis")["found"]
    assert only(ran, "kafka")["status"] == "ok"


@pytest.mark.release
async def test_servers_that_do_not_answer_are_given_up_in_time(
    private_valkey: EmbeddedServer, private_kafka: EmbeddedServer
) -> None:
    private_valkey.freeze()
    private_kafka.freeze()
    with anyio.fail_after(20):
        ran = await doctor(
            {
                "BCS_REDIS_URL": f"redis://{private_valkey.address}",
                "BCS_REDIS_DEADLINE_SECONDS": 0.5,
                "BCS_KAFKA_BOOTSTRAP_SERVERS": private_kafka.address,
            }
        )
    assert ran.exit_code == 1
    assert [only(ran, check)["status"] for check in ("redis", "kafka")] == ["failed", "failed"]


async def test_missing_topics_are_named_and_not_created(private_kafka: EmbeddedServer, redis_url: str) -> None:
    there = [name for name in (*topics.CONSUMED, *topics.PUBLISHED) if name != topics.CJ_COMPLETED]
    await create_topics(private_kafka.address, there, 1)
    environment = {"BCS_KAFKA_BOOTSTRAP_SERVERS": private_kafka.address, "BCS_REDIS_URL": redis_url}
    for _ in range(2):
        ran = await doctor(environment)
        assert ran.exit_code == 1
        wrong = [finding for finding in ran.json["findings"] if finding["status"] == "failed"]
        assert [finding["found"] for finding in wrong] == [
            f"{topics.CJ_COMPLETED} does not exist, or this user may not see it"
        ]
    assert only(ran, "consumer group")["status"] == "warning"
    assert len(findings(ran)["lag"]) == CONSUMED - 1


async def test_a_listener_that_is_out_of_reach_and_settings_for_drills_are_named(
    tmp_path: Path, redis_url: str
) -> None:
    elsewhere = free_port()
    with kafka(tmp_path, advertised_port=elsewhere) as broker:
        environment = {"BCS_KAFKA_BOOTSTRAP_SERVERS": broker.address, "BCS_REDIS_URL": redis_url}
        # Beside others that are named without asking any server.
        settings = {"BCS_HTPP_PORT": 4002, "BCS_CHAOS_ENABLED": "true", "BCS_ENVIRONMENT": "production"}
        ran = await doctor({**environment, **settings})
    assert ran.exit_code == 1
    wrong = [finding for finding in findings(ran)["settings"] if finding["status"] == "failed"]
    assert [finding["found"].split()[0] for finding in wrong] == ["BCS_HTPP_PORT", "BCS_CHAOS_ENABLED"]
    assert only(ran, "kafka")["status"] == "ok"
    assert f"advertises 127.0.0.1:{elsewhere}: Connection refused" in only(ran, "kafka listener")["found"]
    assert "consumer group" not in findings(ran)


async def test_waiting_dead_letters_of_other_services_are_counted_apart(
    private_kafka: EmbeddedServer, redis_url: str
) -> None:
    letters = topics.dead_letter_topic(topics.SPELLCHECK_COMPLETED)
    await create_topics(private_kafka.address, [letters], 1)
    ours, foreign = ({"service": name} for name in (SERVICE, "another_service"))
    about: dict[str, object] = {"failed_event_envelope": {}, "dlq_reason": "r", "additional_metadata": {}}
    bodies = [json.dumps({**about, **said, "timestamp": "2026-05-03T08:00:00Z"}).encode() for said in (ours, foreign)]
    async with Platform(private_kafka.address) as platform:
        for body in (*bodies, bodies[0]):
            await platform.send_raw((letters, b"key", body))
        await platform.send_raw((letters, b"replayed:0", None))
        environment = {"BCS_KAFKA_BOOTSTRAP_SERVERS": private_kafka.address, "BCS_REDIS_URL": redis_url}
        ran = await doctor(environment)
        assert only(ran, "dead letters")["found"] == f"1 waits: 1 on {letters}; 1 more of other services"
        assert only(ran, "dead letters")["status"] == "failed"


async def test_a_broker_without_any_topic_has_no_lag_to_tell(private_kafka: EmbeddedServer, redis_url: str) -> None:
    ran = await doctor({"BCS_KAFKA_BOOTSTRAP_SERVERS": private_kafka.address, "BCS_REDIS_URL": redis_url})
    assert ran.exit_code == 1
    assert {finding["status"] for finding in findings(ran)["topic consumed"]} == {"failed"}
    assert only(ran, "lag")["status"] == "warning"
    assert only(ran, "kafka")["status"] == "ok"


async def test_a_redis_that_may_forget_is_warned_of(
    private_valkey: EmbeddedServer, make_gateway: MakeGateway, kafka_bootstrap_servers: str
) -> None:
    gateway = make_gateway(private_valkey.address, deadline=5)
    await gateway.call(
        ("CONFIG", "SET", "maxmemory", "500mb"),
        ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"),
        ("CONFIG", "SET", "appendonly", "no"),
    )
    environment = {
        "BCS_REDIS_URL": f"redis://{private_valkey.address}",
        "BCS_KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap_servers,
    }
    ran = await doctor(environment)
    assert ran.exit_code == 1
    assert only(ran, "redis eviction")["status"] == "failed"
    assert "noeviction" in only(ran, "redis eviction")["fix"]
    assert only(ran, "redis persistence")["status"] == "warning"
    assert " of 500.0 MiB used" in only(ran, "redis memory")["found"]

    await gateway.call(("CONFIG", "SET", "maxmemory-policy", "noeviction"), ("CONFIG", "SET", "save", "3600 1"))
    ran = await doctor(environment)
    assert [only(ran, check)["status"] for check in ("redis eviction", "redis persistence")] == ["ok", "ok"]
    assert only(ran, "consumer group")["status"] == "warning"
    assert ran.exit_code == 0, "warnings are no failures"


async def test_a_redis_that_forbids_config_is_no_crash(
    private_valkey: EmbeddedServer, make_gateway: MakeGateway, kafka_bootstrap_servers: str
) -> None:
    gateway = make_gateway(private_valkey.address, deadline=5)
    await gateway.call(
        ("CONFIG", "SET", "appendonly", "no"),
        ("ACL", "SETUSER", "managed", "on", ">secret", "~*", "+@all", "-config"),
        ("ACL", "SETUSER", "unwatched", "on", ">secret", "~*", "+@all", "-watch"),
        ("ACL", "SETUSER", "narrow", "on", ">secret", "~other:*", "+@connection"),
    )

    async def seen_as(user: str) -> Ran:
        url = f"redis://{user}:secret@{private_valkey.address}"
        ran = await doctor({"BCS_REDIS_URL": url, "BCS_KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap_servers})
        assert "secret" not in ran.output
        return ran

    managed = await seen_as("managed")
    assert managed.exit_code == 0
    assert only(managed, "redis commands")["status"] == "ok"
    assert only(managed, "redis persistence")["status"] == "warning"
    assert "RDB snapshots" in only(managed, "redis persistence")["found"]
    assert only(managed, "redis eviction")["status"] == "ok"
    settings = load_settings(redis_url=f"redis://unwatched:secret@{private_valkey.address}")
    [unwatched] = [finding for finding in await check_redis(settings) if finding.check == "redis commands"]
    assert (unwatched.status, "'watch'" in unwatched.found) == (Status.FAILED, True)
    narrow = await seen_as("narrow")
    assert only(narrow, "redis commands")["status"] == "failed"
    assert "'multi'" in only(narrow, "redis commands")["found"]
    for check in ("redis eviction", "redis memory", "redis persistence", "outbox", "clock"):
        assert only(narrow, check)["status"] == "warning", check


async def test_what_waits_and_what_is_set_aside_is_counted(
    make_gateway: MakeGateway, redis_url: str, redis_key_prefix: str, kafka_bootstrap_servers: str
) -> None:
    outbox = redis_outbox(make_gateway(redis_url, deadline=5), redis_key_prefix)
    message = OutboundMessage("phase_skipped", topics.PHASE_SKIPPED, b"key", b"{}")
    await outbox.append([message] * 3)
    leased: list[LeasedMessage] = await outbox.lease(1)
    await outbox.park(leased[0], "never")
    environment = {
        "BCS_REDIS_URL": redis_url,
        "BCS_REDIS_KEY_PREFIX": redis_key_prefix,
        "BCS_KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap_servers,
    }
    ran = await doctor(environment)
    assert only(ran, "outbox")["status"] == "ok"
    assert only(ran, "outbox")["found"].startswith("2 messages wait for Kafka, the oldest for ")
    assert (ran.exit_code, only(ran, "outbox parked")["status"]) == (1, "failed")
    assert f"{leased[0].stream}:parked" in only(ran, "outbox parked")["fix"]
    for name, number in ((FACTS, 7), (FORMER_FACTS, 0)):
        gateway = make_gateway(redis_url, deadline=5)
        stream = ArchiveStream(
            gateway, key_prefix=redis_key_prefix, name=name, number=number, consumer="only", lengths=KnownLengths()
        )
        entry = FactsRecorded(uuid.uuid4(), "b", 0, facts=(), event_type="AnEvent")
        await stream.append([entry] * 2)
        await stream.park((await stream.lease(1))[0], "never")
    ran = await doctor(environment)
    assert only(ran, "archive backlog")["status"] == "warning", "BCS_DATABASE_URL is not set"
    ran = await doctor(environment, BCS_DATABASE_URL=f"postgresql://127.0.0.1:{free_port()}/bcs")
    assert only(ran, "archive backlog")["found"].startswith("2 entries wait for PostgreSQL, the oldest for ")
    fixes = [finding["fix"] for finding in findings(ran)["archive parked"]]
    for key, fix in zip(("{outbox:7}:archive", "{outbox}:record"), fixes, strict=True):
        assert f"{redis_key_prefix}{key}:parked" in fix
    full = await doctor(environment, BCS_OUTBOX_MAX_MESSAGES=2)
    assert (full.exit_code, only(full, "outbox")["status"]) == (1, "failed")


async def test_a_wrong_setting_and_a_broken_file_are_findings(
    service: RunningService, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ran = await doctor(settings_of(service), BCS_HTTP_PORT="http", BCS_REDIS_TTL_SECONDS="-1")
    assert ran.exit_code == 1
    told = [finding["found"].split(":")[0] for finding in findings(ran)["settings"]]
    assert told == ["BCS_HTTP_PORT", "BCS_REDIS_TTL_SECONDS"]
    ran = await doctor(
        settings_of(service), BCS_REDIS_URL="redis://:s3cr#et@127.0.0.1", BCS_DATABASE_URL="postgresql://"
    )
    assert ran.exit_code == 1
    assert [finding["found"].split(":")[0] for finding in findings(ran)["settings"]] == ["BCS_REDIS_URL"]
    assert "s3cr" not in ran.output

    file = tmp_path_factory.mktemp("pipelines") / "broken.yaml"
    file.write_text("phases: [{name: a, requires: [b]}]")
    ran = await doctor(settings_of(service), BCS_PIPELINE_CONFIG_PATH=file)
    assert ran.exit_code == 1
    assert only(ran, "pipelines")["status"] == "failed"
    assert "'b'" in only(ran, "pipelines")["found"]
    assert only(ran, "redis")["status"] == only(ran, "kafka")["status"] == "ok"


async def test_without_a_redis_to_check_doctor_says_so(service: RunningService) -> None:
    ran = await doctor(settings_of(service), BCS_USE_MOCK_REPOSITORY="true")
    assert ran.exit_code == 0
    assert only(ran, "redis")["status"] == "warning"
    assert "BCS_USE_MOCK_REPOSITORY" in only(ran, "redis")["found"]
