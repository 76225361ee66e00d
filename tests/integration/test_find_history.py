"""Entries of the history are found by time, correlation id and type, in a batch and over all batches."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import pytest
from yarl import URL

from bcs import __version__
from bcs.domain.facts import Outcome, PhaseReported
from bcs.domain.history import HistoryEntry
from bcs.storage.postgres.archive import PostgresArchive
from bcs.wire.decoding import EVENT_TYPES, EventDecoder
from bcs.wire.topics import CONSUMED
from tests.support.commands import bcs, settings_of
from tests.support.history_entries import AT_US, answered, consumed, reported
from tests.support.service import Orchestrator, RunningService, service_in_thread

pytestmark = pytest.mark.anyio

SECOND_US = 1_000_000


@pytest.fixture(scope="module")
def service(redis_url: str, module_database_url: str) -> Iterator[RunningService]:
    with service_in_thread(
        redis_url=redis_url,
        database_url=module_database_url,
        history_page_bytes=30_000,
        kafka_bootstrap_servers="127.0.0.1:1",
    ) as service:
        yield service


async def entries(orchestrator: Orchestrator, path: str, **query: object) -> list[Any]:
    """The entries of all pages."""
    following = f"{path}?{urlencode(query)}"
    found: list[Any] = []
    while following:
        answer = await orchestrator.request("GET", URL(following, encoded=True))
        assert answer.status == 200, answer.body
        found += answer.json["entries"]
        following = answer.json["next"]
    return found


def with_id(entry: HistoryEntry, correlation_id: str, second: int = 0) -> HistoryEntry:
    return replace(entry, correlation_id=correlation_id, at_us=AT_US + second * SECOND_US)


async def test_a_batch_shows_only_the_entries_that_are_wanted(
    orchestrator: Orchestrator, archive: PostgresArchive, batch: str
) -> None:
    report = reported(batch, PhaseReported("nlp", Outcome.COMPLETED, AT_US))
    await archive.write([with_id(consumed(batch), "a", 0), with_id(report, "b", 10), with_id(answered(batch), "b", 20)])
    path = f"/internal/v1/batches/{batch}/history"

    async def kinds(**query: object) -> list[str]:
        return [one.get("event_type", one["kind"]) for one in await entries(orchestrator, path, limit=1, **query)]

    event, told, answer = "SpellcheckPhaseCompletedV1", "PhaseReported", "resolution"
    assert await kinds() == [answer, told, event]
    assert await kinds(correlation_id="b") == [answer, told]
    assert await kinds(correlation_id="c") == []
    assert await kinds(type="facts") == [told, event]
    assert await kinds(type="resolution") == [answer]
    assert await kinds(type=event) == [event]
    assert await kinds(type=told) == [told]
    assert await kinds(type="CJAssessmentCompletedV1") == []
    assert await kinds(type="odd") == []
    assert await kinds(since="2025-11-24T16:00:05Z") == [answer, told]
    assert await kinds(until="2025-11-24T16:00:15Z") == [told, event]
    assert await kinds(since="2025-11-24T16:00:05Z", until="2025-11-24T16:00:15Z", type="facts") == [told]
    unknown = await orchestrator.request("GET", f"/internal/v1/batches/{batch}-unknown/history?type=facts")
    assert (unknown.status, unknown.json["type"]) == (404, "urn:bcs:problem:unknown-batch")


async def test_entries_of_all_batches_are_found_by_their_correlation_id(
    orchestrator: Orchestrator, archive: PostgresArchive, batch: str
) -> None:
    odd = f"räksmörgås\\0{uuid.uuid4().hex}"
    names = [f"{batch}-{number}" for number in range(5)]
    for name in names:
        await archive.write([with_id(consumed(name), odd), with_id(answered(name), odd), with_id(answered(name), "x")])
    found = await entries(orchestrator, "/internal/v1/history", correlation_id=odd, limit=3)
    assert [one["batch_id"] for one in found] == [name for name in reversed(names) for _ in range(2)]
    assert {one["entry"]["correlation_id"] for one in found} == {odd}
    numbers = [one["entry"]["number"] for one in found]
    assert numbers == sorted(numbers, reverse=True)
    found = await entries(orchestrator, "/internal/v1/history", correlation_id=odd, type="resolution")
    assert [one["entry"]["kind"] for one in found] == ["resolution"] * 5
    assert await entries(orchestrator, "/internal/v1/history", correlation_id=odd + "x") == []
    missing = await orchestrator.request("GET", "/internal/v1/history")
    assert missing.status == 400
    assert [error["field"] for error in missing.json["errors"]] == ["correlation_id"]


async def test_a_page_of_large_entries_is_bounded(
    orchestrator: Orchestrator, archive: PostgresArchive, batch: str
) -> None:
    large = replace(reported(batch, PhaseReported("nlp", Outcome.COMPLETED, AT_US)), asked_by="x" * 20_000)
    await archive.write([replace(large, entry_id=uuid.uuid4()) for _ in range(4)])
    path = f"/internal/v1/batches/{batch}/history?type=facts"
    answer = await orchestrator.request("GET", path)
    assert len(answer.json["entries"]) == 1
    assert len(await entries(orchestrator, f"/internal/v1/batches/{batch}/history", type="facts")) == 4


def test_the_topic_of_each_event_type_is_that_of_the_decoder() -> None:
    decoder = EventDecoder(frozenset(), max_event_bytes=1024, max_essays=1)
    assert {decoder.event_type(topic): topic for topic in CONSUMED} == EVENT_TYPES


@pytest.mark.release  # each command takes a second
async def test_commands_find_the_same_entries(
    service: RunningService, orchestrator: Orchestrator, archive: PostgresArchive, batch: str
) -> None:
    correlation_id = f"id-{batch}"
    await archive.write([with_id(answered(batch), correlation_id), with_id(consumed(batch), "other")])
    url = service.service.settings.database_url
    assert url is not None
    settings = {**settings_of(service), "BCS_DATABASE_URL": url.get_secret_value()}
    ran = await bcs("history", "find", correlation_id, "--json", **settings)
    assert (ran.exit_code, ran.error) == (0, "")
    answer = await orchestrator.request("GET", f"/internal/v1/history?correlation_id={correlation_id}")
    assert ran.json == answer.json
    ran = await bcs("history", "find", correlation_id, **settings)
    assert f"Batch {batch}" in ran.output
    assert "asked for ai_feedback" in ran.output
    ran = await bcs("batches", "history", batch, "--type", "facts", **settings)
    assert "SpellcheckPhaseCompletedV1" in ran.output
    assert "ai_feedback" not in ran.output
    ran = await bcs("resolve", batch, "ai_feedback", "--json", **settings)
    ran = await bcs("history", "find", ran.json["correlation_id"], **settings)
    assert f"asked by bcs/{__version__} resolve at 127.0.0.1;" in ran.output
    ran = await bcs("batches", "history", f"{batch}-unknown", "--since", "2d", **settings)
    assert (ran.exit_code, ran.output) == (1, "")
