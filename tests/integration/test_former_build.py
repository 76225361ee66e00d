"""What the build before stored: the words in Redis and PostgreSQL are others since, and nothing of it is lost."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from redis.asyncio import Redis
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

import bcs.storage.postgres.migrations
from bcs.config.loading import load_settings
from bcs.config.pipelines import load_pipelines
from bcs.domain.facts import Outcome
from bcs.domain.state import Mark
from bcs.errors import StoreUnavailable
from bcs.storage.factory import Persistence, open_persistence, redis_nodes
from bcs.storage.postgres import schema
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.wire import topics
from tests.support.commands import bcs as run_bcs
from tests.support.databases import archive_in
from tests.support.kafka import Platform, values
from tests.support.service import Orchestrator, running_service
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

DATA = Path(__file__).parents[1] / "data"
MIGRATIONS = Path(bcs.storage.postgres.migrations.__file__).parent
NOWHERE = "127.0.0.1:1"
# What tests/data/make_stored_v0002.py says.
AT_US = 1_780_000_000_000_000
CORRELATION_ID = "550e8400-e29b-41d4-a716-446655440000"
COMPLETE, STAMPED_TOO_EARLY, QUEUED = "complete", "stamped too early", "queued"
BATCHES = (COMPLETE, STAMPED_TOO_EARLY, QUEUED)
TTL_MS = 600_000


async def store_in_postgresql(url: str) -> None:
    """Make the tables as the build before made them, and fill them."""

    def migrate(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")

    engine = create_async_engine("postgresql+asyncpg://", async_creator=partial(asyncpg.connect, url))
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()
    plain = await asyncpg.connect(url)
    try:
        await plain.execute((DATA / "stored_v0002.sql").read_text())
    finally:
        await plain.close()


async def store_in_redis(redis: Any, words: dict[str, str]) -> None:
    """Carry out the commands of the file.

    :param words: what stands for the placeholders in the file.
    """

    def part(raw: Any) -> Any:
        if isinstance(raw, dict):
            return base64.b64decode(raw["base64"])
        if isinstance(raw, str):
            for word, text in words.items():
                raw = raw.replace(word, text)
        return raw

    for stored in json.loads((DATA / "stored_v0002.json").read_text()):
        await redis.execute_command(*map(part, stored))
    for batch in BATCHES:
        for key in BatchKeys(words["<prefix>"], batch).former:
            await redis.pexpire(key, TTL_MS)


async def identities(redis_url: str, database_url: str) -> dict[str, str]:
    """Those of the test's servers: a stamp that names others would not count for that reason alone."""
    nodes = redis_nodes(load_settings(redis_url=redis_url, database_url=database_url))
    connection = await asyncpg.connect(database_url)
    try:
        async with nodes.at("any").session() as session:
            return {"<redis>": session.peer.identity, "<archive>": str(await schema.identity(connection))}
    finally:
        await connection.close()
        await nodes.aclose()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def prefix(unique_name: Callable[[str], str]) -> str:
    return f"{unique_name('former')}:"


async def entry_ids(database_url: str, batch: str) -> list[str]:
    """The ids of the entries in a batch's history, in order, as their numbers."""
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(
            "SELECT entry_id FROM history JOIN batches USING (batch_key) WHERE batch_id = $1 ORDER BY entry_id", batch
        )
    finally:
        await connection.close()
    return [str(row[0]).lstrip("0-") for row in rows]


