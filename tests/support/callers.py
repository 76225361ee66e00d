"""A file of callers for tests, and what they send."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from bcs.http import reloaded
from bcs.http.identity import Scope

LOOKS_EVERY_SECONDS = 0.02
TOKENS = {scope: f"token-of-the-caller-who-may-{scope}" for scope in Scope}
ROUTES = [
    ("POST", "/internal/v1/pipelines/define", Scope.RESOLVE),
    ("POST", "/internal/v1/phases/complete", Scope.REPORT),
    ("GET", "/internal/v1/batches/b", Scope.READ),
    ("GET", "/internal/v1/batches/b/history", Scope.READ),
    ("GET", "/internal/v1/pipelines", Scope.READ),
    ("GET", "/internal/v1/pipelines/unknown/graph", Scope.READ),
    ("POST", "/internal/v1/pipelines/reload", Scope.OPERATE),
    ("POST", "/internal/v1/batches/b/invalidate", Scope.OPERATE),
    ("GET", "/internal/v1/actors", Scope.READ),
    ("POST", "/internal/v1/actors/nobody/kill", Scope.OPERATE),
]
BODIES = {
    "/internal/v1/pipelines/define": {"batch_id": "b", "requested_pipeline": "nlp", "correlation_id": "c"},
    "/internal/v1/phases/complete": {"batch_id": "b", "phase_name": "nlp", "success": True},
    "/internal/v1/batches/b/invalidate": {"phases": ["nlp"], "reason": "a test"},
}


def callers(*more: Mapping[str, object], tokens: Iterable[Scope] = Scope) -> str:
    """A file with a caller for each scope, named `may-<scope>`.

    :param more: further callers.
    """
    each: list[Mapping[str, object]] = [
        {"name": f"may-{scope}", "scopes": [scope], "tokens": [TOKENS[scope]]} for scope in tokens
    ]
    return json.dumps({"callers": [*each, *more]}, indent=1)


@contextmanager
def files_looked_at_often() -> Iterator[None]:
    """Let services look for changed files more often than usual."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reloaded, "_EVERY_SECONDS", LOOKS_EVERY_SECONDS)
        yield


def replace(file: Path, text: str) -> None:
    """Replace a file as Kubernetes does it: by another file."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


@dataclass
class Response:
    """A response, taken apart."""

    status: int
    head: str
    body: bytes

    @property
    def kind(self) -> str:
        """The kind of a problem; empty for another answer."""
        return str(json.loads(self.body).get("type", "")).rpartition(":")[2]


def request(method: str, path: str, *headers: str, body: bytes = b"", length: int | None = None) -> bytes:
    """A request as bytes.

    :param length: as the header says it; None for that of the body.
    """
    lines = [f"{method} {path} HTTP/1.1", "Host: bcs", *headers]
    if method in ("POST", "PUT"):
        length = len(body) if length is None else length
        lines += ["Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode(errors="surrogateescape") + body


def asking(path: str, *headers: str, method: str = "POST") -> bytes:
    """A request to a route, with a body that it accepts."""
    body = json.dumps(BODIES[path]).encode() if path in BODIES and method in ("POST", "PUT") else b""
    return request(method, path, *headers, body=body)


def bearer(token: str) -> str:
    """The header with a token."""
    return f"Authorization: Bearer {token}"


async def response_of(reader: asyncio.StreamReader) -> Response:
    """The next response."""
    with anyio.fail_after(30):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        [length] = re.findall(r"(?i)content-length: (\d+)", head)
        return Response(int(head.split()[1]), head, await reader.readexactly(int(length)))
