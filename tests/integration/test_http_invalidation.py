"""Completions are taken back over HTTP, with and without an archive."""

from __future__ import annotations

import gc
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import anyio.to_thread
import asyncpg
import pytest
from redis.asyncio import Redis

from bcs.actors.messages import ApplyFacts, HttpSource
from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome, PhaseOutcome
from bcs.domain.state import delta_of
from bcs.domain.times import format_timestamp
from bcs.http.requests import MOST_INVALIDATED_ESSAYS, MOST_INVALIDATED_PHASES
from bcs.storage.redis.batch_codec import BatchKeys
from tests.support.events import now, registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import Answer, Orchestrator, RunningService, service_in_thread
from tests.support.stalls import watched
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

AT_US = 1_764_000_000_123_456
AT = format_timestamp(AT_US)
C, F = Outcome.COMPLETED, Outcome.FAILED
PRIVATE = "Elsas-private-text"
IN_2031_US = 1_925_000_000_000_000


@pytest.fixture(scope="module")
def archived(redis_url: str, module_database_url: str) -> Iterator[RunningService]:
    """A service with an archive; nothing comes from Kafka."""
    with service_in_thread(
        redis_url=redis_url,
        database_url=module_database_url,
        database_first_probe_seconds=10.0,
        kafka_bootstrap_servers="127.0.0.1:1",
    ) as service:
        yield service


async def apply(service: RunningService, batch: str, *facts: Fact) -> None:
    """Have facts stored as those of a request are: by the batch's actor, in the archive and in Redis."""
    source = HttpSource(uuid.uuid4(), "correlation", "the test")

    async def ask() -> None:
        await service.service.batches.ask(
            batch, lambda reply: ApplyFacts(batch, facts, source=source, reply=reply), 10.0
        )

    await anyio.to_thread.run_sync(service.run, ask)


def two_essays(at_us: int = AT_US) -> list[Fact]:
    """A batch of two essays: both spellchecked, a in nlp, b failed there."""
    essays = [EssaysRegistered(("a", "b"), 2, at_us)]
    spelled = [EssayPhaseEnded("spellcheck", essay, C, at_us) for essay in "ab"]
    return [*essays, *spelled, EssayPhaseEnded("nlp", "a", C, at_us), EssayPhaseEnded("nlp", "b", F, at_us)]


async def invalidate(caller: Orchestrator, batch: str, **fields: object) -> Answer:
    body = {"phases": ["spellcheck"], "reason": "a wrong dictionary", **fields}
    return await caller.request("POST", f"/internal/v1/batches/{batch}/invalidate", json=body)


async def everything(service: RunningService, redis_url: str, database_url: str) -> Mapping[str, object]:
    """All that Redis and PostgreSQL have, but the times at which the processes renew their layouts."""
    found: dict[str, object] = {}
    redis: Any = Redis.from_url(redis_url)
    async with redis:
        keys = [key async for key in redis.scan_iter(match=f"{service.service.settings.redis_key_prefix}*", count=1000)]
        for key in keys:
            if not key.endswith(b":layouts"):
                found[key.decode()] = await redis.dump(key), await redis.pexpiretime(key)
    connection = await asyncpg.connect(database_url)
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for [table] in tables:
            # Only names of tables that are there.
            found[table] = sorted(map(str, await connection.fetch(f'SELECT * FROM "{table}"')))  # noqa: S608
    finally:
        await connection.close()
    return found


async def test_a_phase_is_taken_back_and_the_history_has_who_and_why(archived: RunningService, batch: str) -> None:
    await apply(archived, batch, *two_essays())
    async with Orchestrator(archived.base) as caller:
        assert await caller.to_run(batch) == ["ai_feedback"]
        before = now()
        answer = await invalidate(caller, batch, correlation_id="inc-7")
        assert answer.status == 200, answer.body
        assert answer.headers["X-Correlation-ID"] == "inc-7"
        [taken_back] = answer.json["phases"]
        assert before < taken_back["at"] < now(1)
        essays = [{"essay_id": essay, "outcome": "completed", "at": AT} for essay in "ab"]
        assert answer.json == {
            "batch_id": batch,
            "dry_run": False,
            "phases": [
                {
                    "phase": "spellcheck",
                    "at": taken_back["at"],
                    "was_complete": True,
                    "complete": False,
                    "completed": 2,
                    "failed": 0,
                    "report": None,
                    "outcome": None,
                    "essays": essays,
                }
            ],
            "no_longer_complete": ["spellcheck"],
        }
        assert await caller.to_run(batch) == ["spellcheck", "ai_feedback"]

        async def entry() -> Any:
            history = (await caller.get(f"/internal/v1/batches/{batch}/history")).json
            return next((each for each in history["entries"] if each.get("event_type") == "PhasesInvalidated"), None)

        stored = await wait_until(entry)
        assert stored["reason"] == "a wrong dictionary"
        assert (stored["correlation_id"], stored["source"]) == ("inc-7", None)
        assert "Python" in stored["reported_by"]
        fact = {"fact": "phase_invalidated", "phase": "spellcheck", "essay_id": None, "at": taken_back["at"]}
        assert stored["facts"] == [fact]
        others = (await caller.get(f"/internal/v1/batches/{batch}/history")).json["entries"]
        assert not any("reason" in each for each in others if each["number"] != stored["number"])
        assert (await caller.metric("bcs_phases_invalidated_total", phase="spellcheck") or 0) >= 1


