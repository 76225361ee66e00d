"""Connections to Kafka: a refused login is not repeated at once, and a failure names the brokers that there are."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaError, NodeNotReadyError, SaslAuthenticationFailed

from bcs.config.loading import load_settings
from bcs.config.refused_logins import RefusedLogins
from bcs.kafka import connecting
from bcs.kafka.clients import FreshConnections, KafkaClients

pytestmark = pytest.mark.anyio

ADDRESS = ("broker", 9093)
WRONG = "wrong"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def attempts(logins: RefusedLogins, clock: Clock, password: str | None, seconds: int) -> list[float]:
    """When a login that is always refused is tried by a client that would try ten times a second."""
    tried = []
    for step in range(seconds * 10):
        clock.now = step / 10
        try:
            logins.ensure_due(ADDRESS, password)
        except SaslAuthenticationFailed as error:
            assert error.args == ("no",)  # noqa: PT017 (most calls raise nothing)
            continue
        tried.append(clock.now)
        logins.note(ADDRESS, password, SaslAuthenticationFailed("no"), may_lock=password is not None)
    return tried


def test_the_pause_after_a_refused_login_grows_to_half_a_minute() -> None:
    clock = Clock()
    assert attempts(RefusedLogins(clock), clock, "wrong", 100) == [0, 1, 3, 7, 15, 31, 61, 91]


def test_a_new_password_is_tried_at_once_and_only_at_the_broker_that_refused_the_one_before() -> None:
    clock = Clock()
    logins = RefusedLogins(clock)
    attempts(logins, clock, "wrong", 100)
    logins.ensure_due(ADDRESS, "right")
    logins.ensure_due(("another", 9093), "wrong")
    logins.forget(ADDRESS)
    logins.ensure_due(ADDRESS, "wrong")


def test_a_refused_token_is_tried_each_second_because_it_locks_no_account() -> None:
    clock = Clock()
    assert attempts(RefusedLogins(clock), clock, None, 4) == [0, 1, 2, 3]


async def test_all_clients_of_a_process_wait_together(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    async def refuse(host: str, port: int, options: object) -> None:
        opened.append((host, port))
        raise SaslAuthenticationFailed("no")

    monkeypatch.setattr(connecting, "_open", refuse)
    monkeypatch.setattr(connecting, "_WAITING_LOGIN_SECONDS", 0.001)
    clients = KafkaClients.of(
        load_settings(
            kafka_security_protocol="SASL_PLAINTEXT",
            kafka_sasl_mechanism="PLAIN",
            kafka_sasl_username="bcs",
            kafka_sasl_password=WRONG,
        )
    )
    sources = [clients.options()["ssl_context"] for _ in range(3)]
    for number, source in enumerate(sources * 2):
        assert isinstance(source, FreshConnections)
        others: list[str] = []
        asyncio.get_running_loop().call_soon(others.append, "had a turn")
        with pytest.raises(KafkaError, match="no"):
            await connecting._connect(source, *ADDRESS, {})
        assert ADDRESS in source.failures
        # aiokafka may try again without a pause, so a login that waits lets others have their turns.
        assert others or number == 0
    assert opened == [ADDRESS]
    assert "wrong" not in f"{sources} {clients}"


def test_a_broker_that_has_left_the_cluster_is_no_cause() -> None:
    source = KafkaClients.of(load_settings()).options()["ssl_context"]
    source.failures |= {ADDRESS: OSError("stays"), ("gone", 9093): OSError("left")}
    [host, port] = ADDRESS
    brokers = [SimpleNamespace(host=host, port=port)]
    client: Any = SimpleNamespace(_ssl_context=source, cluster=SimpleNamespace(brokers=lambda: brokers))
    with pytest.raises(connecting.NotConnected) as found:
        connecting._raise_with_failures(client, NodeNotReadyError())
    assert found.value.failures.keys() == {ADDRESS}
