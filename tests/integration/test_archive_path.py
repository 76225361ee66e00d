"""With an archive: Redis may lose data at any time, and the history is explained."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread
import pytest
from redis.asyncio import Redis

from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.domain.history import ArchivedEntry, HistoryEntry, Position
from bcs.domain.state import BatchState
from bcs.errors import StoreRefused
from bcs.storage.archive import Archive
from tests.support.events import registered, spellchecked
from tests.support.history_entries import consumed
from tests.support.kafka import Platform
from tests.support.service import COMPLETE, DEFINE, Answer, Orchestrator, RunningService, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def service_settings(own_valkey: EmbeddedServer, module_database_url: str) -> dict[str, object]:
    return {
        "redis_url": f"redis://{own_valkey.address}",
        "database_url": module_database_url,
    }


@pytest.fixture
async def archive(service: RunningService) -> Archive:
    """The service's record, once it was reached: a busy machine may start the service before that."""
    archive = service.service.persistence.archive
    assert archive is not None
    await wait_until(lambda: archive.postgres.reachable)
    return archive


@pytest.fixture
async def flush(own_valkey: EmbeddedServer) -> AsyncIterator[Callable[[], Any]]:
    """Deletes all data in Redis."""
    async with Redis.from_url(f"redis://{own_valkey.address}") as redis:
        yield redis.flushall


@pytest.fixture
async def spellchecked_batch(batch: str, orchestrator: Orchestrator, platform: Platform) -> str:
    """A batch of two essays whose spellcheck is complete."""
    await platform.send(registered(batch, ["e1", "e2"]), spellchecked(batch, "e1"), spellchecked(batch, "e2"))

    async def pruned() -> bool:
        return await orchestrator.to_run(batch) == ["ai_feedback"]

    await wait_until(pruned)
    return batch


async def test_facts_that_redis_lost_come_back_from_the_archive(
    spellchecked_batch: str, orchestrator: Orchestrator, flush: Callable[[], Any]
) -> None:
    before = await orchestrator.get(f"/internal/v1/batches/{spellchecked_batch}")
    await flush()
    assert await orchestrator.to_run(spellchecked_batch) == ["ai_feedback"]
    after = await orchestrator.get(f"/internal/v1/batches/{spellchecked_batch}")
    assert {**after.json, "version": None} == {**before.json, "version": None}