async def test_a_dry_run_says_the_same_and_leaves_every_byte_as_it_is(
    archived: RunningService, batch: str, redis_url: str, module_database_url: str
) -> None:
    await apply(archived, batch, *two_essays())
    async with Orchestrator(archived.base) as caller:
        assert (await caller.define(batch, "nlp")).status == 200
        await wait_until(lambda: _entries(caller, batch, 2))
        before = await everything(archived, redis_url, module_database_url)
        assert any(batch in key for key in before)
        shown = await invalidate(caller, batch, phases=["nlp", "spellcheck"], dry_run=True)
        assert shown.json["dry_run"] is True
        assert [(each["completed"], each["failed"]) for each in shown.json["phases"]] == [(1, 1), (2, 0)]
        assert await everything(archived, redis_url, module_database_url) == before
        done = await invalidate(caller, batch, phases=["nlp", "spellcheck"])
        assert await everything(archived, redis_url, module_database_url) != before
    assert _without_times({**done.json, "dry_run": True}) == _without_times(shown.json)


def _without_times(answer: Any) -> Any:
    return {**answer, "phases": [{**each, "at": None} for each in answer["phases"]]}


async def _entries(caller: Orchestrator, batch: str, count: int) -> bool:
    history = (await caller.get(f"/internal/v1/batches/{batch}/history")).json
    return len(history.get("entries", ())) == count


async def test_events_count_by_their_own_time_whenever_they_arrive(
    orchestrator: Orchestrator, service: RunningService, platform: Platform, batch: str
) -> None:
    async def sent(*essays: str, at: str | None = None) -> list[str]:
        await platform.send(*(spellchecked(batch, essay, at=at) for essay in essays))
        await wait_until(lambda: platform.caught_up(service.group))
        return await orchestrator.to_run(batch)

    await platform.send(registered(batch, ["a", "b"]))
    started = now(-5)
    assert await sent("a", "b") == ["ai_feedback"]
    assert (await invalidate(orchestrator, batch, essays=["b"])).status == 200
    shown = (await orchestrator.get(f"/internal/v1/batches/{batch}")).json
    [spellcheck] = [each for each in shown["phases"] if each["phase"] == "spellcheck"]
    assert [essay["essay_id"] for essay in spellcheck["blocking_essays"]] == ["b"]
    assert await sent("b", at=started) == ["spellcheck", "ai_feedback"], "a late event has an older time"
    assert await sent("b") == ["ai_feedback"], "a newer completion counts again"


async def test_a_phase_that_requires_it_can_end_with_it(orchestrator: Orchestrator, service: RunningService) -> None:
    batch = uuid.uuid4().hex
    nameless = PhaseOutcome(
        "nlp", "completed_successfully", completed=(), failed=(), speaks_for_all=True, at_us=AT_US + 1, repeat_key="k"
    )
    facts = [fact for fact in two_essays() if not isinstance(fact, EssayPhaseEnded) or fact.phase != "nlp"]
    await apply(service, batch, *facts, nameless)
    assert await orchestrator.to_run(batch, "nlp") == []
    answer = await invalidate(orchestrator, batch)
    assert answer.json["no_longer_complete"] == ["spellcheck", "nlp"]
    assert await orchestrator.to_run(batch, "nlp") == ["spellcheck", "nlp"]


async def test_a_report_and_an_outcome_are_taken_back_too(orchestrator: Orchestrator, batch: str) -> None:
    assert (await orchestrator.complete(batch, "nlp")).status == 200
    answer = await invalidate(orchestrator, batch, phases=["nlp"])
    [nlp] = answer.json["phases"]
    assert nlp["report"]["outcome"] == "completed"
    assert nlp["report"]["at"] < nlp["at"]
    assert (nlp["was_complete"], nlp["complete"]) == (True, False)
    again = await invalidate(orchestrator, batch, phases=["nlp"])
    assert again.json["phases"][0]["report"] is None, "it no longer counts"


