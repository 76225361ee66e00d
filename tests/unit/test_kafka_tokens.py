"""Tokens for the login to Kafka: from a file, or from an endpoint, which is asked seldom and for a limited time."""

from __future__ import annotations

from pathlib import Path

import pytest

from bcs.config.loading import load_settings
from bcs.kafka.connecting import CredentialsUnusable
from bcs.kafka.oauth import ClientCredentials, TokenProvider, token_provider
from tests.support.secured_kafka import SecuredKafka, token
from tests.support.token_endpoint import TokenEndpoint, running

pytestmark = pytest.mark.anyio

HIDDEN = "s&cret: 19"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> SecuredKafka:
    return SecuredKafka(tmp_path_factory.mktemp("certificates"))


def provider(url: str, endpoint: TokenEndpoint, **more: object) -> ClientCredentials:
    settings = load_settings(
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_mechanism="OAUTHBEARER",
        kafka_oauth_token_url=url,
        kafka_oauth_client_id="bcs",
        kafka_oauth_client_secret=HIDDEN,
        **{"kafka_oauth_scope": "kafka", **more},
    )
    return ClientCredentials(settings.kafka_security, 0.3, clock=lambda: endpoint.now)


async def refusal(tokens: TokenProvider) -> str:
    with pytest.raises(CredentialsUnusable) as raised:
        await tokens.token()
    text = str(raised.value.args[0])
    assert HIDDEN not in text
    return text


async def test_a_token_is_kept_until_shortly_before_it_expires() -> None:
    endpoint = TokenEndpoint()
    async with running(endpoint) as url:
        tokens = provider(url, endpoint)
        endpoint.answer = {"access_token": "first", "expires_in": 100}
        assert await tokens.token() == await tokens.token() == "first"
        endpoint.answer = {"access_token": "second", "expires_in": 100}
        endpoint.now = 79
        assert await tokens.token() == "first"
        endpoint.now = 81
        assert await tokens.token() == "second"
        endpoint.answer = {"access_token": "third"}
        tokens.rejected()  # the token is new, so another one would help no more
        assert await tokens.token() == "second"
        endpoint.now = 83
        tokens.rejected()
        assert await tokens.token() == "third"
        await tokens.token()  # how long it lasts is not known
    assert len(endpoint.requests) == 4
    login, form = endpoint.requests[0]
    # RFC 6749: the login is form-encoded.
    assert login == "bcs:s%26cret%3A+19"
    assert form == {"grant_type": "client_credentials", "scope": "kafka"}


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (401, {"error": "invalid_client", "error_description": HIDDEN}, "401: invalid_client; check"),
        (400, {"error": HIDDEN}, "it answers 400; check"),
        (302, {}, "it answers 302; check"),
        (200, {"access_token": ""}, "has no access_token"),
        (200, {"access_token": "two words"}, "has no access_token"),
        (200, b"not JSON", "has no access_token"),
        (200, b"[" * 100_000, "has no access_token"),
        (200, b" " * 200_000 + b'{"access_token": "behind-too-much"}', "has no access_token"),
        (200, None, "no token in time"),
    ],
)  # fmt: skip
async def test_an_endpoint_that_gives_no_token_is_named(status: int, answer: object, words: str) -> None:
    endpoint = TokenEndpoint()
    endpoint.status, endpoint.answer = status, answer
    async with running(endpoint) as url:
        tokens = provider(url, endpoint)
        said = await refusal(tokens)
        assert "BCS_KAFKA_OAUTH_TOKEN_URL" in said
        assert words in said
        assert await refusal(tokens) == said
        assert len(endpoint.requests) == 1  # not again within a second
        endpoint.status, endpoint.answer, endpoint.now = 200, {"access_token": "good", "expires_in": 9}, 1.5
        assert await tokens.token() == "good"


@pytest.mark.parametrize(
    ("lifetime", "kept_seconds"),
    [(100, 79), ("100", 79), (10**9, 60_000), ("soon", 0), ("nan", 0), (-5, 0), (None, 0)],
)
async def test_the_lifetime_of_a_token_may_be_anything(lifetime: object, kept_seconds: float) -> None:
    endpoint = TokenEndpoint()
    endpoint.answer = {"access_token": "token", "expires_in": lifetime}
    async with running(endpoint) as url:
        tokens = provider(url, endpoint)
        await tokens.token()
        endpoint.now = kept_seconds
        await tokens.token()
        assert len(endpoint.requests) == (1 if kept_seconds else 2)
        endpoint.now = 90_000
        await tokens.token()
    assert len(endpoint.requests) == (2 if kept_seconds else 3)


async def test_the_certificate_of_the_endpoint_is_checked(secured: SecuredKafka) -> None:
    endpoint = TokenEndpoint()
    endpoint.answer = {"access_token": "good", "expires_in": 9}
    async with running(endpoint, secured) as url:
        assert "BCS_KAFKA_OAUTH_CAFILE" in await refusal(provider(url, endpoint))
        assert await provider(url, endpoint, kafka_oauth_cafile=secured.file("ca.pem")).token() == "good"
    assert "refused" in await refusal(provider(url, endpoint, kafka_oauth_cafile=secured.file("ca.pem")))


async def test_a_token_file_is_read_for_each_login(tmp_path: Path) -> None:
    file, first, second = tmp_path / "token", token("first"), token("second")
    file.write_text(f"{first}\n")
    settings = {"kafka_security_protocol": "SASL_SSL", "kafka_sasl_mechanism": "OAUTHBEARER"}
    tokens = token_provider(load_settings(**settings, kafka_oauth_token_file=file).kafka_security, 1.0)
    assert await tokens.token() == first
    file.write_text(second)
    assert await tokens.token() == second
    file.unlink()
    assert await refusal(tokens) == "BCS_KAFKA_OAUTH_TOKEN_FILE can't be read: No such file or directory"
