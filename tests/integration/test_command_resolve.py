"""`bcs resolve` and `bcs actors`, against a running service."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from bcs.devtools.servers.embedded import free_port
from bcs.wire import topics
from bcs.wire.published import as_uuid
from tests.support.commands import Ran, bcs, bcs_at_terminal, settings_of
from tests.support.events import registered, spellchecked
from tests.support.kafka import Platform, values
from tests.support.service import Orchestrator, RunningService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def told(service: RunningService, platform: Platform, batch: str) -> str:
    """A batch whose spellcheck is complete."""
    await platform.send(registered(batch, ["a"]), spellchecked(batch, "a"))
    await wait_until(lambda: platform.caught_up(service.group))
    return batch


def failure(ran: Ran, exit_code: int = 1) -> str:
    """The error line of a failed command."""
    assert (ran.exit_code, ran.output) == (exit_code, ""), ran
    [line] = ran.error.splitlines()
    return line


async def test_the_service_is_asked_and_announces_what_it_prunes(
    service: RunningService, told: str, platform: Platform
) -> None:
    ran = await bcs("resolve", told, "ai_feedback", "--url", service.base, "--json")
    assert (ran.exit_code, ran.error) == (0, "")
    answer = ran.json
    assert (answer["final_pipeline"], answer["announced_phases"]) == (["ai_feedback"], ["spellcheck"])
    correlation_id = str(uuid.UUID(answer["correlation_id"]))

    async def announced() -> bool:
        events = values(await platform.messages(topics.PHASE_SKIPPED, told))
        return [(one["correlation_id"], one["data"]["phase_name"]) for one in events] == [
            (correlation_id, "spellcheck")
        ]

    await wait_until(announced)


async def test_offline_the_answer_is_the_same_and_nothing_is_announced(
    service: RunningService, told: str, platform: Platform, orchestrator: Orchestrator
) -> None:
    appended = await orchestrator.metric("bcs_outbox_published_total", kind="phase_skipped")
    offline = (await bcs("resolve", told, "ai_feedback", "--offline", "--json", **settings_of(service))).json
    assert (offline["correlation_id"], offline["announced_phases"]) == (None, [])
    # Whatever the command had put into the outbox would be published before this one's announcement.
    online = (await orchestrator.define(told, "ai_feedback", correlation_id="the-only-one")).json
    assert {name: offline[name] for name in online} == online
    await wait_until(lambda: platform.messages(topics.PHASE_SKIPPED, told))
    events = values(await platform.messages(topics.PHASE_SKIPPED, told))
    assert [one["data"]["correlation_id"] for one in events] == [as_uuid("the-only-one")]
    assert await orchestrator.metric("bcs_outbox_published_total", kind="phase_skipped") == (appended or 0) + 1


async def test_a_person_is_told_what_runs_and_why(service: RunningService, told: str) -> None:
    ran = await bcs("resolve", told, "ai_feedback", "--url", service.base)
    rows = [line.split() for line in ran.output.splitlines()]
    assert ["spellcheck", "pruned", "already", "completed"] in rows
    assert ["ai_feedback", "run", "essays", "outstanding"] in rows
    assert "ai_feedback, because 0 of 1 essay has completed it" in ran.output
    assert "announced as skipped: spellcheck." in ran.output
    assert uuid.UUID(ran.output.split("Correlation id ")[1].split(";")[0])
    at_terminal = await bcs_at_terminal(80, "resolve", told, "ai_feedback", "--offline", **settings_of(service))
    assert "\x1b[" in at_terminal.output
    assert max(map(len, at_terminal.uncoloured.splitlines())) <= 80
    assert "nothing was announced" in at_terminal.uncoloured


@pytest.mark.parametrize("offline", [True, False])
async def test_refusals_are_one_line(service: RunningService, told: str, offline: bool) -> None:
    where = ("--offline",) if offline else ("--url", service.base)
    unknown = failure(await bcs("resolve", told, "spelchek", *where, **settings_of(service)))
    assert "known are: spellcheck, nlp" in unknown
    gated = failure(await bcs("resolve", told, "nlp", "--no-prompt-attached", *where, **settings_of(service)))
    assert "no prompt is attached" in gated
    if not offline:
        assert "404 Not Found" in unknown
        assert "409 Conflict" in gated
        assert "correlation id" in gated
    ran = await bcs("resolve", told, "nlp", "--prompt-attached", "--json", *where, **settings_of(service))
    assert ran.json["final_pipeline"] == ["nlp"]


@pytest.mark.parametrize("command", [("resolve", "b", "nlp"), ("actors",)])
async def test_a_service_that_is_not_there_is_told_in_one_line(command: tuple[str, ...]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    line = failure(await bcs(*command, "--url", url, http_proxy="http://127.0.0.1:1"))
    assert url in line
    assert "refused" in line


@pytest.mark.parametrize("url", ["127.0.0.1:4002", "ftp://127.0.0.1", "http://", "file:///etc/passwd", "http://a b"])
async def test_what_is_no_url_is_wrong_usage(url: str) -> None:
    ran = await bcs("actors", "--url", url)
    assert (ran.exit_code, ran.output) == (2, "")
    assert "--url" in ran.error


@pytest.fixture
async def stranger() -> AsyncIterator[str]:
    """Some other server, which answers everything with a page."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n<html/>")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_another_service_at_the_address_is_noticed(stranger: str) -> None:
    assert "not like BCS" in failure(await bcs("actors", "--url", stranger))


async def test_a_service_without_tls_is_told_in_one_line(service: RunningService) -> None:
    ran = await bcs("actors", "--url", service.base.replace("http:", "https:"))
    assert ran.exit_code == 1
    assert ran.error.startswith("bcs: no answer from https://")
    assert "the server does not speak TLS" in ran.error


async def test_a_path_that_bcs_does_not_have_is_its_own_problem(service: RunningService) -> None:
    assert "404 Not Found" in failure(await bcs("actors", "--url", f"{service.base}/elsewhere"))


async def test_the_tree_of_actors_is_shown(service: RunningService) -> None:
    service.call(service.service.root.kill, "publisher", "killed by the test")
    await wait_until(lambda: service.snapshot().children[1].incarnation == 2)
    ran = await bcs("actors", "--url", service.base)
    assert ran.exit_code == 0
    lines = ran.output.splitlines()
    assert lines[0].startswith("bcs running, incarnation 1, 0 restarts")
    assert [line.split()[1] for line in lines if line.startswith(("├── ", "└── "))] == [
        "metrics",
        "publisher",
        "batches",
        "intake",
        "http",
    ]
    [publisher] = [line for line in lines if " publisher " in line]
    assert "incarnation 2, 1 restart, " in publisher
    assert "message" in publisher
    assert any("last error: " in line and "killed by the test" in line for line in lines)


async def test_the_tree_as_json_is_the_service_s_own(service: RunningService, orchestrator: Orchestrator) -> None:
    ran = await bcs("actors", "--url", service.base, "--json")
    own = (await orchestrator.get("/internal/v1/actors")).json
    assert ran.json.keys() == own.keys()
    assert [child["name"] for child in ran.json["children"]] == [child["name"] for child in own["children"]]