INVALID: dict[str, tuple[dict[str, object], str]] = {
    "an unknown phase": ({"phases": ["spellcheck", PRIVATE]}, "phases.1"),
    "no phase": ({"phases": []}, "phases"),
    "too many phases": ({"phases": ["nlp"] * (MOST_INVALIDATED_PHASES + 1)}, "phases"),
    "an unknown essay": ({"essays": ["a", PRIVATE]}, "essays.1"),
    "no essay": ({"essays": []}, "essays"),
    "too many essays": ({"essays": ["a"] * (MOST_INVALIDATED_ESSAYS + 1)}, "essays"),
    "too many facts": ({"phases": ["nlp"] * 6, "essays": ["a"] * 1000}, "essays"),
    "no reason": ({"reason": None}, "reason"),
    "a blank reason": ({"reason": " \n"}, "reason"),
    "a long reason": ({"reason": "x" * 501}, "reason"),
    "a dry run that is a text": ({"dry_run": "yes"}, "dry_run"),
}


async def test_invalid_orders_name_the_field_and_change_nothing(
    orchestrator: Orchestrator, service: RunningService, batch: str
) -> None:
    await apply(service, batch, *two_essays())
    for name, (fields, field) in INVALID.items():
        answer = await invalidate(orchestrator, batch, **fields)
        assert answer.status == 400, name
        assert [each["field"] for each in answer.json["errors"]] == [field], name
        assert PRIVATE not in answer.body.decode()
    misspelt = await invalidate(orchestrator, batch, dry_runn=True, dry_run=True)
    assert "dry_runn" in json.dumps(misspelt.json["warnings"])
    assert await orchestrator.to_run(batch) == ["ai_feedback"]


async def test_an_unknown_batch_is_not_found_and_leaves_nothing(
    orchestrator: Orchestrator, service: RunningService, redis_url: str, batch: str
) -> None:
    for dry_run in (True, False):
        answer = await invalidate(orchestrator, batch, dry_run=dry_run)
        assert (answer.status, answer.json["type"]) == (404, "urn:bcs:problem:unknown-batch")
    redis: Any = Redis.from_url(redis_url)
    async with redis:
        assert not await redis.exists(BatchKeys(service.service.settings.redis_key_prefix, batch).facts)


async def test_a_fact_far_in_the_future_is_named_instead_of_left_in_force(
    orchestrator: Orchestrator, service: RunningService, batch: str
) -> None:
    far = delta_of([EssayPhaseEnded("spellcheck", "a", C, IN_2031_US)])
    await anyio.to_thread.run_sync(service.run, service.service.store.commit, batch, far)
    answer = await invalidate(orchestrator, batch)
    assert (answer.status, answer.json["type"]) == (409, "urn:bcs:problem:invalidation-outdated")
    assert answer.json["phase"] == "spellcheck"
    in_the_way = {"fact": "essay_phase_ended", "essay_id": "a", "at": format_timestamp(IN_2031_US)}
    assert answer.json["in_the_way"] == in_the_way
    assert await orchestrator.to_run(batch) == ["ai_feedback"]


@pytest.mark.release
@pytest.mark.serial
async def test_no_order_holds_up_the_loop(service: RunningService, orchestrator: Orchestrator, batch: str) -> None:
    essays = tuple(f"essay-{number:08}-abcdefgh" for number in range(20_000))
    phases = ["spellcheck", "nlp", "cj_assessment", "ai_feedback", "student_matching"]
    marks: list[Fact] = [EssaysRegistered(essays, len(essays), AT_US)]
    for phase in phases:
        marks.append(
            PhaseOutcome(phase, "s", completed=essays, failed=(), speaks_for_all=False, at_us=AT_US, repeat_key="k")
        )
    await anyio.to_thread.run_sync(service.run, service.service.store.commit, batch, delta_of(marks))
    # The objects of this process are a multiple of those of a service, and to look at all of them takes a tenth of a
    # second.
    gc.collect()
    gc.freeze()
    async with watched(service) as stalls:
        for named in (None, list(essays[:1000])):
            for dry_run in (True, False):
                answer = await invalidate(orchestrator, batch, phases=phases, essays=named, dry_run=dry_run)
                assert answer.status == 200, answer.body
    gc.unfreeze()
    assert 0 < stalls.busy_seconds < 0.1, stalls


@pytest.mark.release
async def test_the_largest_order_is_stored_and_its_answer_is_bounded(archived: RunningService, batch: str) -> None:
    essays = tuple(f"{number:04d}-{'x' * 200}" for number in range(MOST_INVALIDATED_ESSAYS))
    marks = [EssayPhaseEnded("spellcheck", essay, C, AT_US) for essay in essays]
    await apply(archived, batch, EssaysRegistered(essays, len(essays), AT_US), *marks)
    phases = ["spellcheck", "nlp", "cj_assessment", "ai_feedback", "student_matching"]
    async with Orchestrator(archived.base) as caller:
        answer = await invalidate(caller, batch, phases=phases, essays=list(essays))
        assert answer.status == 200, answer.body
        [spellcheck, *_] = answer.json["phases"]
        assert (spellcheck["completed"], len(spellcheck["essays"])) == (1000, 100)
        assert len(answer.body) < 100_000
        assert (await caller.to_run(batch))[0] == "spellcheck"
