"""Tokens for the login to Kafka: from a file, or from an endpoint, which is asked seldom and for a limited time."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from bcs.config.settings import load_settings
from bcs.kafka.connecting import CredentialsUnusable
from bcs.kafka.oauth import ClientCredentials, TokenProvider, token_provider
from tests.support.secured_kafka import SecuredKafka, server_context, token

pytestmark = pytest.mark.anyio

HIDDEN = "s&cret: 19"


class Endpoint:
    """A token endpoint. It gives what `answer` is set to, and keeps the requests."""

    def __init__(self) -> None:
        self.answer: object = {}
        self.status = 200
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.now = 0.0

    async def post(self, request: web.Request) -> web.StreamResponse:
        login = base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")).decode()
        self.requests.append((login, {name: str(value) for name, value in (await request.post()).items()}))
        if self.answer is None:
            await asyncio.sleep(60)
        if isinstance(self.answer, bytes):
            return web.Response(body=self.answer, status=self.status)
        return web.json_response(self.answer, status=self.status, headers={"Location": "/elsewhere"})


@asynccontextmanager
async def running(endpoint: Endpoint, secured: SecuredKafka | None = None) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post("/token", endpoint.post)
    runner = web.AppRunner(application, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(secured) if secured else None)
    await site.start()
    try:
        yield f"{'https' if secured else 'http'}://127.0.0.1:{runner.addresses[0][1]}/token"
    finally:
        await runner.cleanup()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> SecuredKafka:
    return SecuredKafka(tmp_path_factory.mktemp("certificates"))


def provider(url: str, endpoint: Endpoint, **more: object) -> ClientCredentials:
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
    endpoint = Endpoint()
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
        (200, None, "no token in time"),
    ],
)  # fmt: skip
async def test_an_endpoint_that_gives_no_token_is_named(status: int, answer: object, words: str) -> None:
    endpoint = Endpoint()
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


async def test_the_certificate_of_the_endpoint_is_checked(secured: SecuredKafka) -> None:
    endpoint = Endpoint()
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
