"""An operator erases a batch over HTTP; its late events are dropped, and leave nothing behind."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote
from zlib import crc32

import anyio.to_thread
import pytest
from redis.asyncio import Redis
from yarl import URL

from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.redis.batch_index import SHARDS, index_key
from tests.support import events
from tests.support.history_entries import answered, consumed
from tests.support.kafka import Platform
from tests.support.service import Answer, Orchestrator, RunningService, service_in_thread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

ESSAYS = ["Elsas-essay", "Olles-essay"]


async def erase(caller: Orchestrator, batch: str, query: str = "reason=asked%20for") -> Answer:
    return await caller.request("DELETE", f"/internal/v1/batches/{quote(batch, safe='')}?{query}")


def problem(answer: Answer, status: int, kind: str) -> Any:
    assert answer.status == status, answer.body
    assert answer.json["type"] == f"urn:bcs:problem:{kind}"
    return answer.json


async def until_known(caller: Orchestrator, batch: str, essays: int = 2) -> None:
    async def known() -> bool:
        return bool((await caller.define(batch)).json.get("essays_known") == essays)

    await wait_until(known)


async def test_an_erased_batch_is_gone_and_its_late_events_are_dropped(
    orchestrator: Orchestrator, platform: Platform, service: RunningService, batch: str
) -> None:
    await platform.send(events.registered(batch, ESSAYS))
    await until_known(orchestrator, batch)
    looked = await erase(orchestrator, batch, "reason=asked%20for&dry_run=true")
    assert looked.json["removed"] == [
        {"place": "redis", "what": "batch", "count": 1},
        {"place": "redis", "what": "essays", "count": 2},
    ]
    await until_known(orchestrator, batch)
    erased = (await erase(orchestrator, batch)).json
    assert erased["removed"][:2] == looked.json["removed"]
    assert (erased["dry_run"], erased["reason"]) == (False, "asked for")
    for answer in (
        await orchestrator.define(batch),
        await orchestrator.complete(batch, "spellcheck"),
        await orchestrator.get(f"/internal/v1/batches/{batch}"),
    ):
        gone = problem(answer, 410, "batch-erased")
        assert (gone["erased_at"], gone["refused_until"]) == (erased["erased_at"], erased["refused_until"])
    names = {"topic": "huleedu.batch.spellcheck.phase.completed.v1", "reason": "invalid_event"}
    dead_letters = await orchestrator.metric("bcs_dead_letters_total", **names)
    # The last one is refused before it comes to its batch: as a dead letter, it would keep what was erased.
    late = [
        *(events.spellchecked(batch, essay) for essay in ESSAYS),
        events.spellchecked(batch, "e", status="no status"),
    ]
    await platform.send(*late)

    async def dropped() -> bool:
        return (
            await orchestrator.metric(
                "bcs_events_processed_total", event_type="SpellcheckPhaseCompletedV1", outcome="erased"
            )
            or 0
        ) >= len(late)

    await wait_until(dropped)
    await wait_until(lambda: platform.caught_up(service.group))
    problem(await orchestrator.define(batch), 410, "batch-erased")
    assert await orchestrator.metric("bcs_dead_letters_total", **names) == dead_letters
    # Again: nothing is left.
    assert (await erase(orchestrator, batch)).json["removed"] == []


async def test_the_index_of_the_batches_has_no_erased_batch(
    orchestrator: Orchestrator, platform: Platform, service: RunningService, batch: str, redis_url: str
) -> None:
    await platform.send(events.registered(batch, ESSAYS))
    await until_known(orchestrator, batch)
    index = service.service.persistence.written_index
    assert index
    await anyio.to_thread.run_sync(service.run, index.flush)
    prefix = service.service.settings.redis_key_prefix
    async with Redis.from_url(redis_url) as redis:

        async def places() -> list[float]:
            found = [await redis.zscore(index_key(prefix, number), batch) for number in range(SHARDS)]
            return [place for place in found if place is not None]

        assert len(await places()) == 1
        # It waits to be written once more.
        service.call(index.note, batch)
        await erase(orchestrator, batch)
        await anyio.to_thread.run_sync(service.run, index.flush)
        assert await places() == []
        # Another process had noted it before, and writes it now.
        await redis.zadd(index_key(prefix, crc32(batch.encode()) % SHARDS), {batch: 1_764_000_000_000_000})
        assert not await listed(orchestrator, batch)
        assert await places() == []


async def listed(caller: Orchestrator, batch: str) -> bool:
    following = "/internal/v1/batches?limit=500"
    while following:
        page = await caller.request("GET", URL(following, encoded=True))
        assert page.status == 200, page.body
        if batch in [one["batch_id"] for one in page.json["batches"]]:
            return True
        following = page.json["next"]
    return False


async def test_no_other_call_knows_an_erased_batch(
    orchestrator: Orchestrator, platform: Platform, service: RunningService, batch: str
) -> None:
    await platform.send(events.registered(batch, ESSAYS))
    await until_known(orchestrator, batch)
    path, plan = f"/internal/v1/batches/{batch}", {"batch_ids": [batch], "requested_pipeline": "nlp"}
    await wait_until(lambda: listed(orchestrator, batch))

    async def planned() -> Any:
        answer = await orchestrator.request("POST", "/internal/v1/pipelines/plan", json=plan)
        assert answer.status == 200, answer.body
        return json.loads(answer.body.splitlines()[0])

    # Summaries that the service keeps are of before.
    assert (await planned())["essays_known"] == 2
    assert (await erase(orchestrator, batch)).status == 200
    order = {"phases": ["spellcheck"], "reason": "wrong"}
    for answer in (
        await orchestrator.get(f"{path}/explain/nlp"),
        await orchestrator.get(f"/internal/v1/pipelines/nlp/graph?batch={batch}"),
        await orchestrator.define(batch, dry_run=True),
        await orchestrator.request("POST", f"{path}/invalidate", json=order),
        await orchestrator.request("POST", f"{path}/invalidate", json={**order, "dry_run": True}),
    ):
        problem(answer, 410, "batch-erased")
    line = await planned()
    assert (line["problem"]["type"], line["problem"]["status"]) == ("urn:bcs:problem:batch-erased", 410)
    assert not await listed(orchestrator, batch)


@pytest.mark.parametrize("query", ["", "reason=", f"reason={'x' * 201}", "reason=a&reason=b", "reason=a&dry_run=2"])
async def test_an_erasure_needs_a_reason(orchestrator: Orchestrator, batch: str, query: str) -> None:
    problem(await erase(orchestrator, batch, query), 400, "invalid-request")
    assert (await orchestrator.define(batch)).status == 200


async def test_the_history_keeps_who_erased_the_batch_and_why(
    redis_url: str, module_database_url: str, archive: PostgresArchive, batch: str
) -> None:
    with service_in_thread(
        redis_url=redis_url, database_url=module_database_url, kafka_bootstrap_servers="127.0.0.1:1"
    ) as running:
        async with Orchestrator(running.base) as caller:
            await archive.write([consumed(batch), answered(batch)])
            await until_known(caller, batch, essays=1)
            expected = [
                {"place": "postgresql", "what": "essays", "count": 1},
                {"place": "postgresql", "what": "facts", "count": 1},
                {"place": "postgresql", "what": "history_entries", "count": 2},
            ]
            # The resolutions above are in the history, too, or about to be.
            counted = (await erase(caller, batch, "reason=asked%20for&dry_run=true")).json["removed"]
            assert [each for each in counted if each["place"] == "postgresql"][:2] == expected[:2]
            erased = (await erase(caller, batch)).json
            [entry] = (await caller.get(f"/internal/v1/batches/{batch}/history")).json["entries"]
            assert entry["kind"] == "erasure"
            assert (entry["reason"], entry["erased_by"]) == ("asked for", erased["erased_by"])
            assert entry["refused_until"] == erased["refused_until"]
            [found] = (await caller.get(f"/internal/v1/batches/{batch}/history?type=erasure")).json["entries"]
            assert found == entry
            assert not (await caller.get(f"/internal/v1/batches/{batch}/history?type=facts")).json["entries"]
            query = f"correlation_id={entry['correlation_id']}&type=erasure"
            everywhere = (await caller.get(f"/internal/v1/history?{query}")).json["entries"]
            assert everywhere == [{"batch_id": batch, "entry": entry}]
            assert not await listed(caller, batch)
            problem(await caller.define(batch), 410, "batch-erased")
            problem(await caller.complete(batch, "spellcheck"), 410, "batch-erased")
