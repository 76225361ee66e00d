"""The number of a batch's essays is limited: only the events that would exceed it become dead letters."""

from __future__ import annotations

import time
from typing import Any

import pytest

from bcs.domain.dead_lettered import DEAD_LETTERED
from bcs.domain.facts import EssaysRegistered
from bcs.domain.state import delta_of
from bcs.errors import TooManyEssays
from bcs.storage.backfill import ArchiveBackfill
from bcs.storage.memory import MemoryStateStore
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.redis.batch_store import RedisStateStore
from bcs.storage.redis.gateway import RedisGateway
from bcs.wire import topics
from tests.support.events import Event, cj_completed, phase_outcome, registered, spellchecked
from tests.support.kafka import Platform, values
from tests.support.laws import LAW
from tests.support.service import Orchestrator, RunningService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

MOST = 4
KNOWN = ["a", "b", "c"]


@pytest.fixture(scope="module")
def service_settings(module_database_url: str) -> dict[str, object]:
    return {
        "max_essays_per_batch": MOST,
        "database_url": module_database_url,
    }


async def refusals(platform: Platform, batch: str, count: int, *source: str) -> list[dict[str, Any]]:
    """So many dead letters, from these topics; there are no others."""

    async def found() -> list[dict[str, Any]]:
        records = [one for topic in source for one in await platform.messages(topics.dead_letter_topic(topic), batch)]
        return values(records) if len(records) >= count else []

    letters: list[dict[str, Any]] = await wait_until(found)
    assert len(letters) == count
    assert {letter["dlq_reason"] for letter in letters} == {"too_many_essays"}
    return letters


async def send(service: RunningService, platform: Platform, *events: Event) -> None:
    await platform.send(*events)
    await wait_until(lambda: platform.caught_up(service.group))


async def essays_of(orchestrator: Orchestrator, batch: str) -> list[str]:
    document: dict[str, Any] = (await orchestrator.get(f"/internal/v1/batches/{batch}")).json
    return [essay["essay_id"] for essay in document["known_essays"]]


async def test_only_the_events_that_exceed_the_limit_become_dead_letters(
    service: RunningService, platform: Platform, orchestrator: Orchestrator, batch: str
) -> None:
    await send(service, platform, registered(batch, KNOWN))
    await send(service, platform, cj_completed(batch, ["d", "e"]), spellchecked(batch, "a"))
    await send(service, platform, spellchecked(batch, "d"), phase_outcome(batch, "nlp", ["a", "d"]))
    # Now the batch is full.
    await send(service, platform, spellchecked(batch, "e"), spellchecked(batch, "b"), cj_completed(batch, ["a"]))
    letters = await refusals(platform, batch, 2, topics.CJ_COMPLETED, topics.SPELLCHECK_COMPLETED)
    assert "BCS_MAX_ESSAYS_PER_BATCH" in letters[0]["additional_metadata"]["error_message"]
    assert await essays_of(orchestrator, batch) == ["a", "b", "c", "d"]
    entries = (await orchestrator.get(f"/internal/v1/batches/{batch}/history")).json["entries"]
    assert len([entry for entry in entries if entry["facts"]]) == 6, "the record has no fact of a dead letter"
    assert len([entry for entry in entries if entry["event_type"] == DEAD_LETTERED]) == 2
    answer = (await orchestrator.define(batch, "cj_assessment")).json
    assert {one["phase"]: one["completed"] for one in answer["decisions"]} == {"spellcheck": 3, "cj_assessment": 1}


async def test_an_event_about_too_many_essays_is_refused_whatever_is_known(
    service: RunningService, platform: Platform, orchestrator: Orchestrator, batch: str
) -> None:
    await send(
        service,
        platform,
        registered(batch, KNOWN, expected=MOST + 1),
        phase_outcome(batch, "nlp", [f"n{number}" for number in range(MOST)], ["one more"]),
        cj_completed(batch, ["a"] * (MOST + 1)),
        registered(batch, KNOWN, expected=MOST),
    )
    await refusals(platform, batch, 3, topics.ESSAYS_REGISTERED, topics.PHASE_OUTCOME, topics.CJ_COMPLETED)
    assert await essays_of(orchestrator, batch) == KNOWN


async def test_a_replica_that_never_saw_a_batch_asks_how_many_essays_it_has(
    gateway: RedisGateway, redis_key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, another = (
        RedisStateStore(gateway, law=LAW, key_prefix=redis_key_prefix, ttl_seconds=60, max_essays=MOST) for _ in "12"
    )
    await one.commit("b", delta_of([EssaysRegistered(tuple(KNOWN), 3, 1)]))
    for _ in "12":
        await another.ensure_room("b", ["a", "b", "c", "d"])
        with pytest.raises(TooManyEssays):
            await another.ensure_room("b", ["d", "e"])
    # Who committed last knows enough to let few essays pass unasked.
    monkeypatch.setattr(gateway, "call_multiplexed", None)
    await one.ensure_room("b", ["d"])


async def test_what_the_record_has_gets_into_redis_however_much_it_is(
    gateway: RedisGateway, redis_key_prefix: str, archive: PostgresArchive
) -> None:
    async def waiting(_batch_id: str) -> int:
        return 0

    backfill = ArchiveBackfill(archive, waiting)
    store = RedisStateStore(
        gateway, law=LAW, key_prefix=redis_key_prefix, ttl_seconds=60, backfill=backfill, max_essays=MOST
    )
    await store.commit("b", delta_of([EssaysRegistered(("a", "b", "c", "d", "e"), 5, 1)]))
    assert (await store.summary("b")).known == MOST + 1
    await store.ensure_room("b", ["a"])
    with pytest.raises(TooManyEssays):
        await store.ensure_room("b", ["a", "f"])


async def test_a_store_behind_which_no_record_stands_refuses_by_what_it_reads(
    gateway: RedisGateway, redis_key_prefix: str
) -> None:
    in_redis = RedisStateStore(gateway, law=LAW, key_prefix=redis_key_prefix, ttl_seconds=60, max_essays=MOST)
    in_memory = MemoryStateStore(law=LAW, ttl_seconds=60, clock=time.monotonic, max_essays=MOST)
    for store in (in_redis, in_memory):
        await store.commit("b", delta_of([EssaysRegistered(tuple(KNOWN), 3, 1)]))
        more = delta_of([EssaysRegistered(("a", "d", "e"), 3, 1)])
        with pytest.raises(TooManyEssays) as commit:
            await store.commit("b", more)
        with pytest.raises(TooManyEssays) as beforehand:
            await store.ensure_room("b", more.first_seen_us)
        for refusal in (commit.value, beforehand.value):
            assert (refusal.limit, refusal.known, refusal.new_essays) == (MOST, 3, frozenset({"d", "e"}))
        assert (await store.state("b")).first_seen_us.keys() == set(KNOWN)
        await store.ensure_room("b", ["a", "b", "c", "d"])