async def test_concurrent_reads_of_a_lost_batch_cost_one_archive_read(
    spellchecked_batch: str,
    orchestrator: Orchestrator,
    archive: Archive,
    flush: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    questions: list[str] = []
    state = archive.postgres.state

    async def counted(batch_id: str) -> BatchState:
        questions.append(batch_id)
        return await state(batch_id)

    monkeypatch.setattr(archive.postgres, "state", counted)
    await flush()
    answers: list[list[str]] = []

    async def ask() -> None:
        answers.append(await orchestrator.to_run(spellchecked_batch))

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(ask)
    assert answers == [["ai_feedback"]] * 50
    assert questions == [spellchecked_batch]


async def test_the_history_explains_why_a_phase_was_skipped(
    batch: str, orchestrator: Orchestrator, platform: Platform, service: RunningService
) -> None:
    [sent] = await platform.send(spellchecked(batch, "e1", event_id="event-1", correlation_id="c-event"))
    await wait_until(lambda: platform.caught_up(service.group))
    reported = await orchestrator.complete(batch, "ai_feedback")
    asking = {"User-Agent": "bos/1.0"}
    body = {"batch_id": batch, "requested_pipeline": "ai_feedback", "correlation_id": "c-1"}
    assert (await orchestrator.request("POST", DEFINE, json=body, headers=asking)).json["final_pipeline"] == []
    unpruned = {**body, "requested_pipeline": "nlp", "correlation_id": "c-2", "batch_id": f"{batch}-new"}
    assert (await orchestrator.request("POST", DEFINE, json=unpruned, headers=asking)).status == 200

    async def history(of: str, length: int) -> list[Any]:
        answer = await orchestrator.get(f"/internal/v1/batches/{of}/history")
        entries: list[Any] = answer.json.get("entries", [])
        return entries if len(entries) == length else []

    resolution, report, event = await wait_until(lambda: history(batch, 3))
    assert (event["event_id"], event["correlation_id"]) == ("event-1", "c-event")
    assert event["source"] == {"topic": sent.topic, "partition": sent.partition, "offset": sent.offset}
    assert report["correlation_id"] == reported.headers["X-Correlation-ID"]
    assert (report["source"], report["event_type"]) == (None, "PhaseReported")
    assert (resolution["correlation_id"], resolution["source"]) == ("c-1", "redis")
    assert resolution["requested_by"] == "bos/1.0 at 127.0.0.1"
    assert resolution["pruned_phases"] == ["spellcheck", "ai_feedback"]
    assert {one["reason"] for one in resolution["decisions"]} == {"already_completed"}
    [asked] = await wait_until(lambda: history(f"{batch}-new", 1))
    assert (asked["correlation_id"], asked["final_pipeline"]) == ("c-2", ["spellcheck", "nlp"])


async def test_concurrent_reports_about_one_batch_are_all_stored(batch: str, orchestrator: Orchestrator) -> None:
    phases = ["spellcheck", "nlp", "cj_assessment", "ai_feedback"]
    answers: list[Answer] = []

    async def report(phase: str) -> None:
        answers.append(await orchestrator.complete(batch, phase))

    async with anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(report, phases[number % 4])
    assert [answer.status for answer in answers] == [200] * 200
    assert await orchestrator.to_run(batch, "comprehensive") == []
    # A fact is in the history before its caller is answered, unless PostgreSQL was too slow and it waits in Redis.
    told = {answer.headers["X-Correlation-ID"] for answer in answers}

    async def all_in_the_history() -> bool:
        entries = (await orchestrator.get(f"/internal/v1/batches/{batch}/history?limit=500")).json["entries"]
        found = [entry["correlation_id"] for entry in entries if entry["kind"] == "facts"]
        assert len(found) == len(set(found)), "each once"
        return set(found) == told

    await wait_until(all_in_the_history)


async def test_a_caller_name_that_is_not_utf8_does_no_harm(
    batch: str, orchestrator: Orchestrator, service: RunningService
) -> None:
    async def send(path: str, **body: object) -> bytes:
        document = json.dumps({"batch_id": batch, **body}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: bcs\r\nContent-Type: application/json\r\nConnection: close\r\n"
        async with await anyio.connect_tcp(*service.service.address) as stream:
            await stream.send(
                head.encode() + b"User-Agent: caf\xe9\r\nContent-Length: %d\r\n\r\n" % len(document) + document
            )
            return (await stream.receive()).split(b"\r\n")[0]

    asked = {"requested_pipeline": "spellcheck", "correlation_id": "c"}
    assert await send(DEFINE, **asked) == b"HTTP/1.1 200 OK"
    assert await send(COMPLETE, phase_name="spellcheck", success=True) == b"HTTP/1.1 200 OK"
    assert await send(DEFINE, **asked) == b"HTTP/1.1 200 OK"

    async def three() -> bool:
        return len((await orchestrator.get(f"/internal/v1/batches/{batch}/history")).json.get("entries", ())) == 3

    await wait_until(three)
    assert dict(service.snapshot().iter_flat())["archive"].restarts == 0


async def test_redis_gets_no_fact_before_the_archive_has_it(
    batch: str,
    orchestrator: Orchestrator,
    service: RunningService,
    archive: Archive,
    own_valkey: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise Redis could lose the fact before the archive has it."""
    writing, go_on = threading.Event(), service.call(anyio.Event)
    write = archive.postgres.write

    async def held(entries: Sequence[HistoryEntry], **options: Any) -> None:
        if any(entry.batch_id == batch for entry in entries):
            writing.set()
            await go_on.wait()
        await write(entries, **options)

    monkeypatch.setattr(archive.postgres, "write", held)
    statuses: list[int] = []

    async def report() -> None:
        statuses.append((await orchestrator.complete(batch, "nlp")).status)

    async with Redis.from_url(f"redis://{own_valkey.address}") as redis, anyio.create_task_group() as group:
        group.start_soon(report)
        try:
            await wait_until(writing.is_set)
            assert [key for key in await redis.keys() if batch.encode() in key] == []
            assert statuses == []
        finally:
            service.call(go_on.set)
    assert statuses == [200]
    recorded = await anyio.to_thread.run_sync(service.run, archive.postgres.state, batch)
    assert recorded.reports.keys() == {"nlp"}


async def test_an_entry_that_the_archive_refuses_does_not_affect_others(
    service: RunningService, archive: Archive, batch: str
) -> None:
    client = service.service._archive_client
    assert client is not None
    good, impossible = consumed(batch), replace(consumed(batch), position=Position("t", 2**31, 1))
    refused: list[StoreRefused] = []

    async def keep_both() -> list[ArchivedEntry]:
        async def keep_impossible() -> None:
            try:
                await client.write_durably([impossible])
            except StoreRefused as error:
                refused.append(error)

        async with anyio.create_task_group() as group:  # at once, so that they go into one statement
            group.start_soon(keep_impossible)
            group.start_soon(client.write_durably, [good])
        return await archive.postgres.history(batch, limit=9)

    kept = await anyio.to_thread.run_sync(service.run, keep_both)
    assert [one.entry for one in kept] == [good]
    assert len(refused) == 1


async def test_health_and_metrics_show_the_archive(orchestrator: Orchestrator) -> None:
    health = (await orchestrator.get("/healthz")).json
    assert health["dependencies"]["postgresql"] == {"status": "healthy", "message": "reachable"}
    assert health["checks"]["actors"]["archive"] == "running"
    assert await orchestrator.metric("bcs_archive_up", store="postgresql") == 1

    async def nothing_waits() -> bool:
        return await orchestrator.metric("bcs_archive_backlog") == 0

    await wait_until(nothing_waits)


async def test_without_an_archive_the_service_works_and_health_shows_it(
    redis_url: str, kafka_bootstrap_servers: str, batch: str
) -> None:
    settings = {"redis_url": redis_url, "kafka_bootstrap_servers": kafka_bootstrap_servers}
    async with running_service(**settings) as service, Orchestrator(service.base) as orchestrator:
        assert (await orchestrator.complete(batch, "spellcheck")).status == 200
        assert await orchestrator.to_run(batch) == ["ai_feedback"]
        health = (await orchestrator.get("/healthz")).json
        told = health["dependencies"]["postgresql"]
        assert told["status"] == "not_configured"
        assert "BCS_DATABASE_URL" in told["message"]
        assert "archive" not in health["checks"]["actors"]
        assert (await orchestrator.get(f"/internal/v1/batches/{batch}/history")).status == 404
