"""Callers with bearer tokens: what each scope allows, what is refused and how, rotation, and probes apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from bcs.config.settings import InvalidSettings
from bcs.http.connection import Connection
from bcs.http.identity import Scope
from tests.support.callers import (
    LOOKS_EVERY_SECONDS,
    ROUTES,
    TOKENS,
    Response,
    asking,
    bearer,
    callers,
    files_looked_at_often,
    replace,
    request,
    response_of,
)
from tests.support.service import DEFINE, Orchestrator, RunningService, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

NOWHERE = {"use_mock_repository": True, "kafka_bootstrap_servers": "127.0.0.1:1"}
ACTORS = "/internal/v1/actors"
PROBES = ["/healthz", "/readyz", "/metrics"]
MAY_RESOLVE = bearer(TOKENS[Scope.RESOLVE])
UNUSABLE = "callers: [this, is, *not-a-file"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("callers") / "callers.json"
    path.write_text(callers())
    return path


@pytest.fixture(scope="module", autouse=True)
def often() -> Iterator[None]:
    with files_looked_at_often():
        yield


@pytest.fixture(scope="module")
def service(file: Path) -> Iterator[RunningService]:
    with service_in_thread(**NOWHERE, http_tokens_file=file, chaos_enabled=True) as running:
        yield running


@asynccontextmanager
async def connected(
    service: RunningService, *, probes: bool = False
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    address = service.service.probe_address if probes else service.service.address
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(service: RunningService, sent: bytes, *, probes: bool = False) -> Response:
    async with connected(service, probes=probes) as (reader, writer):
        writer.write(sent)
        return await response_of(reader)


@pytest.mark.parametrize("scope", Scope)
async def test_each_route_needs_its_scope_and_no_other(service: RunningService, scope: Scope) -> None:
    for method, path, needed in ROUTES:
        found = await answer(service, asking(path, bearer(TOKENS[scope]), method=method))
        assert found.kind not in ("unauthenticated", "internal"), path
        assert (found.status == 403) == (scope != needed), path
        if scope != needed:
            assert json.loads(found.body)["scope"] == needed
            assert f'WWW-Authenticate: Bearer error="insufficient_scope", scope="{needed}"' in found.head
            assert "application/problem+json" in found.head


async def test_without_a_token_every_path_but_the_probes_is_401(service: RunningService) -> None:
    paths = [(method, path) for method, path, _ in ROUTES] + [("GET", "/"), ("GET", "/nowhere"), ("PUT", DEFINE)]
    paths += [("POST", "/healthz"), ("HEAD", "/internal/v1/batches/b"), ("GET", f"http://bcs{ACTORS}")]
    # Paths that look like a probe.
    paths += [("GET", "//healthz"), ("GET", "/healthz/"), ("GET", "/HEALTHZ"), ("GET", f"{ACTORS}/../../../healthz")]
    paths += [("OPTIONS", "*"), ("CONNECT", "bcs:443")]
    for method, path in [*paths, ("GET", f"{ACTORS}?/healthz"), ("GET", f"{ACTORS}#/healthz")]:
        async with connected(service) as (reader, writer):
            writer.write(asking(path, method=method))
            with anyio.fail_after(30):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.split()[1] == "401", path
        assert "WWW-Authenticate: Bearer\r\n" in head
        assert "application/problem+json" in head
        assert "Allow" not in head
    for path in PROBES:
        assert (await answer(service, request("GET", path))).status in (200, 503), path


MALFORMED: dict[str, list[str]] = {
    "unknown": [bearer("token-that-nobody-has")],
    "empty header": ["Authorization:"],
    "no token": ["Authorization: Bearer"],
    "empty token": ["Authorization: Bearer  "],
    "another scheme": [f"Authorization: Basic {TOKENS[Scope.RESOLVE]}"],
    "no scheme": [f"Authorization: {TOKENS[Scope.RESOLVE]}"],
    "two headers": [MAY_RESOLVE, MAY_RESOLVE],
    "a wrong header after the right one": [MAY_RESOLVE, bearer("token-that-nobody-has")],
    "two tokens": [f"{MAY_RESOLVE} {TOKENS[Scope.RESOLVE]}"],
    "part of a token": [MAY_RESOLVE[:-1]],
    "more than a token": [f"{MAY_RESOLVE}x"],
    "another case": [bearer(TOKENS[Scope.RESOLVE].upper())],
    "not ASCII": [bearer("räksmörgås-räksmörgås")],
    "not UTF-8": [bearer("\udcff\udcfe-and-sixteen-more")],
    "the digest": [bearer(sha256(TOKENS[Scope.RESOLVE].encode()).hexdigest())],
    "8 kB": [bearer("x" * 8000)],
}


@pytest.mark.parametrize("headers", MALFORMED.values(), ids=MALFORMED)
async def test_a_header_without_one_known_token_is_401(service: RunningService, headers: list[str]) -> None:
    found = await answer(service, asking(DEFINE, *headers))
    assert (found.status, found.kind) == (401, "unauthenticated")
    assert 'WWW-Authenticate: Bearer error="invalid_token"' in found.head
    for header in headers:
        value = header.partition(":")[2].strip()
        assert not value or value.encode(errors="surrogateescape") not in found.body


async def test_a_token_of_10_kb_is_refused_as_any_header_of_that_size(service: RunningService) -> None:
    found = await answer(service, asking(DEFINE, bearer("x" * 10_000)))
    assert (found.status, found.kind) == (431, "head-too-large")
    assert b"xxx" not in found.body


@pytest.mark.parametrize("scheme", ["bearer", "BEARER"])
async def test_the_scheme_has_any_case(service: RunningService, scheme: str) -> None:
    header = f"Authorization: {scheme} {TOKENS[Scope.RESOLVE]}"
    assert (await answer(service, asking(DEFINE, header))).status == 200


async def test_a_known_caller_learns_which_paths_there_are(service: RunningService) -> None:
    assert (await answer(service, request("GET", "/nowhere", MAY_RESOLVE))).kind == "not-found"
    assert (await answer(service, request("GET", DEFINE, MAY_RESOLVE))).kind == "method-not-allowed"


async def test_the_body_of_a_stranger_is_not_read(service: RunningService) -> None:
    found = await answer(service, request("POST", DEFINE, length=1_000_000))
    assert found.status == 401
    assert "Connection: close" in found.head


@pytest.mark.parametrize(("headers", "status"), [([], 401), ([bearer(TOKENS[Scope.READ])], 403)])
async def test_the_body_of_a_caller_who_may_not_is_not_asked_for(
    service: RunningService, headers: list[str], status: int
) -> None:
    found = await answer(service, request("POST", DEFINE, *headers, "Expect: 100-continue", length=10))
    assert found.status == status


async def test_pipelined_requests_are_admitted_one_by_one(service: RunningService) -> None:
    tokens = [MAY_RESOLVE, bearer("token-that-nobody-has"), bearer(TOKENS[Scope.READ]), MAY_RESOLVE]
    async with connected(service) as (reader, writer):
        writer.write(b"".join(asking(DEFINE, token) for token in tokens))
        assert [(await response_of(reader)).status for _ in tokens] == [200, 401, 403, 200]
        writer.write(asking(DEFINE))
        assert (await response_of(reader)).status == 401


async def test_an_answer_at_once_is_admitted_like_any_other(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once: list[str] = []
    send = Connection._answer

    async def noted(self: Connection, request: object, handler: object) -> None:
        at_once.append("request")
        await send(self, request, handler)  # type: ignore[arg-type]

    monkeypatch.setattr(Connection, "_answer", noted)
    # A connection for each: on the same one, the next request could come before the end of the task of this one.
    for headers, status in (([MAY_RESOLVE], 200), ([], 401), ([bearer(TOKENS[Scope.READ])], 403)):
        assert (await answer(service, asking(DEFINE, *headers))).status == status
    assert len(at_once) == 3


async def test_tokens_change_without_a_restart(service: RunningService, file: Path) -> None:
    old, new = MAY_RESOLVE, bearer("a-new-token-for-rotation")

    async def status(token: str, expected: int) -> bool:
        writer.write(asking(DEFINE, token))
        return (await response_of(reader)).status == expected

    # One connection for all: an open connection is no way around a token that was taken away.
    async with connected(service) as (reader, writer):
        assert await status(old, 200)
        rotating = {"name": "rotating", "scopes": ["resolve"], "tokens": ["a-new-token-for-rotation"]}
        replace(file, callers(rotating))
        await wait_until(lambda: status(new, 200))
        assert await status(old, 200)
        replace(file, callers(rotating, tokens=[]))
        await wait_until(lambda: status(old, 401))
        assert await status(new, 200)
        replace(file, callers())
        await wait_until(lambda: status(new, 401))
        assert await status(old, 200)


async def test_an_unusable_file_leaves_the_former_callers_and_is_named(service: RunningService, file: Path) -> None:
    async def problem() -> str:
        health = json.loads((await answer(service, request("GET", "/healthz"))).body)
        message: str = health["credentials"].get("BCS_HTTP_TOKENS_FILE", "")
        assert not message or "BCS_HTTP_TOKENS_FILE" in health["message"]
        return message

    async def counted() -> float:
        async with Orchestrator(service.base) as caller:
            return await caller.metric("bcs_credentials_unusable", setting="BCS_HTTP_TOKENS_FILE") or 0

    with capture_logs() as logs:
        # That nothing happens shows only in time: it looks several times meanwhile.
        await anyio.sleep(5 * LOOKS_EVERY_SECONDS)
        assert not logs, "a file that did not change is not read again"
        replace(file, UNUSABLE)
        named = await wait_until(problem)
        assert await counted() == 1
        replace(file, f"{UNUSABLE} ")  # another version with the same problem
        # The same: nothing is said about it.
        await anyio.sleep(5 * LOOKS_EVERY_SECONDS)
        assert (await answer(service, asking(DEFINE, MAY_RESOLVE))).status == 200
        replace(file, callers())

        async def mended() -> bool:
            return not await problem()

        await wait_until(mended)
        assert await counted() == 0
    assert "line 1: not valid YAML" in named
    assert "not-a-file" not in named
    warned = [entry for entry in logs if entry["event"] == "credentials_unusable"]
    assert [(entry["setting"], entry["cause"] in named) for entry in warned] == [("BCS_HTTP_TOKENS_FILE", True)]


def test_an_unusable_file_refuses_the_start_and_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "callers"
    for text, found in ((UNUSABLE, "line 1: not valid YAML"), (None, "No such file")):
        if text:
            path.write_text(text)
        else:
            path.unlink()
        with pytest.raises(InvalidSettings, match="BCS_HTTP_TOKENS_FILE") as refused:
            service_in_thread(**NOWHERE, http_tokens_file=path).__enter__()
        assert found in str(refused.value)


async def test_probes_have_a_port_of_their_own(file: Path) -> None:
    with service_in_thread(**NOWHERE, http_tokens_file=file, http_probe_port=0) as own:
        for path in PROBES:
            assert (await answer(own, request("GET", path), probes=True)).status in (200, 503), path
            assert (await answer(own, request("GET", path, MAY_RESOLVE))).kind == "not-found", path
        for method, path, _ in ROUTES:
            found = await answer(own, asking(path, MAY_RESOLVE, method=method), probes=True)
            assert (found.status, found.kind) == (404, "not-found"), path
        assert (await answer(own, asking(DEFINE, MAY_RESOLVE))).status == 200
        assert own.call(own.service.root.kill, "http", "for a test")
        assert (await answer(own, request("GET", "/metrics"), probes=True)).status == 200


async def test_the_log_has_the_name_of_the_caller(service: RunningService) -> None:
    with capture_logs() as logs:
        await answer(service, request("GET", "/internal/v1/nowhere", MAY_RESOLVE, "User-Agent: bos/1"))
        await answer(service, request("POST", f"{ACTORS}/metrics/kill", bearer(TOKENS[Scope.OPERATE])))
        await answer(service, request("POST", f"{ACTORS}/metrics/kill"))
        await answer(service, request("POST", f"{ACTORS}/metrics/kill", MAY_RESOLVE))
    by = {entry["event"]: entry.get("requested_by") for entry in reversed(logs) if entry["event"] != "request_refused"}
    refused = [entry["requested_by"] for entry in logs if entry["event"] == "request_refused"]
    assert by["actor_killed_on_request"] == "may-operate (unknown at 127.0.0.1)"
    assert refused == [
        "may-resolve (bos/1 at 127.0.0.1)",
        "unknown at 127.0.0.1",
        "may-resolve (unknown at 127.0.0.1)",  # a known caller, who may not
    ]


async def test_the_history_has_the_name_of_the_caller(
    module_database_url: str, redis_url: str, file: Path, unique_name: Callable[[str], str]
) -> None:
    with service_in_thread(
        redis_url=redis_url,
        kafka_bootstrap_servers="127.0.0.1:1",
        database_url=module_database_url,
        http_tokens_file=file,
    ) as kept:
        batch = unique_name("batch")
        async with Orchestrator(kept.base) as caller:
            may = {scope: {"Authorization": f"Bearer {token}", "User-Agent": "x/1"} for scope, token in TOKENS.items()}
            report = {"batch_id": batch, "phase_name": "nlp", "success": True}
            asked = {"batch_id": batch, "requested_pipeline": "nlp", "correlation_id": "c"}
            path = "/internal/v1/phases/complete"
            assert (await caller.request("POST", path, json=report, headers=may[Scope.REPORT])).status == 200
            assert (await caller.request("POST", DEFINE, json=asked, headers=may[Scope.RESOLVE])).status == 200

            async def entries() -> list[dict[str, str]]:
                history = f"/internal/v1/batches/{batch}/history"
                found = (await caller.request("GET", history, headers=may[Scope.READ])).json.get("entries", [])
                return found if len(found) == 2 else []

            resolution, reported = await wait_until(entries)
    assert resolution["requested_by"] == "may-resolve (x/1 at 127.0.0.1)"
    assert reported["reported_by"] == "may-report (x/1 at 127.0.0.1)"


async def test_strangers_have_the_rate_of_their_address_and_known_callers_one_of_their_own(file: Path) -> None:
    # So few that the test gets no further one.
    with service_in_thread(**NOWHERE, http_tokens_file=file, http_rate_per_second=0.001, http_rate_burst=3) as running:
        guesses = [await answer(running, asking(DEFINE, bearer(f"guess-{number}"))) for number in range(5)]
        assert [guess.status for guess in guesses] == [401] * 3 + [429] * 2
        assert guesses[-1].kind == "too-many-requests"
        # The stranger's guesses from the same address take nothing from a caller that BCS knows.
        known = [await answer(running, asking(DEFINE, MAY_RESOLVE)) for _ in range(4)]
        assert [each.status for each in known] == [200] * 3 + [429]
        assert (await answer(running, asking("/healthz", method="GET"))).status == 200
