"""A killed HTTP actor answers all accepted callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from aiohttp import web

from bcs.supervision import State
from tests.support.service import COMPLETE, Orchestrator, RunningService, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

BODY = b'{"batch_id": "batch", "phase_name": "spellcheck", "success": true}'
HEAD = (
    f"POST {COMPLETE} HTTP/1.1\r\nHost: bcs\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
).encode()
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> list[web.AppRunner]:
    """aiohttp's servers, one for each incarnation of the actor: they know which connections were accepted."""
    made: list[web.AppRunner] = []
    make: Callable[..., web.AppRunner] = web.AppRunner

    def make_and_note(*arguments: Any, **options: Any) -> web.AppRunner:
        made.append(make(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(web, "AppRunner", make_and_note)
    return made


@pytest.fixture
def service(request: pytest.FixtureRequest, runners: list[web.AppRunner]) -> Iterator[RunningService]:
    """A service with the settings that the test has as its parameter."""
    settings = {
        "use_mock_repository": True,
        "kafka_bootstrap_servers": "127.0.0.1:1",
        "shutdown_seconds": 2.0,
        **getattr(request, "param", {}),
    }
    with service_in_thread(**settings) as running:
        yield running


def with_settings(**settings: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("service", [settings], indirect=True, ids=["-".join(settings)])


@asynccontextmanager
async def connection(service: RunningService) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection(*service.service.address)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer_on(reader: asyncio.StreamReader) -> bytes:
    """The first answer's status line; empty when the connection ends without one."""
    with anyio.fail_after(30):
        return await reader.readline()


def http(service: RunningService) -> Any:
    return next(child for child in service.snapshot().children if child.name == "http")


def restarted(service: RunningService) -> bool:
    return http(service).restarts == 1 and http(service).state is State.RUNNING


@with_settings(http_kill_grace_seconds=5.0)  # on a busy machine a second may be too short
async def test_a_request_in_hand_gets_its_answer(service: RunningService) -> None:
    async with connection(service) as (reader, writer), Orchestrator(service.base) as orchestrator:
        writer.write(HEAD)
        await wait_until(lambda: two_in_flight(orchestrator))
        assert service.call(service.service.root.kill, "http")
        await wait_until(lambda: http(service).state is State.STOPPING)
        writer.write(BODY)
        assert (await answer_on(reader)).startswith(b"HTTP/1.1 200 ")
        await wait_until(lambda: restarted(service))
        assert await orchestrator.to_run("batch") == ["ai_feedback"], "and it was carried out"


@with_settings(http_kill_grace_seconds=0.2)
async def test_nothing_is_left_of_a_killed_one_though_a_caller_takes_its_time(
    service: RunningService, runners: list[web.AppRunner]
) -> None:
    async with connection(service) as (reader, writer), Orchestrator(service.base) as orchestrator:
        writer.write(HEAD)  # and no body
        await wait_until(lambda: two_in_flight(orchestrator))
        assert service.call(service.service.root.kill, "http")
        await wait_until(lambda: restarted(service))
        assert runners[0].server is None, "it was closed to the end"
        assert await answer_on(reader) == b"", "and so was the connection"


async def two_in_flight(orchestrator: Orchestrator) -> bool:
    return await orchestrator.metric("bcs_http_requests_in_flight") == 2  # the question itself is one of them


@with_settings(http_linger_seconds=1.0)  # so is the tenth of a second that is usual
async def test_a_connection_that_was_just_accepted_may_still_send_its_request(
    service: RunningService, runners: list[web.AppRunner]
) -> None:
    async with connection(service) as (reader, writer), connection(service) as (silent, _):
        await wait_until(lambda: accepted(runners[0]) == 2)
        assert service.call(service.service.root.kill, "http")
        await wait_until(lambda: http(service).state is State.STOPPING)
        writer.write(HEAD + BODY)
        assert (await answer_on(reader)).startswith(b"HTTP/1.1 200 ")
        assert await answer_on(silent) == b"", "it waits for nobody for ever"
        await wait_until(lambda: restarted(service))
    assert len(runners) == 2


def accepted(runner: web.AppRunner) -> int:
    return len(runner.server.connections) if runner.server else 0
