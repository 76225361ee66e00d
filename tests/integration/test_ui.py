"""The page `/ui`: its files, and its stream of snapshots: who may read it, how many may, and when it ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import anyio
import pytest

import bcs.http.page_files
from bcs.http.identity import Scope
from tests.support.callers import TOKENS, callers, files_looked_at_often, replace
from tests.support.event_streams import UI_EVENTS, open_stream
from tests.support.service import Orchestrator, RunningService, running_service, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

NOWHERE = {"use_mock_repository": True, "kafka_bootstrap_servers": "127.0.0.1:1"}
FOLDER = Path(bcs.http.page_files.__file__).parent / "ui"
READ, OPERATE = TOKENS[Scope.READ], TOKENS[Scope.OPERATE]
# A text of the service could become code by these, or a token could stay behind.
UNSAFE = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|setHTML|srcdoc|\beval\b|new Function"
    r"|localStorage|sessionStorage|indexedDB|\.cookie|style=|https?://(?!www\.w3\.org/2000/svg)"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("callers") / "callers.json"


@pytest.fixture(scope="module")
def service(file: Path) -> Iterator[RunningService]:
    file.write_text(callers())
    with (
        files_looked_at_often(),
        service_in_thread(**NOWHERE, http_tokens_file=file, chaos_enabled=True, ui_max_streams=2) as running,
    ):
        yield running


class Elements(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


async def test_the_page_is_public_and_may_run_nothing_but_its_own_files(orchestrator: Orchestrator) -> None:
    page = await orchestrator.get("/ui")
    assert page.status == 200
    policy = dict(part.split(" ", 1) for part in page.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["img-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    elements = Elements(page.body.decode()).found
    files = {path for _, attributes in elements for path in (attributes.get("src"), attributes.get("href")) if path}
    files = {path for path in files if not path.startswith("#")}
    assert len(files) == 3
    # Modules import each other.
    files |= {f"ui/{name}" for text in FOLDER.glob("*.js") for name in re.findall(r'"\./(.+?)"', text.read_text())}
    assert files == {f"ui/{each.name}" for each in FOLDER.iterdir() if each.suffix != ".html"}
    for path in files:
        found = await orchestrator.get(f"/{path}")
        assert (found.status, found.headers["Content-Security-Policy"]) == (
            200,
            page.headers["Content-Security-Policy"],
        )
        same = await orchestrator.request("GET", f"/{path}", headers={"If-None-Match": found.headers["ETag"]})
        assert (same.status, same.body) == (304, b"")
    assert (await orchestrator.get("/ui/nothing.js")).status == 404
    assert (await orchestrator.get("/ui/../page_files.py")).status == 401
    assert (await orchestrator.request("HEAD", "/ui")).status == 200


def test_no_text_of_the_service_can_become_code_and_no_token_stays_behind() -> None:
    files = [each for each in FOLDER.iterdir() if each.suffix in (".js", ".html", ".css")]
    assert len(files) > 8
    found = {each.name: UNSAFE.findall(each.read_text()) for each in files}
    assert {name: texts for name, texts in found.items() if texts} == {}
    inline = [
        (tag, attributes)
        for tag, attributes in Elements((FOLDER / "index.html").read_text()).found
        if (tag == "script" and "src" not in attributes)
        or tag == "style"
        or any(name[:2] == "on" for name in attributes)
    ]
    assert inline == []


async def test_the_stream_needs_the_scope_read(service: RunningService) -> None:
    for token, status in ((None, 401), (OPERATE, 403), (READ, 200)):
        async with open_stream(service.base, token=token) as stream:
            assert stream.response.status == status
    async with Orchestrator(service.base, token=READ) as caller:
        head = await caller.request("HEAD", UI_EVENTS)
        assert (head.status, head.headers["Content-Type"]) == (200, "text/event-stream")


async def test_the_stream_says_who_the_caller_is_and_shows_a_killed_actor_within_two_seconds(
    service: RunningService,
) -> None:
    async with open_stream(service.base, token=READ) as stream, Orchestrator(service.base, token=OPERATE) as operator:
        hello = await stream.next()
        assert hello.kind == "hello"
        assert (hello.data["caller"], hello.data["scopes"]) == ("may-read", ["read"])
        first = await stream.snapshot()
        assert first["health"]["dependencies"]["kafka"]["status"] == "unhealthy"
        assert first["figures"]["resolutions"] == 0
        assert first["figures"]["lag_events"] is None
        assert [child["path"] for child in first["actors"]["children"]][:2] == ["metrics", "publisher"]
        assert (await operator.request("POST", "/internal/v1/actors/publisher/kill")).status == 202
        with anyio.fail_after(2):
            while True:
                [publisher] = [
                    child for child in (await stream.snapshot())["actors"]["children"] if child["path"] == "publisher"
                ]
                if publisher["restarts"] == 1:
                    break
        assert "killed over HTTP" in publisher["last_error"]


async def test_a_removed_token_ends_its_streams(service: RunningService, file: Path) -> None:
    async with open_stream(service.base, token=READ) as stream:
        await stream.snapshot()
        replace(file, callers(tokens=[Scope.OPERATE]))
        assert (await stream.rest())[-1].kind == "end"
        async with open_stream(service.base, token=READ) as again:
            assert again.response.status == 401
    replace(file, callers())

    async def admitted_again() -> bool:
        async with open_stream(service.base, token=READ) as stream:
            return stream.response.status == 200

    await wait_until(admitted_again)


async def test_only_so_many_streams_are_open_and_a_closed_one_makes_room(service: RunningService) -> None:
    async def admitted() -> bool:
        async with open_stream(service.base, token=READ) as stream:
            return stream.response.status == 200

    await wait_until(admitted)
    await wait_until(lambda: service.call(open_streams, service) == 0)
    async with open_stream(service.base, token=READ) as first:
        await first.snapshot()
        async with open_stream(service.base, token=READ) as second:
            await second.snapshot()
            async with open_stream(service.base, token=READ) as third:
                assert third.response.status == 503
                assert third.response.headers["Retry-After"]
        await wait_until(admitted)
    # They took no place among the requests.
    async with Orchestrator(service.base) as caller:
        assert await caller.metric("bcs_http_requests_in_flight") == 1


def open_streams(service: RunningService) -> float | None:
    return service.service.telemetry.registry.get_sample_value("bcs_ui_streams")


async def test_a_stop_and_a_kill_of_the_http_actor_end_the_streams_at_once() -> None:
    async with running_service(**NOWHERE, shutdown_drain_seconds=30.0, shutdown_seconds=60.0) as running:
        async with open_stream(running.base) as stream:
            await stream.snapshot()
            running.call(running.service.root.kill, "http", "a test")
            assert (await stream.rest())[-1].kind == "end"
        async with open_stream(running.base) as stream:
            snapshot = await stream.snapshot()
            [http] = [child for child in snapshot["actors"]["children"] if child["path"] == "http"]
            assert http["restarts"] == 1
            assert running.service._stop is not None
            running.call(running.service._stop.set)
            with anyio.fail_after(10):  # long before the drain ends
                assert (await stream.rest())[-1].kind == "end"
            running.call(running.service.root.kill, "http", "the drain need not end")


async def test_the_page_can_be_switched_off() -> None:
    async with running_service(**NOWHERE, ui=False) as running, Orchestrator(running.base) as caller:
        for path in ("/ui", "/ui/page.js", UI_EVENTS):
            assert (await caller.get(path)).status == 404
