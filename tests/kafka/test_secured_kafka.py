"""BCS on listeners that want TLS and logins: the whole path, and each thing that can be wrong about a connection."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.metadata import MetadataRequest

from bcs.actors.kafka_watch import KafkaWatch
from bcs.config.loading import load_settings
from bcs.config.settings import Settings
from bcs.kafka.causes import bootstrap, cause_of
from bcs.kafka.clients import KafkaClients
from bcs.kafka.connecting import NotConnected
from bcs.kafka.status import KafkaStatus
from bcs.ops.doctor.kafka_checks import check_kafka
from bcs.wire import topics
from tests.kafka.group import Group
from tests.kafka.operator import Operator
from tests.kafka.rights import documented_rights, granted
from tests.kafka.services import (
    assert_nothing_crashed,
    assert_outbox_empties,
    has_status,
    letter_about,
    original,
    service_on,
)
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform
from tests.support.runtimes import runtime_with
from tests.support.secured_kafka import OPENS_KEY, OWNER, PASSWORD, USER, SecuredKafka, token
from tests.support.service import Orchestrator, RunningService
from tests.support.token_endpoint import TokenEndpoint, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

WRONG = "wrong-sesame-19"
WRONG_LOGIN = "check BCS_KAFKA_SASL_USERNAME and BCS_KAFKA_SASL_PASSWORD"
NO_LOGIN = {"kafka_sasl_mechanism": None, "kafka_sasl_username": None, "kafka_sasl_password": None}


@pytest.fixture(autouse=True)
def level_of_aiokafka() -> Iterator[None]:
    """The doctor silences aiokafka for the rest of its process, which here is that of the tests."""
    log = logging.getLogger("aiokafka")
    level = log.level
    yield
    log.setLevel(level)


@dataclass(frozen=True)
class Wrong:
    """A setting that is wrong, and how that is named.

    :param settings: makes the settings.
    :param named: words of the cause.
    :param refused: true where the broker refuses the login; else Kafka counts as out of reach.
    """

    what: str
    settings: Callable[[SecuredKafka], dict[str, object]]
    named: str
    refused: bool = False


def without_login(secured: SecuredKafka, **more: object) -> dict[str, object]:
    return {**secured.login(), **NO_LOGIN, **more}


WRONGS = (
    Wrong("password", lambda kafka: kafka.login(kafka_sasl_password=WRONG), WRONG_LOGIN, refused=True),
    Wrong("password-plain", lambda kafka: kafka.login("PLAIN", kafka_sasl_password=WRONG), WRONG_LOGIN, refused=True),
    Wrong("user", lambda kafka: kafka.login("SCRAM-SHA-256", kafka_sasl_username="x"), WRONG_LOGIN, refused=True),
    Wrong(
        "mechanism",
        lambda kafka: kafka.login(
            "SCRAM-SHA-256",
            kafka_security_protocol="SASL_PLAINTEXT",
            kafka_ssl_cafile=None,
            kafka_bootstrap_servers=kafka.address("NAKED"),
        ),
        "the broker offers SCRAM-SHA-512, and not SCRAM-SHA-256: change BCS_KAFKA_SASL_MECHANISM",
        refused=True,
    ),
    Wrong(
        "broker's certificate expired",
        lambda kafka: without_login(
            kafka, kafka_security_protocol="SSL", kafka_bootstrap_servers=kafka.address("EXPIRED")
        ),
        "a certificate of the broker has expired",
    ),
    Wrong(
        "foreign CA",
        lambda kafka: kafka.login(kafka_ssl_cafile=kafka.file("foreign-ca.pem")),
        "set BCS_KAFKA_SSL_CAFILE to the CA of the broker",
    ),
    Wrong(
        "host name",
        lambda kafka: kafka.login(kafka_bootstrap_servers=kafka.address("LOGIN", "localhost")),
        "not for localhost: correct it, or set BCS_KAFKA_SSL_CHECK_HOSTNAME=false",
    ),
    Wrong(
        "no client certificate",
        lambda kafka: kafka.mutual(kafka_ssl_certfile=None, kafka_ssl_keyfile=None),
        "asks for a client certificate: set BCS_KAFKA_SSL_CERTFILE",
    ),
    Wrong(
        "client certificate expired",
        lambda kafka: kafka.mutual("client-expired"),
        "does not accept the client certificate of BCS_KAFKA_SSL_CERTFILE: it",
    ),
    Wrong(
        "foreign client certificate",
        lambda kafka: kafka.mutual("client-foreign"),
        "does not accept the client certificate of BCS_KAFKA_SSL_CERTFILE: it",
    ),
    Wrong(
        "plain text to TLS",
        lambda kafka: {"kafka_bootstrap_servers": kafka.address("MUTUAL")},
        "expects TLS there: set BCS_KAFKA_SECURITY_PROTOCOL to SSL or SASL_SSL",
    ),
    Wrong(
        "plain text with a login to TLS",
        lambda kafka: kafka.login(kafka_security_protocol="SASL_PLAINTEXT", kafka_ssl_cafile=None),
        "expects TLS there: set BCS_KAFKA_SECURITY_PROTOCOL to SASL_SSL",
    ),
    Wrong(
        "TLS to plain text",
        lambda kafka: kafka.mutual(kafka_bootstrap_servers=kafka.plain),
        "speaks plain text there, not TLS: correct the port, or set BCS_KAFKA_SECURITY_PROTOCOL to PLAINTEXT",
    ),
    Wrong(
        "no login",
        lambda kafka: without_login(kafka, kafka_security_protocol="SSL"),
        "expects a login: set BCS_KAFKA_SECURITY_PROTOCOL=SASL_SSL, and BCS_KAFKA_SASL_MECHANISM to one of OAUTHBEARER",
    ),
    Wrong(
        "no login in plain text",
        lambda kafka: {"kafka_bootstrap_servers": kafka.address("NAKED")},
        "expects a login: set BCS_KAFKA_SECURITY_PROTOCOL=SASL_PLAINTEXT, and BCS_KAFKA_SASL_MECHANISM to one of SCRAM",
    ),
    Wrong(
        "needless login",
        lambda kafka: kafka.mutual(
            kafka_security_protocol="SASL_SSL",
            kafka_sasl_mechanism="PLAIN",
            kafka_sasl_username=USER,
            kafka_sasl_password=PASSWORD,
        ),
        "expects no login there: correct the port, or set BCS_KAFKA_SECURITY_PROTOCOL to SSL",
        refused=True,
    ),
    Wrong(
        "token expired",
        lambda kafka: kafka.login("OAUTHBEARER", kafka_oauth_token_file=kafka.file("expired-token")),
        "does not accept the login; check BCS_KAFKA_OAUTH_TOKEN_FILE",
        refused=True,
    ),
)


# What differs from another one of the list only by its mechanism or its certificate.
AT_A_RELEASE = {
    "password-plain",
    "user",
    "foreign client certificate",
    "plain text with a login to TLS",
    "no login in plain text",
}


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(wrong, id=wrong.what, marks=[pytest.mark.release] if wrong.what in AT_A_RELEASE else [])
        for wrong in WRONGS
    ],
)
async def test_what_is_wrong_about_a_connection_is_named_with_its_setting(
    secured_kafka: SecuredKafka, wrong: Wrong, caplog: pytest.LogCaptureFixture
) -> None:
    secured_kafka.file("expired-token").write_text(token(seconds=-600))
    settings = load_settings(**wrong.settings(secured_kafka))
    status = await watched(settings)
    assert wrong.named in status.problem
    assert "BCS_KAFKA_BOOTSTRAP_SERVERS" in status.problem
    event = "kafka_refuses" if wrong.refused else "kafka_unreachable"
    [logged] = [str(record.__dict__) for record in caplog.records if record.msg == event]
    assert wrong.named in logged
    [finding] = await check_kafka(settings, None)
    assert wrong.named in finding.found
    assert (finding.status, finding.found.startswith("refuses at")) == ("failed", wrong.refused)
    shown = f"{status.problem}{finding}{caplog.text}"
    assert not [secret for secret in (WRONG, PASSWORD, token()[:20]) if secret in shown]


async def watched(settings: Settings) -> KafkaStatus:
    """What the service knows of Kafka after one probe."""
    status = KafkaStatus()
    runtime = runtime_with(**settings.model_dump(exclude_unset=True))
    async with anyio.create_task_group() as group:
        group.start_soon(KafkaWatch(runtime=runtime, status=status).run)
        await wait_until(lambda: status.connected is not None)
        group.cancel_scope.cancel()
    return status


@pytest.mark.parametrize(
    "settings",
    [
        lambda kafka: kafka.login("PLAIN"),
        lambda kafka: kafka.login("SCRAM-SHA-256"),
        lambda kafka: kafka.login("OAUTHBEARER", kafka_oauth_token_file=kafka.file("token")),
        lambda kafka: kafka.login(
            kafka_bootstrap_servers=kafka.address("LOGIN", "localhost"), kafka_ssl_check_hostname=False
        ),
        lambda kafka: kafka.mutual(
            kafka_ssl_keyfile=kafka.file("client-encrypted.key"), kafka_ssl_key_password=OPENS_KEY
        ),
        lambda kafka: kafka.login(
            kafka_security_protocol="SASL_PLAINTEXT",
            kafka_ssl_cafile=None,
            kafka_bootstrap_servers=kafka.address("NAKED"),
        ),
    ],
    ids=["PLAIN", "SCRAM-SHA-256", "OAUTHBEARER", "any-host", "encrypted-key", "SASL_PLAINTEXT"],
)
async def test_each_way_to_log_in_works(
    secured_kafka: SecuredKafka, settings: Callable[[SecuredKafka], dict[str, object]]
) -> None:
    secured_kafka.file("token").write_text(token())
    status = await watched(load_settings(**settings(secured_kafka)))
    assert (status.connected, status.problem) == (True, "")


async def test_a_token_of_an_endpoint_logs_in(secured_kafka: SecuredKafka) -> None:
    endpoint = TokenEndpoint()
    endpoint.answer = {"access_token": token(), "expires_in": 60}
    async with running(endpoint) as url:
        settings = secured_kafka.login(
            "OAUTHBEARER",
            kafka_oauth_token_url=url,
            kafka_oauth_client_id=USER,
            kafka_oauth_client_secret=PASSWORD,
        )
        status = await watched(load_settings(**settings))
        assert (status.connected, len(endpoint.requests)) == (True, 1)  # all connections have the same token
        endpoint.answer, endpoint.status = {"error": "invalid_client"}, 401
        status = await watched(load_settings(**settings))
    assert "BCS_KAFKA_OAUTH_TOKEN_URL): it answers 401: invalid_client" in status.problem
    assert PASSWORD not in status.problem


async def test_a_client_that_runs_uses_a_new_password_for_its_next_connection(
    secured_kafka: SecuredKafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    monkeypatch.setenv("BCS_KAFKA_SASL_PASSWORD_FILE", str(file))
    given = {name: value for name, value in secured_kafka.login().items() if name != "kafka_sasl_password"}
    clients = KafkaClients.of(load_settings(**given))
    client = AIOKafkaClient(**clients.options())
    await bootstrap(client, clients.servers)
    try:

        async def ask_on_a_new_connection() -> None:
            for connection in list(client._conns.values()):
                connection.close()
            await client.send(client.get_random_node(), MetadataRequest([]))

        await ask_on_a_new_connection()
        file.write_text(WRONG)
        with pytest.raises(NotConnected) as raised:
            await ask_on_a_new_connection()
        assert WRONG_LOGIN in cause_of(raised.value)
        assert f"the broker {secured_kafka.address('LOGIN')}" in cause_of(raised.value)
        file.write_text(PASSWORD)
        await ask_on_a_new_connection()
    finally:
        await client.close()


async def test_the_doctor_names_the_rights_that_are_missing(secured_kafka: SecuredKafka) -> None:
    findings = await check_kafka(load_settings(**secured_kafka.login(kafka_sasl_username="stranger")), None)
    failed = {finding.check: finding.found + finding.fix for finding in findings if finding.status == "failed"}
    assert set(failed) == {"topic consumed", "topic published", "consumer group"}
    assert "grant DESCRIBE on it" in failed["topic consumed"]
    assert "grant READ on the group that BCS_KAFKA_CONSUMER_GROUP_ID names" in failed["consumer group"]


@asynccontextmanager
async def service_of(
    secured: SecuredKafka, redis_url: str, settings: dict[str, object]
) -> AsyncIterator[tuple[RunningService, Orchestrator]]:
    given = {name: value for name, value in settings.items() if name != "kafka_bootstrap_servers"}
    address = str(settings["kafka_bootstrap_servers"])
    async with (
        service_on(address, redis_url, kafka_auto_offset_reset="latest", **given) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        yield service, orchestrator


async def says(orchestrator: Orchestrator, words: str) -> bool:
    """True if `/healthz` names this."""
    health = (await orchestrator.get("/healthz")).json
    return words in json.dumps([health["dependencies"]["kafka"], health["waits"]])


async def the_whole_path(
    secured: SecuredKafka, service: RunningService, orchestrator: Orchestrator, batch: str
) -> None:
    """From events to committed offsets, an announcement and a dead letter."""
    async with Platform(secured.plain) as platform, Group(secured.plain, service.group) as group:
        await group.stable_with(1)
        await wait_until(partial(has_status, orchestrator, "kafka", "healthy"))
        await platform.send(registered(batch, ["a"]), spellchecked(batch, "a"))
        [junk] = await platform.send_raw((topics.CJ_COMPLETED, b"key", b"junk about " + batch.encode()))
        await group.caught_up()
        answer = await orchestrator.define(batch)
        assert answer.json["pruned_phases"] == ["spellcheck"]
        await wait_until(lambda: platform.messages(topics.PHASE_SKIPPED, batch))
        assert original(await letter_about(platform, junk)) == b"junk about " + batch.encode()
        await assert_outbox_empties(orchestrator)
        await assert_nothing_crashed(service, orchestrator)


async def test_the_service_gets_well_by_itself_over_tls_with_a_login(
    secured_kafka: SecuredKafka,
    redis_url: str,
    batch: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "bcs")
    file = tmp_path / "password"
    file.write_text(WRONG)
    monkeypatch.setenv("BCS_KAFKA_SASL_PASSWORD_FILE", str(file))
    settings = {**secured_kafka.login(), "kafka_consumer_group_id": batch}
    del settings["kafka_sasl_password"]
    async with service_of(secured_kafka, redis_url, settings) as (service, orchestrator):
        await wait_until(partial(says, orchestrator, WRONG_LOGIN))
        assert await has_status(orchestrator, "kafka", "unhealthy")
        file.write_text(PASSWORD)
        # Without rights, each that is missing is named.
        for right in ("DESCRIBE", "READ on the group", "IDEMPOTENT_WRITE"):
            await wait_until(partial(says, orchestrator, right), description=f"{right} is named")
        async with granted(secured_kafka.plain, documented_rights("the service", USER, batch)):
            await the_whole_path(secured_kafka, service, orchestrator, batch)
    said = [str(record.__dict__) for record in caplog.records]
    assert any("kafka_refuses" in line and WRONG_LOGIN in line for line in said)
    for event, right in (
        ("topics_missing", topics.CJ_COMPLETED),
        ("waiting_for_dependency", "grant READ on the group"),
        ("waiting_for_dependency", "grant IDEMPOTENT_WRITE on the cluster"),
    ):
        assert any(event in line and right in line for line in said), event
    assert not [line for line in said if PASSWORD in line or WRONG in line]


@pytest.mark.release
async def test_a_connection_that_the_broker_ends_logs_in_with_the_password_of_then(
    secured_kafka: SecuredKafka,
    redis_url: str,
    batch: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    monkeypatch.setenv("BCS_KAFKA_SASL_PASSWORD_FILE", str(file))
    settings = secured_kafka.login(
        kafka_bootstrap_servers=secured_kafka.address("SHORT"), kafka_consumer_group_id=batch
    )
    del settings["kafka_sasl_password"]
    async with (
        granted(secured_kafka.plain, documented_rights("the service", USER, batch)),
        service_of(secured_kafka, redis_url, settings) as (service, orchestrator),
        Platform(secured_kafka.plain) as platform,
        Group(secured_kafka.plain, service.group) as group,
    ):
        await the_whole_path(secured_kafka, service, orchestrator, batch)
        for number in range(6):  # for longer than some logins last
            await platform.send(registered(f"{batch}-{number}", ["a"]), spellchecked(f"{batch}-{number}", "a"))
            await group.caught_up()
            # The logins last for a second, and nobody tells when a client has logged in anew.
            await anyio.sleep(0.5)
        assert "kafka_unreachable" not in caplog.messages
        file.write_text(WRONG)
        await wait_until(partial(says, orchestrator, WRONG_LOGIN))
        file.write_text(PASSWORD)
        await the_whole_path(secured_kafka, service, orchestrator, f"{batch}-again")


@pytest.mark.release
async def test_the_service_gets_well_by_itself_over_mutual_tls(
    secured_kafka: SecuredKafka, redis_url: str, batch: str, tmp_path: Path
) -> None:
    def mount(name: str) -> None:
        for suffix in ("pem", "key"):
            shutil.copy(secured_kafka.file(f"{name}.{suffix}"), tmp_path / f"mounted.{suffix}")

    mount("client-expired")
    settings = secured_kafka.mutual(
        kafka_ssl_certfile=tmp_path / "mounted.pem", kafka_ssl_keyfile=tmp_path / "mounted.key"
    )
    settings["kafka_consumer_group_id"] = batch
    async with (
        granted(secured_kafka.plain, documented_rights("the service", OWNER, batch)),
        service_of(secured_kafka, redis_url, settings) as (service, orchestrator),
    ):
        await wait_until(partial(says, orchestrator, "the client certificate of BCS_KAFKA_SSL_CERTFILE: it"))
        mount("client")
        await the_whole_path(secured_kafka, service, orchestrator, batch)
        await the_operator_replays_and_purges(secured_kafka, redis_url, batch)


async def the_operator_replays_and_purges(secured: SecuredKafka, redis_url: str, batch: str) -> None:
    """What an operator does with the dead letter of the whole path, by the documented rights."""
    operator = Operator(
        **secured.login(kafka_sasl_username="operator"), redis_url=redis_url, kafka_consumer_group_id=batch
    )
    letters = topics.dead_letter_topic(topics.CJ_COMPLETED)
    async with (
        Platform(secured.plain) as platform,
        granted(secured.plain, documented_rights("an operator", "operator", batch)),
    ):
        *_, last = [record for record in await platform.messages(letters) if record.value]
        found = (await operator.runs("doctor", "--json")).json["findings"]
        assert [one["status"] for one in found if one["check"] == "kafka"] == ["ok"]
        replayed = await operator.asks("dlq", "replay", f"{letters}/{last.partition}/{last.offset}")
        assert replayed["replayed"] == 1
        assert (await operator.asks("dlq", "purge", "--yes"))["deleted"] >= 1


@pytest.mark.release
async def test_commands_log_in_and_need_the_documented_rights(
    secured_kafka: SecuredKafka, redis_url: str, batch: str, tmp_path: Path
) -> None:
    settings = secured_kafka.login(kafka_sasl_username="operator")
    given = {name: value for name, value in settings.items() if name != "kafka_sasl_password"}
    (tmp_path / "password").write_text(PASSWORD)
    operator = Operator(
        **given, kafka_sasl_password_file=tmp_path / "password", redis_url=redis_url, kafka_consumer_group_id=batch
    )
    event = tmp_path / "event.json"
    event.write_bytes(registered(batch, ["a"]).value)
    async with (
        granted(secured_kafka.plain, documented_rights("an operator", "operator", batch)),
        Platform(secured_kafka.plain) as platform,
    ):
        sent = await operator.asks("events", "send", str(event))
        assert sent
        await wait_until(lambda: platform.messages(topics.ESSAYS_REGISTERED, batch))
        await operator.asks("dlq", "list")
        findings = await check_kafka(load_settings(**settings, kafka_consumer_group_id=batch), None)
        assert not {"kafka", "lag", "topic settings"} & {one.check for one in findings if one.status == "failed"}
    refused = await Operator(**{**given, "kafka_sasl_password": WRONG}).runs("dlq", "list")
    assert refused.exit_code == 1
    assert WRONG_LOGIN in " ".join(refused.error.split())
    assert WRONG not in refused.error
