"""Explanations with an archive: the events behind the facts, and answers that leave every store as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from redis.asyncio import Redis

from bcs.domain.facts import EssaysRegistered, Outcome, PhaseReported
from bcs.wire import topics
from tests.integration.service_with_archive import ServiceWithArchive
from tests.integration.test_explain import DRAFT, explained, path_of
from tests.integration.test_plan import lines, plan
from tests.support.events import registered, spellchecked
from tests.support.kafka import PARTITIONS, Platform, values
from tests.support.service import Orchestrator, RunningService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

LARGE = [f"essay-{number:03}" for number in range(300)]  # the summary of such a batch is stored in Redis


@pytest.fixture(scope="module")
def service_settings(module_database_url: str) -> dict[str, object]:
    return {"database_url": module_database_url, "database_first_probe_seconds": 10.0}


@pytest.fixture
async def told(service: RunningService, platform: Platform, orchestrator: Orchestrator, batch: str) -> str:
    """A large batch: registered, and reported to be spellchecked."""
    await platform.send(registered(batch, LARGE))
    await wait_until(lambda: platform.caught_up(service.group))
    assert (await orchestrator.complete(batch, "spellcheck")).status == 200
    return batch


class Stores:
    """Every byte of what the service keeps."""

    def __init__(self, redis: Redis, database: Any, kafka: AIOKafkaConsumer, prefix: str) -> None:
        self.redis, self.database, self.kafka, self.prefix = redis, database, kafka, prefix

    async def everything(self) -> dict[str, Any]:
        """All keys with their expiry, all rows with the transactions that wrote them, and the ends of all topics."""
        keys = sorted([key async for key in self.redis.scan_iter(match=f"{self.prefix}*", count=1000)])
        found: dict[str, Any] = {
            key.decode(): (await self.redis.dump(key), await self.redis.pexpiretime(key)) for key in keys
        }
        for table in await self.database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
            rows = await self.database.fetch(f'SELECT ctid, xmin, xmax, * FROM "{table[0]}"')  # noqa: S608
            found[f"table {table[0]}"] = sorted(map(repr, rows))
        names = [*topics.CONSUMED, *topics.PUBLISHED]
        partitions = [TopicPartition(topic, number) for topic in names for number in range(PARTITIONS)]
        return found | {"kafka": await self.kafka.end_offsets(partitions)}


@pytest.fixture
async def stores(service: RunningService, redis_url: str, module_database_url: str, module_kafka: str) -> Any:
    redis = Redis.from_url(redis_url)
    database = await asyncpg.connect(module_database_url)
    kafka = AIOKafkaConsumer(bootstrap_servers=module_kafka)
    await kafka.start()
    yield Stores(redis, database, kafka, service.service.settings.redis_key_prefix)
    await kafka.stop()
    await database.close()
    await redis.aclose()


async def quiet(service: RunningService) -> bool:
    """True once no actor of a batch works, and nothing waits for Kafka or PostgreSQL."""
    archive = service.service.persistence.archive
    assert archive is not None
    waiting = [service.run(service.service.outbox.backlog), service.run(archive.backlog.backlog)]
    waiting.append(service.run(archive.explanations.backlog))
    [batches] = [child for child in service.snapshot().children if child.name == "batches"]
    return not any(waiting) and not batches.children


async def test_a_dry_run_leaves_every_store_byte_by_byte_as_it_is(
    service: RunningService, orchestrator: Orchestrator, told: str, stores: Stores, batch: str
) -> None:
    await wait_until(lambda: quiet(service))
    before = await stores.everything()
    assert len(before["table essays"]) == len(LARGE)
    for fields in (
        {},
        {"explain": True},
        {"explain": "full"},
        {"force": "all", "explain": True},
        {"until": "spellcheck"},
        {"assume_failed": ["spellcheck"], "explain": True},
    ):
        assert (await orchestrator.define(told, "ai_feedback", dry_run=True, **fields)).status == 200
    assert await orchestrator.to_run(told, "translated", definitions=DRAFT, dry_run=True) == ["translation"]
    assert (await orchestrator.define(told, "nlp", dry_run=True, exclude=["spellcheck"])).status == 200
    assert (await orchestrator.define("nobody's", "nlp", dry_run=True, exclude=["spellcheck"])).status == 409
    assert (await orchestrator.define("nobody's", "nlp", dry_run=True)).status == 200
    for query in ("", "?explain=full"):
        explained(await orchestrator.get(path_of(told, "ai_feedback", query)))
        explained(await orchestrator.get(path_of("nobody's", "ai_feedback", query)))
    planned: tuple[dict[str, object], ...] = ({}, {"force": "all"}, {"definitions": DRAFT})
    for options in planned:
        lines(await plan(orchestrator, [told, "nobody's"], "spellcheck", **options))
    await wait_until(lambda: quiet(service))
    assert await stores.everything() == before
    # What a dry run would have done is seen there: the summary, the announcement, and the entry of the history.
    await orchestrator.define(told, "ai_feedback")

    async def changed() -> bool:
        now = await stores.everything()
        new = {name for name in now if now[name] != before.get(name)}
        return {"kafka", "table history"} < new and any(name.startswith(stores.prefix) for name in new)

    await wait_until(changed)


async def test_a_dry_run_does_not_complete_a_batch_that_redis_has_lost(
    service: RunningService, orchestrator: Orchestrator, told: str, stores: Stores
) -> None:
    await wait_until(lambda: quiet(service))
    keys = [key async for key in stores.redis.scan_iter(match=f"{stores.prefix}*{told}*", count=1000)]
    await stores.redis.delete(*keys)
    before = await stores.everything()
    assert await orchestrator.to_run(told, "ai_feedback", dry_run=True) == ["ai_feedback"]
    explained(await orchestrator.get(path_of(told, "ai_feedback")))
    [planned], _ = lines(await plan(orchestrator, [told], "ai_feedback"))
    assert planned["final_pipeline"] == ["ai_feedback"]
    await wait_until(lambda: quiet(service))
    assert await stores.everything() == before


@pytest.mark.release
async def test_each_store_explains_while_the_other_is_away(tmp_path: Path, database_url: str) -> None:
    async with ServiceWithArchive(tmp_path, database_url) as stack:
        await stack.apply("batch", [EssaysRegistered(("a",), 1, 1), PhaseReported("spellcheck", Outcome.COMPLETED, 2)])
        caller, path = stack.orchestrator, path_of("batch", "ai_feedback")
        await stack.resolve_in_the_end("batch")
        await stack.wait_for_archive()

        async def explained_by(source: str, archive: str) -> bool:
            answer = await caller.get(path)
            if answer.status != 200 or answer.json["explanation"]["archive"] != archive:
                return False
            document = explained(answer)
            [one], _ = lines(await plan(caller, ["batch"], "ai_feedback"))
            assert (document["final_pipeline"], one["final_pipeline"]) == (["ai_feedback"], ["ai_feedback"])
            return bool(document["source"] == one["source"] == source)

        await wait_until(lambda: explained_by("redis", "answered"))
        stack.redis_proxy.refuse()
        await stack.redis_proxy.cut()
        await wait_until(lambda: explained_by("postgresql", "answered"))
        stack.redis_proxy.accept()
        await stack.wait_for_redis()
        stack.database_proxy.refuse()
        await stack.database_proxy.cut()
        await wait_until(lambda: explained_by("redis", "unavailable"))


async def test_the_event_behind_the_deciding_fact_is_named(
    service: RunningService, orchestrator: Orchestrator, platform: Platform, batch: str
) -> None:
    sent = [registered(batch, ["a", "b"]), spellchecked(batch, "a"), spellchecked(batch, "b")]
    [_, _, last] = await platform.send(*sent)
    await wait_until(lambda: platform.caught_up(service.group))
    await orchestrator.complete(batch, "nlp", success=False)
    document = explained(await orchestrator.get(path_of(batch, "nlp")))
    assert document["explanation"]["archive"] == "answered"
    spellcheck, nlp = document["explanation"]["phases"]
    event = values(await platform.messages(topics.SPELLCHECK_COMPLETED, "b"))[-1]
    assert spellcheck["decided_by"]["essay_id"] == "b"
    archived = spellcheck["decided_by"]["archived"]
    assert archived["event_id"] == event["event_id"]
    assert archived["event_type"] == "SpellcheckPhaseCompletedV1"
    assert archived["source"] == {"topic": last.topic, "partition": last.partition, "offset": last.offset}
    assert archived["recorded_at"] >= spellcheck["decided_by"]["at"]
    assert (nlp["decided_by"]["fact"], nlp["decided_by"]["archived"]["event_type"]) == (
        "phase_reported",
        "PhaseReported",
    )
    assert nlp["decided_by"]["archived"]["reported_by"].endswith("127.0.0.1")
    assert nlp["decided_by"]["archived"]["source"] is None


async def test_the_history_says_what_was_forced_and_by_whom(orchestrator: Orchestrator, told: str) -> None:
    await orchestrator.define(told, "spellcheck", force=["spellcheck"], correlation_id="forced-by-me")
    await orchestrator.define(told, "ai_feedback", only=["ai_feedback"])
    await orchestrator.define(told, "ai_feedback")

    async def entries() -> list[Any]:
        found = (await orchestrator.get(f"/internal/v1/batches/{told}/history")).json["entries"]
        answers = [entry for entry in found if entry["kind"] == "resolution"]
        return answers if len(answers) == 3 else []

    plain, only, forced = sorted(
        await wait_until(entries), key=lambda entry: (len(entry.get("options", ())), "force" in str(entry))
    )
    assert "options" not in plain
    assert only["options"] == {"only": ["ai_feedback"]}
    assert (only["final_pipeline"], only["pruned_phases"]) == (["ai_feedback"], [])
    assert forced["options"] == {"force": ["spellcheck"]}
    assert (forced["correlation_id"], forced["decisions"][0]["reason"]) == ("forced-by-me", "forced")
    assert "at 127.0.0.1" in forced["requested_by"]
