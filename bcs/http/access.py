"""Finds out who sends a request, and whether this caller may."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web
from aiohttp.hdrs import AUTHORIZATION

from bcs.config.files import read_regular_file
from bcs.config.settings import Settings
from bcs.errors import os_reason
from bcs.http.callers_file import CallersFileUnusable, KnownCallers, digest_of, parse_callers
from bcs.http.identity import IDENTITY, CallerIdentity, Scope
from bcs.http.problems import Problem
from bcs.http.reloaded import FileUnusable, Reloaded
from bcs.http.tls import CERTIFICATE_NAMES

CALLERS_SETTING = "BCS_HTTP_TOKENS_FILE"
CALLERS_UNKNOWN = "BCS_HTTP_TOKENS_FILE is not set in production: every HTTP client may do everything"
_MOST_BYTES = 1024 * 1024


class Access:
    """Admits the callers of a file: by a bearer token (RFC 6750), or else by the certificate of the connection.

    A token is looked up by its SHA-256. How long that takes can tell a stranger how much of the digest is right, but
    nobody can choose the digest of what he sends, so the time tells nothing about a token.

    :param known: the callers.
    """

    def __init__(self, known: Reloaded[KnownCallers]) -> None:
        self._known = known

    def admit(self, scope: Scope | None, request: web.Request) -> None:
        """Let the request name its caller.

        :param scope: what the caller must be allowed to do; None where it is enough to be known.
        :raises Problem: 401 if the caller is not known, 403 without the scope. The request names its caller then, too.
        """
        headers = request.headers.getall(AUTHORIZATION, None)
        identity = self._by_token(headers) if headers else self._by_certificate(request)
        if identity is None:
            raise _unauthenticated(sent=bool(headers))
        request[IDENTITY] = identity
        if scope is not None and scope not in identity.scopes:
            raise _forbidden(scope)

    def admits(self, scope: Scope | None, request: web.Request) -> bool:
        """True if the caller of a request is known and has the scope; see `admit`."""
        try:
            self.admit(scope, request)
        except Problem:
            return False
        return True

    def _by_token(self, headers: list[str]) -> CallerIdentity | None:
        scheme, _, token = headers[0].partition(" ")
        if len(headers) > 1 or scheme.lower() != "bearer":
            return None
        return self._known.current.by_digest.get(digest_of(token.strip(" ")))

    def _by_certificate(self, request: web.Request) -> CallerIdentity | None:
        known = self._known.current.by_certificate
        if not known:
            return None
        names: tuple[str, ...] = request.get_extra_info(CERTIFICATE_NAMES, ())
        return next((known[name] for name in names if name in known), None)


def callers_of(settings: Settings) -> Reloaded[KnownCallers] | None:
    """The callers that the settings name; None if BCS does not ask who its callers are.

    :raises InvalidSettings: the file can't be used.
    """
    path = settings.http_tokens_file
    return None if path is None else Reloaded(CALLERS_SETTING, [path], lambda: _read(path))


def _read(path: Path) -> KnownCallers:
    try:
        content = read_regular_file(path, _MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise FileUnusable(f"{path}: has more than {_MOST_BYTES} bytes")
        return parse_callers(content.decode())
    except OSError as error:
        raise FileUnusable(f"{path}: can't be read: {os_reason(error)}") from None
    except UnicodeDecodeError:
        raise FileUnusable(f"{path}: is not UTF-8 text") from None
    except CallersFileUnusable as unusable:
        raise FileUnusable(f"{path}, {unusable.cause}") from None


def _unauthenticated(*, sent: bool) -> Problem:
    if not sent:
        detail = "the request names no caller: send the header Authorization with a bearer token"
        return Problem("unauthenticated", detail, challenge="Bearer")
    detail = "the header Authorization does not have one bearer token that BCS knows"
    return Problem("unauthenticated", detail, challenge='Bearer error="invalid_token"')


def _forbidden(scope: Scope) -> Problem:
    return Problem(
        "forbidden",
        f"this caller has no scope {scope.value}",
        {"scope": scope.value},
        challenge=f'Bearer error="insufficient_scope", scope="{scope.value}"',
    )
