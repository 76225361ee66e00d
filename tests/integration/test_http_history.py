"""The history of a batch over HTTP, from an archive in a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import pytest
from yarl import URL

from bcs.domain.facts import EssaysRegistered, Outcome, PhaseReported
from bcs.domain.history import Position
from bcs.domain.state import delta_of
from bcs.errors import StoreCorrupted
from bcs.storage.postgres.archive import PostgresArchive
from tests.support.fault_proxy import FaultProxy
from tests.support.history_entries import AT, AT_US, CORRELATION_ID, answered, consumed, reported, spellchecked
from tests.support.service import Answer, Orchestrator, RunningService, running_service, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

PAGE_BYTES = 30_000
PRIVATE = "Elsas-private-text"  # what a caller sends must never come back in an error
SLASHES = ["a/b", "/", "a%2Fb", "a/history", "history"]
ESCAPES = ["%", "%25", "nul\0nul", r"\0", "back\\slash", "{brace}", "line\nbreak", "?&=#", "+", "a b", "räksmörgås 🦉"]
STRANGE = [*SLASHES, *ESCAPES, ".", "..", "x" * 255, "🦉" * 255]


@pytest.fixture(scope="module")
def service(redis_url: str, module_database_url: str) -> Iterator[RunningService]:
    """A service with a record; nothing comes from Kafka."""
    with serving(redis_url, module_database_url) as service:
        yield service


def serving(redis_url: str, database_url: str, **settings: object) -> AbstractContextManager[RunningService]:
    return service_in_thread(
        redis_url=redis_url,
        database_url=database_url,
        history_page_bytes=PAGE_BYTES,
        kafka_bootstrap_servers="127.0.0.1:1",
        **settings,
    )


def path_of(batch: str, rest: str = "/history") -> URL:
    """As it goes over the wire: nothing is normalized on the way, which dots would be."""
    segment = quote(batch, safe="").replace(".", "%2E")
    return URL(f"/internal/v1/batches/{segment}{rest}", encoded=True)


async def get(orchestrator: Orchestrator, path: URL | str) -> Answer:
    return await orchestrator.request("GET", URL(str(path), encoded=True))


async def pages(orchestrator: Orchestrator, batch: str, limit: int) -> AsyncIterator[list[int]]:
    """The numbers of the entries, page by page, as the links lead."""
    following: str | None = f"{path_of(batch)}?limit={limit}"
    while following is not None:
        answer = await get(orchestrator, following)
        assert answer.status == 200, answer.body
        yield [entry["number"] for entry in answer.json["entries"]]
        following = answer.json["next"]


def problem(answer: Answer, status: int, kind: str) -> Any:
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    document = answer.json
    assert document["type"] == f"urn:bcs:problem:{kind}"
    assert document["correlation_id"] == answer.headers["X-Correlation-ID"]
    assert PRIVATE not in answer.body.decode()
    return document


async def test_every_kind_of_entry_is_told_with_all_that_is_kept_of_it(
    orchestrator: Orchestrator, archive: PostgresArchive, batch: str
) -> None:
    facts = (
        EssaysRegistered(("e1", "e2"), 30, AT_US),
        spellchecked("e1"),
        PhaseReported("nlp", Outcome.FAILED, AT_US),
    )
    await archive.write([consumed(batch, *facts)])
    await archive.write([reported(batch, PhaseReported("nlp", Outcome.COMPLETED, AT_US + 1), by="bos")])
    await archive.write([answered(batch)])
    answer = await get(orchestrator, path_of(batch))
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/json")
    resolution, report, event = answer.json["entries"]
    assert answer.json == {"batch_id": batch, "entries": [resolution, report, event], "next": None}
    assert resolution.pop("number") > report.pop("number") > event.pop("number") > 0
    common = {"recorded_at": AT, "correlation_id": CORRELATION_ID}
    assert event == {
        **common,
        "kind": "facts",
        "event_type": "SpellcheckPhaseCompletedV1",
        "event_id": "event-7",
        "source": {"topic": "huleedu.batch.spellcheck.phase.completed.v1", "partition": 2, "offset": 15},
        "reported_by": None,
        "facts": [
            {"fact": "essays_registered", "essay_ids": ["e1", "e2"], "expected_count": 30, "at": AT},
            {"fact": "essay_phase_ended", "phase": "spellcheck", "essay_id": "e1", "outcome": "completed", "at": AT},
            {"fact": "phase_reported", "phase": "nlp", "outcome": "failed", "at": AT},
        ],
    }
    assert report == {
        **common,
        "kind": "facts",
        "event_type": "PhaseReported",
        "event_id": None,
        "source": None,
        "reported_by": "bos",
        "facts": [{"fact": "phase_reported", "phase": "nlp", "outcome": "completed", "at": AT.replace("456Z", "457Z")}],
    }
    reasons = {
        "spellcheck": (False, "already_completed", "all 30 essays have completed it"),
        "ai_feedback": (True, "essays_outstanding", "0 of 30 essays have completed it"),
    }
    assert resolution.pop("definitions") == {"version": "7", "hash": "0123456789abcdef"}
    assert resolution == {
        **common,
        "kind": "resolution",
        "requested_by": "127.0.0.1",
        "pipeline": "ai_feedback",
        "final_pipeline": ["ai_feedback"],
        "pruned_phases": ["spellcheck"],
        "decisions": [
            {"phase": phase, "runs": runs, "reason": reason, "reason_text": reason_text}
            for phase, (runs, reason, reason_text) in reasons.items()
        ],
        "registered": False,
        "state_version": 3,
        "source": "redis",
    }


async def test_pages_have_neither_gaps_nor_repeats_while_entries_are_added(
    orchestrator: Orchestrator, archive: PostgresArchive, batch: str
) -> None:
    await archive.write([consumed(batch) for _ in range(10)])
    [newest] = (await get(orchestrator, f"{path_of(batch)}?limit=1")).json["entries"]
    seen: list[int] = []
    sizes: list[int] = []
    async for numbers in pages(orchestrator, batch, 3):
        seen += numbers
        sizes.append(len(numbers))
        await archive.write([answered(batch), consumed("another-" + batch)])
    assert seen[0] == newest["number"]
    assert seen == sorted(set(seen), reverse=True)
    assert sizes == [3, 3, 3, 1]
    afterwards = [entry["number"] for entry in (await get(orchestrator, path_of(batch))).json["entries"]]
    assert afterwards[len(sizes) :] == seen


async def test_a_full_last_page_leads_nowhere(orchestrator: Orchestrator, archive: PostgresArchive, batch: str) -> None:
    await archive.write([consumed(batch) for _ in range(4)])
    assert [len(numbers) async for numbers in pages(orchestrator, batch, 2)] == [2, 2]


LONG = "x" * (PAGE_BYTES // 3)


@pytest.mark.parametrize(
    "large",
    [
        {"facts": (spellchecked(LONG),)},
        {"correlation_id": LONG},
        {"event_id": LONG},
        {"position": Position(LONG, 1, 2)},
        {"correlation_id": "ä" * (PAGE_BYTES // 6)},
    ],
    ids=["facts", "correlation_id", "event_id", "topic", "bytes and not characters"],
)
async def test_a_page_of_large_entries_is_a_short_one(
    orchestrator: Orchestrator, archive: PostgresArchive, batch: str, large: dict[str, Any]
) -> None:
    await archive.write([replace(consumed(batch), **large) for _ in range(5)])
    await archive.write([consumed(batch)])
    seen = [numbers async for numbers in pages(orchestrator, batch, 5)]
    assert [len(numbers) for numbers in seen] == [3, 2, 1]
    assert len({number for numbers in seen for number in numbers}) == 6


async def test_an_entry_that_is_larger_than_a_page_is_a_page(
    orchestrator: Orchestrator, archive: PostgresArchive, batch: str
) -> None:
    await archive.write([consumed(batch, spellchecked("x" * size)) for size in (1, PAGE_BYTES * 2, PAGE_BYTES * 2, 1)])
    assert [len(numbers) async for numbers in pages(orchestrator, batch, 5)] == [1] * 4


@pytest.mark.parametrize("strange", STRANGE, ids=ascii)
async def test_an_id_may_be_anything(orchestrator: Orchestrator, archive: PostgresArchive, strange: str) -> None:
    await archive.write([consumed(strange), answered(strange)])
    answer = await get(orchestrator, f"{path_of(strange)}?limit=1")
    assert answer.status == 200, answer.body
    assert answer.json["batch_id"] == strange
    [entry] = answer.json["entries"]
    older = await get(orchestrator, answer.json["next"])
    assert older.json["batch_id"] == strange
    assert [one["kind"] for one in (entry, *older.json["entries"])] == ["resolution", "facts"]
    state = await get(orchestrator, path_of(strange, ""))
    assert (state.status, state.json["batch_id"], state.json["source"]) == (200, strange, "redis")


@pytest.mark.parametrize("rest", ["", "/history"])
@pytest.mark.parametrize(
    ("segment", "status", "kind"),
    [
        ("", 404, "not-found"),
        ("x" * 256, 400, "invalid-request"),
        ("%F0%9F%A6%89" * 256, 400, "invalid-request"),
        ("%FF", 400, "invalid-request"),
        ("%ED%A0%80", 400, "invalid-request"),
        ("%20", 400, "invalid-request"),
        ("a%20", 400, "invalid-request"),
        (f"{PRIVATE}/{PRIVATE}", 404, "not-found"),
        (PRIVATE, 404, "unknown-batch"),
    ],
)
async def test_what_can_be_no_batch_or_is_none_gets_a_problem(
    orchestrator: Orchestrator, segment: str, rest: str, status: int, kind: str
) -> None:
    document = problem(await get(orchestrator, f"/internal/v1/batches/{segment}{rest}"), status, kind)
    assert [error["field"] for error in document.get("errors", [])] == (["batch_id"] if status == 400 else [])


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("limit=0", ["limit"]),
        ("limit=501", ["limit"]),
        (f"limit={PRIVATE}", ["limit"]),
        ("limit=", ["limit"]),
        ("limit=1.5", ["limit"]),
        ("before=0", ["before"]),
        ("before=-1", ["before"]),
        (f"before={2**63}", ["before"]),
        ("before=null", ["before"]),
        ("limit=-1&before=x", ["limit", "before"]),
        ("limit=1&limit=2", ["limit"]),
    ],
)
async def test_each_invalid_parameter_is_named(
    orchestrator: Orchestrator, batch: str, query: str, fields: list[str]
) -> None:
    document = problem(await get(orchestrator, f"{path_of(batch)}?{query}"), 400, "invalid-request")
    assert [error["field"] for error in document["errors"]] == fields
    assert all(field in document["detail"] for field in fields)


async def test_the_bounds_of_a_page_are_taken_and_what_nobody_knows_is_ignored(
    orchestrator: Orchestrator, archive: PostgresArchive, batch: str
) -> None:
    await archive.write([consumed(batch)])
    for query in ("limit=1", f"limit=500&before={2**63 - 1}", f"{PRIVATE}=1&{PRIVATE}=2"):
        answer = await get(orchestrator, f"{path_of(batch)}?{query}")
        assert (answer.status, len(answer.json["entries"])) == (200, 1)


async def test_a_known_batch_may_have_nothing_to_tell(
    orchestrator: Orchestrator, archive: PostgresArchive, batch: str
) -> None:
    adopted, only_asked = f"{batch}-adopted", f"{batch}-asked"
    await archive.add_states({adopted: delta_of([spellchecked()])})
    await archive.write([answered(only_asked)])
    for path in (path_of(adopted), f"{path_of(adopted)}?before=1", f"{path_of(only_asked)}?before=1"):
        answer = await get(orchestrator, path)
        assert (answer.status, answer.json["entries"], answer.json["next"]) == (200, [], None)
    problem(await get(orchestrator, f"{path_of(batch)}?before=1"), 404, "unknown-batch")


async def test_what_the_store_has_forgotten_is_told_from_the_record(
    orchestrator: Orchestrator, archive: PostgresArchive, batch: str
) -> None:
    await archive.add_states(
        {batch: delta_of([spellchecked("e1"), PhaseReported("own_phase", Outcome.COMPLETED, AT_US)])}
    )
    document = (await get(orchestrator, path_of(batch, ""))).json
    assert document["source"] == "redis"
    version = document["version"]
    assert document["known_essays"] == [{"essay_id": "e1", "first_seen": AT}]
    assert {phase["phase"] for phase in document["phases"] if phase["complete"]} == {"spellcheck", "own_phase"}
    await orchestrator.complete(batch, "nlp")
    document = (await get(orchestrator, path_of(batch, ""))).json
    assert (document["source"], document["version"]) == ("redis", version + 1)


async def test_head_has_no_body_and_other_methods_are_refused(
    orchestrator: Orchestrator, archive: PostgresArchive, batch: str
) -> None:
    await archive.write([consumed(batch)])
    for rest, more in (("", ["DELETE"]), ("/history", [])):
        answer = await orchestrator.request("HEAD", path_of(batch, rest))
        assert (answer.status, answer.body) == (200, b"")
        refused = await orchestrator.request("POST", path_of(batch, rest))
        assert problem(refused, 405, "method-not-allowed")["allowed_methods"] == [*more, "GET", "HEAD"]


async def test_requests_are_counted_under_the_route_whatever_the_batch(orchestrator: Orchestrator, batch: str) -> None:
    for rest in ("", "/history"):
        labels = {"method": "GET", "endpoint": f"/internal/v1/batches/{{id}}{rest}", "status_code": "404"}
        before = await orchestrator.metric("bcs_http_requests_total", **labels) or 0
        for strange in (batch, f"{batch}/{batch}"):
            await get(orchestrator, path_of(strange, rest))
        assert await orchestrator.metric("bcs_http_requests_total", **labels) == before + 2


async def test_what_the_record_holds_and_nobody_can_read_is_a_fault_and_no_guess(
    orchestrator: Orchestrator, archive: PostgresArchive, module_database_url: str, batch: str
) -> None:
    await archive.write([consumed(batch)])
    connection = await asyncpg.connect(module_database_url)
    try:
        for statement in ("UPDATE history SET detail = '[]'", "UPDATE marks SET outcome = 'x'"):
            await connection.execute(
                f"{statement} WHERE batch_key = (SELECT batch_key FROM batches WHERE batch_id = $1)",  # noqa: S608
                batch,
            )
    finally:
        await connection.close()
    for rest in ("", "/history"):
        problem(await get(orchestrator, path_of(batch, rest)), 500, "internal")
    with pytest.raises(StoreCorrupted):
        await archive.history(batch, limit=1)


async def test_a_record_that_stops_answering_is_said_to_be_out_of_reach_in_time(
    redis_url: str, module_database_url: str, archive: PostgresArchive, batch: str
) -> None:
    await archive.write([consumed(batch)])
    target = urlsplit(module_database_url)
    async with FaultProxy(target.hostname or "", target.port or 0) as proxy:
        login = target.netloc.rpartition("@")[0]
        behind_proxy = target._replace(netloc=f"{login}@{proxy.address}").geturl()
        async with (
            running_service(
                redis_url=redis_url,
                database_url=behind_proxy,
                kafka_bootstrap_servers="127.0.0.1:1",
                database_deadline_seconds=0.3,
            ) as service,
            Orchestrator(service.base) as orchestrator,
        ):
            assert (await get(orchestrator, path_of(batch))).status == 200
            proxy.freeze()
            for path in (path_of(batch), path_of(batch, ""), path_of(batch)):
                assert_out_of_reach(await get(orchestrator, path))
            proxy.thaw()
            await wait_until(lambda: answers(orchestrator, path_of(batch)))


async def answers(orchestrator: Orchestrator, path: URL) -> bool:
    return (await get(orchestrator, path)).status == 200


def assert_out_of_reach(answer: Answer) -> None:
    document = problem(answer, 503, "unavailable")
    assert document["detail"] == "postgresql is out of reach"
    assert answer.headers["Retry-After"] == "1"
