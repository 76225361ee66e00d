"""The settings for a secured Kafka: contradictions and unusable files are refused, each by its variable."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import bcs
from bcs.config.loading import load_settings
from bcs.config.settings import InvalidSettings
from bcs.kafka.clients import KafkaClients
from tests.support.secured_kafka import OPENS_KEY, SecuredKafka

HIDDEN = "hidden-19"
LOGIN = {
    "kafka_security_protocol": "SASL_SSL",
    "kafka_sasl_mechanism": "SCRAM-SHA-512",
    "kafka_sasl_username": "bcs",
    "kafka_sasl_password": HIDDEN,
}
TOKENS = {
    "kafka_security_protocol": "SASL_SSL",
    "kafka_sasl_mechanism": "OAUTHBEARER",
    "kafka_oauth_token_url": "https://idp/token",
    "kafka_oauth_client_id": "bcs",
    "kafka_oauth_client_secret": HIDDEN,
}


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("BCS_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> SecuredKafka:
    return SecuredKafka(tmp_path_factory.mktemp("certificates"))


def refused(**settings: object) -> dict[str, str]:
    """The variables that are refused, without their prefix, with the reasons."""
    with pytest.raises(InvalidSettings) as raised:
        load_settings(**settings)
    assert HIDDEN not in str(raised.value)
    return {variable.removeprefix("BCS_KAFKA_"): problem for variable, problem in raised.value.problems}


@pytest.mark.parametrize(
    ("changed", "variables"),
    [
        ({"kafka_sasl_mechanism": None}, ["SASL_MECHANISM"]),
        ({"kafka_sasl_username": None}, ["SASL_USERNAME"]),
        ({"kafka_sasl_password": None}, ["SASL_PASSWORD"]),
        ({"kafka_security_protocol": "SSL"}, ["SASL_MECHANISM", "SASL_USERNAME", "SASL_PASSWORD"]),
        ({"kafka_security_protocol": "PLAINTEXT"}, ["SASL_MECHANISM", "SASL_USERNAME", "SASL_PASSWORD"]),
        ({"kafka_sasl_mechanism": "OAUTHBEARER"}, ["SASL_USERNAME", "SASL_PASSWORD", "OAUTH_TOKEN_FILE"]),
        ({"kafka_oauth_token_url": f"https://idp/{HIDDEN}"}, ["OAUTH_TOKEN_URL"]),
        ({"kafka_security_protocol": "TLS"}, ["SECURITY_PROTOCOL"]),
        ({"kafka_sasl_mechanism": "GSSAPI"}, ["SASL_MECHANISM"]),
    ],
)
def test_a_login_that_contradicts_itself_is_refused(changed: dict[str, object], variables: list[str]) -> None:
    assert list(refused(**LOGIN | changed)) == variables


@pytest.mark.parametrize(
    ("changed", "variable", "words"),
    [
        ({"kafka_oauth_client_id": None}, "OAUTH_CLIENT_ID", "must be set"),
        ({"kafka_oauth_client_secret": None}, "OAUTH_CLIENT_SECRET", "must be set"),
        ({"kafka_oauth_token_url": "http://idp/token"}, "OAUTH_TOKEN_URL", "must be https"),
        ({"kafka_oauth_token_url": f"https://u:{HIDDEN}@idp/token"}, "OAUTH_TOKEN_URL", "must have no login"),
        ({"kafka_oauth_token_url": "idp/token"}, "OAUTH_TOKEN_URL", "must begin with https://"),
        ({"kafka_oauth_token_url": "https://idp:x/token"}, "OAUTH_TOKEN_URL", "is not a URL"),
        ({"kafka_oauth_cafile": "/nowhere"}, "OAUTH_CAFILE", "No such file"),
        ({"kafka_oauth_token_file": "/nowhere"}, "OAUTH_TOKEN_URL", "only one of both ways"),
        (
            {
                "kafka_oauth_token_url": None,
                "kafka_oauth_client_id": None,
                "kafka_oauth_client_secret": None,
                "kafka_oauth_token_file": "/nowhere",
            },
            "OAUTH_TOKEN_FILE",
            "No such file",
        ),
    ],
)
def test_a_token_that_can_not_be_had_is_refused(changed: dict[str, object], variable: str, words: str) -> None:
    assert words in refused(**TOKENS | changed)[variable]


def test_a_token_file_without_a_token_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    for content in (b"", b"two words " + HIDDEN.encode(), b"\xff"):
        file.write_bytes(content)
        settings = {"kafka_security_protocol": "SASL_SSL", "kafka_sasl_mechanism": "OAUTHBEARER"}
        assert "has no token" in refused(**settings, kafka_oauth_token_file=file)["OAUTH_TOKEN_FILE"]


@pytest.mark.parametrize(
    ("files", "variable", "words"),
    [
        ({"cafile": "missing"}, "SSL_CAFILE", "No such file"),
        ({"cafile": "client.key"}, "SSL_CAFILE", "no certificate in PEM format"),
        ({"certfile": "missing", "keyfile": "client.key"}, "SSL_CERTFILE", "No such file"),
        ({"certfile": "client.key", "keyfile": "client.key"}, "SSL_CERTFILE", "no certificate in PEM format"),
        ({"certfile": "client.pem"}, "SSL_CERTFILE", "BCS_KAFKA_SSL_KEYFILE is not set"),
        ({"certfile": "client.pem", "keyfile": "client.pem"}, "SSL_KEYFILE", "no private key in PEM format"),
        ({"certfile": "client.pem", "keyfile": "broker.key"}, "SSL_KEYFILE", "key of another certificate"),
        ({"certfile": "client.pem", "keyfile": "client-encrypted.key"}, "SSL_KEYFILE", "PASSWORD is not set"),
        ({"keyfile": "client.key"}, "SSL_KEYFILE", "without the certificate"),
    ],
)
def test_files_that_can_not_be_used_are_refused(
    secured: SecuredKafka, files: dict[str, str], variable: str, words: str
) -> None:
    settings = {f"kafka_ssl_{name}": secured.file(file) for name, file in files.items()}
    assert words in refused(kafka_security_protocol="SSL", **settings)[variable]
    assert set(refused(**settings)) == {f"SSL_{name.upper()}" for name in files}  # without TLS they have no effect


def test_an_encrypted_key_needs_its_password(secured: SecuredKafka) -> None:
    files = secured.mutual(kafka_ssl_keyfile=secured.file("client-encrypted.key"))
    assert "does not fit" in refused(**files, kafka_ssl_key_password=HIDDEN)["SSL_KEYFILE"]
    load_settings(**files, kafka_ssl_key_password=OPENS_KEY)


def test_every_client_is_made_with_the_options_of_the_one_place() -> None:
    root = Path(bcs.__file__).parent
    makers = {
        str(file.relative_to(root))
        for file in root.rglob("*.py")
        if re.search(r"\bbootstrap_servers=", file.read_text()) and "devtools" not in file.parts
    }
    assert makers == set()


def test_the_secrets_of_kafka_can_be_in_files(
    secured: SecuredKafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    monkeypatch.setenv("BCS_KAFKA_SASL_PASSWORD_FILE", str(file))
    settings = load_settings(**{name: value for name, value in LOGIN.items() if name != "kafka_sasl_password"})
    options = KafkaClients.of(settings).options()
    assert "first" in options["ssl_context"].fresh().values()
    file.write_text("second\n")
    assert "second" in options["ssl_context"].fresh().values()
    assert "second" not in repr(options)


def test_certificates_are_loaded_again_when_their_files_change(secured: SecuredKafka, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(secured.file("ca.pem").read_bytes())
    source = KafkaClients.of(load_settings(**secured.login(kafka_ssl_cafile=ca))).options()["ssl_context"]
    first = source.fresh()["ssl_context"]
    assert source.fresh()["ssl_context"] is first
    ca.write_bytes(secured.file("foreign-ca.pem").read_bytes())
    assert source.fresh()["ssl_context"] is not first
    assert source.fresh()["ssl_context"].get_ca_certs() != first.get_ca_certs()