async def test_a_service_starts_on_the_data_of_the_build_before(
    database_url: str, redis_url: str, module_kafka: str, redis: Any, prefix: str
) -> None:
    await store_in_postgresql(database_url)
    words = {"<prefix>": prefix, **await identities(redis_url, database_url)}
    await store_in_redis(redis, words)
    upgraded = await run_bcs("db", "upgrade", "--json", BCS_DATABASE_URL=database_url)
    assert upgraded.json == {"from": "0002", "to": "0006"}
    async with (
        Platform(module_kafka) as platform,
        running_service(
            redis_url=redis_url,
            kafka_bootstrap_servers=module_kafka,
            database_url=database_url,
            redis_key_prefix=prefix,
            archive_retention_days=100_000,
            outbox_takeover_seconds=0.2,
        ) as service,
        Orchestrator(service.base) as orchestrator,
    ):
        # Its own pending entry, those that nobody has read, and the announcement.
        former = f"{prefix}{{outbox}}:record"
        await wait_until(lambda: _is_empty(redis, former))
        await wait_until(lambda: _is_empty(redis, f"{prefix}{{outbox}}:explanations"))
        assert (await redis.xpending(former, "archivers"))["pending"] == 0
        assert await entry_ids(database_url, QUEUED) == ["b", "c", "d", "e", "f"]
        announced = await wait_until(lambda: platform.messages(topics.PHASE_SKIPPED, QUEUED))
        [skipped] = values(announced)
        assert (skipped["data"]["phase_name"], skipped["correlation_id"]) == ("spellcheck", CORRELATION_ID)

        assert await orchestrator.to_run(COMPLETE) == ["ai_feedback"]
        assert await orchestrator.to_run(QUEUED) == ["ai_feedback"]
        assert await orchestrator.to_run(STAMPED_TOO_EARLY) == ["spellcheck", "ai_feedback"], (
            "the former stamp does not count"
        )
        for batch in BATCHES:
            keys = BatchKeys(prefix, batch)
            assert not await redis.exists(*keys.former), "it was taken over"
            assert await redis.hget(keys.facts, "complete") == f"{words['<redis>']}/{words['<archive>']}".encode()

        shown = (await orchestrator.get(f"/internal/v1/batches/{COMPLETE}")).json
        [nlp] = [phase for phase in shown["phases"] if phase["phase"] == "nlp"]
        assert nlp["report"] == {"outcome": "failed", "at": "2026-05-28T20:26:40.000004Z"}
        history = (await orchestrator.get(f"/internal/v1/batches/{QUEUED}/history")).json["entries"]
        kinds = [(entry["kind"], entry.get("requested_by") or entry.get("reported_by")) for entry in history]
        assert kinds.count(("resolution", "bos at 127.0.0.1")) == 1
        assert kinds.count(("facts", "bos at 127.0.0.1")) == 1
        [reasons] = [entry["decisions"] for entry in history if entry.get("requested_by") == "bos at 127.0.0.1"]
        assert reasons[0]["reason_text"] == "all 2 essays have completed it"

        # A replica of the build before still runs.
        await redis.xadd(former, _one_more(COMPLETE))
        await wait_until(lambda: _is_empty(redis, former))
        assert "abc" in await entry_ids(database_url, COMPLETE)
        assert not await redis.exists(f"{former}:parked", f"{prefix}{{outbox}}:parked")
    async with archive_in(database_url) as archive:
        state = await archive.state(QUEUED)
    assert state.reports == {"nlp": Mark(Outcome.FAILED, AT_US + 3)}
    assert state.essay_marks["spellcheck"].keys() == {"e1", "e2"}


def _one_more(batch: str) -> dict[str, str]:
    """One more entry as the build before writes it."""
    [stored, *_] = [
        line for line in json.loads((DATA / "stored_v0002.json").read_text()) if line[1].endswith("{outbox}:record")
    ]
    entry = json.loads(stored[4])
    entry[1], entry[2] = "00000000-0000-0000-0000-000000000abc", batch
    return {"entry": json.dumps(entry)}


async def _is_empty(redis: Any, stream: str) -> bool:
    return bool(await redis.xlen(stream) == 0)


@asynccontextmanager
async def stores(redis_url: str, database_url: str, prefix: str) -> AsyncIterator[Persistence]:
    """The stores of this build, without a service that drains the queues."""
    settings = load_settings(
        redis_url=redis_url, database_url=database_url, redis_key_prefix=prefix, database_deadline_seconds=2.0
    )
    opened = open_persistence(settings, law=load_pipelines(None).law(require_registration=False))
    try:
        yield opened
    finally:
        await opened.aclose()


async def test_what_waits_in_the_former_queue_counts_before_a_batch_is_stamped(
    database_url: str, redis_url: str, redis: Any, prefix: str
) -> None:
    await store_in_postgresql(database_url)
    words = await identities(redis_url, database_url)
    await store_in_redis(redis, {"<prefix>": prefix, **words})
    async with stores(redis_url, database_url, prefix) as opened:
        assert opened.archive
        await opened.archive.postgres.probe(10)
        assert not (await opened.store.summary(STAMPED_TOO_EARLY)).complete("spellcheck")
        assert await redis.hget(BatchKeys(prefix, STAMPED_TOO_EARLY).facts, "complete") == words["<redis>"].encode()
        away = StoreUnavailable("redis", "away")
        assert not opened.archive.can_answer_for_redis(away)
        queue = opened.archive.backlog
        await queue.ack([*await queue.lease(9), *await queue.recover(0, 9)])
        assert await queue.waiting(STAMPED_TOO_EARLY) == 0
        assert await queue.backlog() == 0
        assert not opened.archive.can_answer_for_redis(away), "a replica of the build before may add more"


@pytest.mark.parametrize("another", [False, True])
async def test_a_former_stamp_of_another_redis_gets_no_answer_without_postgresql(
    another: bool, redis_url: str, redis: Any, prefix: str
) -> None:
    async with stores(redis_url, f"postgresql://{NOWHERE}/none", prefix) as opened:
        assert opened.nodes
        async with opened.nodes.at("any").session() as session:
            identity = session.peer.identity
        words = {"<prefix>": prefix, "<redis>": "another" if another else identity, "<archive>": "1.00000001"}
        await store_in_redis(redis, words)
        for _ in range(2):  # before and after it is taken over
            if another:
                with pytest.raises(StoreUnavailable, match="Redis has changed"):
                    await opened.store.summary(COMPLETE)
            else:
                assert (await opened.store.summary(COMPLETE)).complete("spellcheck")
        assert await redis.exists(*BatchKeys(prefix, COMPLETE).former) == (2 if another else 0)
