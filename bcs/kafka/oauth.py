"""Bearer tokens for the login by OAUTHBEARER: from a file, or from an endpoint by client credentials (RFC 6749)."""

from __future__ import annotations

import base64
import json
import re
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlsplit

import aiohttp
from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import OAuthAuthenticator
from aiokafka.errors import SaslAuthenticationFailed

from bcs.config.kafka_security import KafkaFileUnusable, KafkaSecurity, is_token, read_token
from bcs.errors import os_reason
from bcs.kafka.connecting import CredentialsUnusable

_MOST_BYTES = 65_536
_KEPT_SHARE = 0.8
# Kafka's clients try again ten times a second; the endpoint is not asked as often.
_PAUSE_SECONDS = 1.0
_CODE = re.compile(r"[a-z_]{1,40}")
_OK = 200
_LONGEST_SECONDS = 86_400.0

_step_of_aiokafka = OAuthAuthenticator.step


async def _step(authenticator: OAuthAuthenticator, payload: bytes | None) -> Any:
    """See `OAuthAuthenticator.step`.

    A broker that refuses a token answers with the reason (RFC 7628). aiokafka (0.14) takes any answer for success, and
    the broker then closes the connection without a word.
    """
    if authenticator._token_sent and payload:
        raise SaslAuthenticationFailed(f"the token is refused{_status(payload)}")
    return await _step_of_aiokafka(authenticator, payload)


def _status(answer: bytes) -> str:
    try:
        status = json.loads(answer)["status"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return f" ({status})" if isinstance(status, str) and _CODE.fullmatch(status) else ""


OAuthAuthenticator.step = _step


def _seconds(value: object) -> float:
    """A lifetime; 0 where it is not known. Some endpoints send it as text."""
    try:
        seconds = float(value) if isinstance(value, int | float | str) else 0.0
    except (ValueError, OverflowError):
        return 0.0
    return min(seconds, _LONGEST_SECONDS) if seconds > 0 else 0.0


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc] # aiokafka has no types
    """Gives the token for a login."""

    @abstractmethod
    async def token(self) -> str:
        """The token for a login that begins now.

        :raises CredentialsUnusable: there is none.
        """

    def rejected(self) -> None:
        """Note that a broker did not accept the last token."""


def token_provider(security: KafkaSecurity, deadline_seconds: float) -> TokenProvider:
    """The provider that the settings describe.

    :param deadline_seconds: how long the endpoint may take.
    """
    if security.oauth_token_file is not None:
        return TokenFile(security.oauth_token_file)
    return ClientCredentials(security, deadline_seconds)


@dataclass(frozen=True, slots=True)
class TokenFile(TokenProvider):
    """A file that something else renews; it is read for each login."""

    path: Path

    async def token(self) -> str:
        """See `TokenProvider`."""
        try:
            return read_token(self.path)
        except KafkaFileUnusable as unusable:
            raise CredentialsUnusable(str(unusable)) from unusable


class ClientCredentials(TokenProvider):
    """Fetches tokens for the client's id and secret, and keeps each until shortly before it expires.

    :param deadline_seconds: how long a fetch may take.
    :param clock: returns seconds that only rise.
    """

    def __init__(
        self, security: KafkaSecurity, deadline_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._security = security
        self._deadline_seconds = deadline_seconds
        self._clock = clock
        self._token = ""
        self._fetched_at = self._good_until = -1.0
        self._problem = ""
        self._asks_again_at = -1.0

    async def token(self) -> str:
        """See `TokenProvider`. Cancellation leaves the token before in place."""
        now = self._clock()
        if self._token and now < self._good_until:
            return self._token
        if self._problem and now < self._asks_again_at:
            raise CredentialsUnusable(self._problem)
        try:
            self._token, lifetime_seconds = await self._fetch()
        except CredentialsUnusable as unavailable:
            self._problem, self._asks_again_at = str(unavailable.args[0]), self._clock() + _PAUSE_SECONDS
            raise
        self._fetched_at, self._good_until = now, now + _KEPT_SHARE * lifetime_seconds
        self._problem = ""
        return self._token

    def rejected(self) -> None:
        """See `TokenProvider`: the next login fetches a new token, but not more often than once a second."""
        if self._clock() >= self._fetched_at + _PAUSE_SECONDS:
            self._good_until = -1.0

    async def _fetch(self) -> tuple[str, float]:
        """A new token, with its lifetime in seconds; 0 where that is not known."""
        url = self._security.oauth_token_url or ""
        at = f"{urlsplit(url).netloc} (BCS_KAFKA_OAUTH_TOKEN_URL)"
        try:
            status, body = await self._post(url)
        except aiohttp.ClientConnectorCertificateError as error:
            detail = getattr(error.certificate_error, "verify_message", "") or "it is not trusted"
            raise CredentialsUnusable(f"{at}: its certificate: {detail}; see BCS_KAFKA_OAUTH_CAFILE") from error
        except KafkaFileUnusable as error:
            raise CredentialsUnusable(str(error)) from error
        except TimeoutError as error:
            raise CredentialsUnusable(f"{at}: no token in time") from error
        except aiohttp.ClientConnectorError as error:
            raise CredentialsUnusable(f"{at}: {os_reason(error.os_error).lower()}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise CredentialsUnusable(f"{at}: no answer ({type(error).__name__})") from error
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        answer = answer if isinstance(answer, dict) else {}
        if status != _OK:
            code = answer.get("error")
            detail = f": {code}" if isinstance(code, str) and _CODE.fullmatch(code) else ""
            fix = "check BCS_KAFKA_OAUTH_CLIENT_ID, BCS_KAFKA_OAUTH_CLIENT_SECRET and BCS_KAFKA_OAUTH_SCOPE"
            raise CredentialsUnusable(f"{at}: it answers {status}{detail}; {fix}")
        token, lifetime_seconds = answer.get("access_token"), answer.get("expires_in")
        if not isinstance(token, str) or not is_token(token):
            raise CredentialsUnusable(f"{at}: its answer has no access_token")
        return token, _seconds(lifetime_seconds)

    async def _post(self, url: str) -> tuple[int, bytes]:
        security = self._security
        secret = security.oauth_client_secret
        # RFC 6749, 2.3.1: both are form-encoded within the header.
        parts = (security.oauth_client_id or "", secret.get_secret_value() if secret else "")
        login = base64.b64encode(":".join(quote_plus(part) for part in parts).encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Accept": "application/json"}
        form = {"grant_type": "client_credentials"}
        if security.oauth_scope:
            form["scope"] = security.oauth_scope
        tls = security.oauth_ssl_context() if url.startswith("https") else True
        timeout = aiohttp.ClientTimeout(total=self._deadline_seconds)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            # A redirection would carry the secret to another place.
            session.post(url, data=form, headers=headers, ssl=tls, allow_redirects=False) as response,
        ):
            body = bytearray()
            async for chunk in response.content.iter_chunked(_MOST_BYTES):
                body += chunk
                if len(body) > _MOST_BYTES:
                    break
            return response.status, bytes(body)
