"""A large batch is read page by page, and callers that do not receive their answer hold no memory for long."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import pytest
from yarl import URL

from bcs.domain.facts import Outcome
from bcs.domain.state import BatchState, Expected, Mark
from tests.support.service import Orchestrator, RunningService, running_service, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

PAGE_BYTES = 100_000
SEND_SECONDS = 0.15
LARGE = 20_000
PHASES = ["spellcheck", "nlp", "cj_assessment", "ai_feedback"]
READERS = 8
LONGEST_GAP_SECONDS = 0.1


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with service_in_thread(
        use_mock_repository=True,
        kafka_bootstrap_servers="127.0.0.1:1",
        http_page_bytes=PAGE_BYTES,
        http_send_seconds=SEND_SECONDS,
    ) as running:
        yield running


@pytest.fixture
async def orchestrator(service: RunningService) -> AsyncIterator[Orchestrator]:
    async with Orchestrator(service.base) as caller:
        yield caller


def path_of(batch: str, **query: object) -> str:
    asked = "&".join(f"{name}={value}" for name, value in query.items())
    return f"/internal/v1/batches/{batch}?{asked}"


def known(service: RunningService, batch: str, essays: list[str], failed: set[str], phase: str = "spellcheck") -> None:
    """Give the service these essays, and an outcome for each."""
    marks = {essay: Mark(Outcome.FAILED if essay in failed else Outcome.COMPLETED, 2) for essay in essays}
    state = BatchState(
        first_seen_us=dict.fromkeys(essays, 1), essay_marks={phase: marks}, expected=Expected(len(essays), 1)
    )
    service.run(service.service.store.commit, batch, state)


async def pages(orchestrator: Orchestrator, path: str | None) -> list[dict[str, Any]]:
    """All pages from this one on."""
    documents = []
    while path is not None:
        answer = await orchestrator.request("GET", URL(path, encoded=True))
        assert answer.status == 200, answer.body
        documents.append(answer.json)
        path = documents[-1]["next"]
    return documents


def ids(listed: list[dict[str, Any]]) -> list[str]:
    return [essay["essay_id"] for essay in listed]


@pytest.mark.parametrize("limit", [1, 7, 30, 31])
async def test_all_pages_together_have_each_essay_once_and_all_that_hold_back(
    service: RunningService, orchestrator: Orchestrator, batch: str, limit: int
) -> None:
    essays = [f"essay {number:02} ü/?&+%" for number in range(30)]
    failed = {essay for number, essay in enumerate(essays) if number % 11 == 10}
    known(service, batch, essays[::-1], failed)
    documents = await pages(orchestrator, path_of(batch, limit=limit))
    assert [essay for document in documents for essay in ids(document["known_essays"])] == essays
    assert len(documents) == -(-len(essays) // limit)
    assert {(document["essays_known"], document["version"]) for document in documents} == {(len(essays), 1)}
    for name, holding_back in (("spellcheck", failed), ("nlp", set(essays))):
        phases = [phase for document in documents for phase in document["phases"] if phase["phase"] == name]
        assert {phase["blocking_essays_total"] for phase in phases} == {len(holding_back)}
        assert {essay for phase in phases for essay in ids(phase["blocking_essays"])} == holding_back
        assert max(len(phase["blocking_essays"]) for phase in phases) <= limit


async def test_the_first_page_names_who_holds_back_however_far_behind(
    service: RunningService, orchestrator: Orchestrator, batch: str
) -> None:
    essays = [f"essay-{number:04}" for number in range(600)]
    known(service, batch, essays, {essays[-1]})
    document = (await orchestrator.get(path_of(batch))).json
    assert len(document["known_essays"]) < len(essays)
    [spellcheck] = [phase for phase in document["phases"] if phase["phase"] == "spellcheck"]
    assert ids(spellcheck["blocking_essays"]) == [essays[-1]]
    assert (spellcheck["complete"], spellcheck["completed"], spellcheck["failed"]) == (False, 599, 1)


@pytest.mark.parametrize("character", ["x", "🦉", "\x01"])
async def test_a_page_is_bounded_by_its_bytes(
    service: RunningService, orchestrator: Orchestrator, batch: str, character: str
) -> None:
    known(service, batch, [f"{number:03}{character * 250}x" for number in range(300)], set())
    first = await orchestrator.get(path_of(batch, limit=5000))
    assert PAGE_BYTES / 4 < len(first.body) < PAGE_BYTES * 1.1
    last_but_one = f"{298:03}{character * 250}x"
    answer = await orchestrator.request(
        "GET", f"/internal/v1/batches/{batch}", params={"after": last_but_one, "limit": "1"}
    )
    assert (len(answer.json["known_essays"]), answer.json["next"]) == (1, None)


@pytest.mark.parametrize(
    ("query", "field"),
    [("limit=0", "limit"), ("limit=5001", "limit"), ("after=", "after"), ("after=a&after=b", "after")],
)
async def test_a_wrong_query_gets_a_400_that_names_it(
    orchestrator: Orchestrator, batch: str, query: str, field: str
) -> None:
    answer = await orchestrator.get(f"/internal/v1/batches/{batch}?{query}")
    assert answer.status == 400
    assert [error["field"] for error in answer.json["errors"]] == [field]


async def test_a_caller_that_takes_no_answer_is_dropped_with_its_memory(
    service: RunningService, orchestrator: Orchestrator, batch: str
) -> None:
    known(service, batch, [f"{number:03}{'x' * 250}" for number in range(300)], set())
    with slow_reader(service) as reader:
        reader.sendall(f"GET {path_of(batch)} HTTP/1.1\r\nHost: bcs\r\n\r\n".encode() * 100)
        await wait_until(lambda: held_bytes(orchestrator), description="more is unsent than the operating system takes")
        assert await held_bytes(orchestrator) < PAGE_BYTES * 2
        await wait_until(lambda: is_dropped(orchestrator))
        assert await held_bytes(orchestrator) == 0


@pytest.mark.release
@pytest.mark.serial
async def test_the_largest_batch_delays_nobody_and_slow_readers_hold_no_memory(redis_url: str) -> None:
    """It is in Redis, as large as `BCS_MAX_ESSAYS_PER_BATCH` allows, and four phases have a mark for each essay."""
    essays = [str(UUID(int=number)) for number in range(LARGE)]
    batch = "the-largest"
    async with (
        running_service(redis_url=redis_url, kafka_bootstrap_servers="127.0.0.1:1") as service,
        Orchestrator(service.base) as orchestrator,
        AsyncExitStack() as stack,
    ):
        for phase in PHASES:
            known(service, batch, essays, set(essays[::3]), phase)
        took: list[float] = []
        gaps: list[float] = []
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, service.run, watch_loop, gaps)
            for _ in range(3):
                began = perf_counter()
                answer = await orchestrator.get(path_of(batch))
                took.append(perf_counter() - began)
                assert answer.status == 200
                assert len(answer.body) < 1_100_000
            before = resident_bytes()
            for _ in range(READERS):
                reader = stack.enter_context(slow_reader(service))
                reader.sendall(f"GET {path_of(batch)} HTTP/1.1\r\nHost: bcs\r\n\r\n".encode())
            await wait_until(lambda: is_quiet(orchestrator), 60)
            service.call(gaps.append, -1.0)
        assert resident_bytes() - before < 100_000_000
    assert max(took) < 3, took
    assert max(gaps) < LONGEST_GAP_SECONDS, sorted(gaps)[-5:]


async def watch_loop(gaps: list[float]) -> None:
    """Note how long the loop was blocked, until a time below 0 is noted."""
    while not gaps or gaps[-1] >= 0:
        began = perf_counter()
        # The measure itself: how much later than asked for it comes back.
        await anyio.sleep(0.005)
        gaps.append(perf_counter() - began - 0.005)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def is_quiet(orchestrator: Orchestrator) -> bool:
    return await orchestrator.metric("bcs_http_requests_in_flight") == 1


def slow_reader(service: RunningService) -> socket.socket:
    """A caller whose operating system takes little."""
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.connect(service.service.address)
    return caller


async def held_bytes(orchestrator: Orchestrator) -> float:
    return await orchestrator.metric("bcs_http_held_bytes") or 0


async def is_dropped(orchestrator: Orchestrator) -> bool:
    return bool(await orchestrator.metric("bcs_http_callers_dropped_total", waited_for="answer", reason="too_late"))
