"""`bcs db rebuild`: the archive is rebuilt from Kafka while the service runs."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import asyncpg
import pytest
from redis.asyncio import Redis

from bcs.devtools.servers.embedded import EmbeddedServer, free_port
from bcs.domain.facts import Fact
from bcs.domain.history import FactsRecorded, Position
from bcs.domain.pipelines import PLATFORM_PHASES
from bcs.domain.state import BatchState, delta_of
from bcs.errors import UndecodableMessage
from bcs.storage.postgres.archive import PostgresArchive
from bcs.wire import topics
from bcs.wire.decoding import EventDecoder
from tests.support.commands import bcs, bcs_at_terminal, settings_of
from tests.support.events import Event, cj_completed, phase_outcome, registered, spellchecked
from tests.support.kafka import Platform
from tests.support.service import BcsProcess, Orchestrator, RunningService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

ESSAYS = [f"essay-{number}" for number in range(12)]


@pytest.fixture(scope="module")
def service_settings(own_valkey: EmbeddedServer, module_database_url: str) -> dict[str, object]:
    return {
        "redis_url": f"redis://{own_valkey.address}",
        "database_url": module_database_url,
    }


@pytest.fixture
def settings(service: RunningService, module_database_url: str) -> dict[str, object]:
    """The environment in which a command finds all that the service has."""
    return {**settings_of(service), "BCS_DATABASE_URL": module_database_url}


@pytest.fixture
async def database(module_database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(module_database_url)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
def archive(service: RunningService) -> PostgresArchive:
    archive = service.service.persistence.archive
    assert archive is not None
    return archive.postgres


def story(batch_id: str, *, lost: int = 0) -> list[Event]:
    """All kinds of events of a batch, with copies, undecodable messages and events without effect."""
    twin = spellchecked(batch_id, ESSAYS[0])
    return [
        registered(batch_id, ESSAYS[: len(ESSAYS) - lost], len(ESSAYS)),
        twin,
        *(spellchecked(batch_id, essay) for essay in ESSAYS[1:-1]),
        spellchecked(batch_id, ESSAYS[-1], "failed"),
        twin,
        spellchecked(batch_id, ESSAYS[1], "in_progress"),
        phase_outcome(batch_id, "nlp", ESSAYS),
        phase_outcome(batch_id, "ai_feedback", ESSAYS[:3], ESSAYS[3:5]),
        phase_outcome(batch_id, "no_such_phase", ESSAYS),
        cj_completed(batch_id, ESSAYS[:4], [None]),
        Event(topics.CJ_COMPLETED, batch_id.encode(), b"poison \xff"),
    ]


async def known_to_kafka(platform: Platform) -> dict[str, dict[Position, tuple[Fact, ...]]]:
    """For each batch the messages that state facts, read and decoded anew."""
    decoder = EventDecoder(PLATFORM_PHASES)
    batches: dict[str, dict[Position, tuple[Fact, ...]]] = {}
    for topic in topics.CONSUMED:
        for message in await platform.messages(topic):
            try:
                event = decoder.decode(topic, message.value, message.timestamp)
            except UndecodableMessage:
                continue
            if event.facts:
                batches.setdefault(event.batch_id, {})[Position(topic, message.partition, message.offset)] = event.facts
    return batches


async def history(service: RunningService, archive: PostgresArchive, batch_id: str) -> list[FactsRecorded]:
    """The archive's entries of events with facts, oldest first."""

    async def read() -> list[FactsRecorded]:
        kept = await archive.history(batch_id, limit=1000)
        return [each.entry for each in reversed(kept) if isinstance(each.entry, FactsRecorded) and each.entry.facts]

    return await anyio.to_thread.run_sync(service.run, read)


async def states(service: RunningService, archive: PostgresArchive, batch_id: str) -> list[BatchState]:
    """The states of a batch in Redis and in the archive."""

    async def read() -> list[BatchState]:
        return [await service.service.store.state(batch_id), await archive.state(batch_id)]

    return await anyio.to_thread.run_sync(service.run, read)


async def assert_same_everywhere(
    service: RunningService, archive: PostgresArchive, known: Mapping[str, Mapping[Position, tuple[Fact, ...]]]
) -> None:
    for batch_id, messages in known.items():
        expected = delta_of(fact for facts in messages.values() for fact in facts)
        assert await states(service, archive, batch_id) == [expected, expected]
        entries = await history(service, archive, batch_id)
        assert sorted(str(entry.position) for entry in entries) == sorted(map(str, messages))
        assert all(entry.position and entry.facts == messages[entry.position] for entry in entries)


@asynccontextmanager
async def nobody_is_refused(orchestrator: Orchestrator, batch_id: str) -> AsyncIterator[None]:
    """Someone asks all the time, and is always answered."""
    asked = 0

    async def ask() -> None:
        nonlocal asked
        while True:
            assert (await orchestrator.define(batch_id)).status == 200
            asked += 1

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        yield
        group.cancel_scope.cancel()
    assert asked > 0


async def test_an_emptied_record_gets_all_of_it_back_while_the_service_runs(
    service: RunningService,
    settings: Mapping[str, object],
    platform: Platform,
    orchestrator: Orchestrator,
    archive: PostgresArchive,
    database: asyncpg.Connection,
    unique_name: Callable[[str], str],
) -> None:
    batches = [unique_name("batch") for _ in range(6)]
    for number, batch_id in enumerate(batches):
        await platform.send(*story(batch_id, lost=number % 2))
    await wait_until(lambda: platform.caught_up(service.group))
    before = {batch_id: await history(service, archive, batch_id) for batch_id in batches}
    await assert_same_everywhere(service, archive, await known_to_kafka(platform))

    await database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    async with Redis.from_url(service.service.settings.redis_url.get_secret_value()) as redis:
        await redis.flushall()
    # Until the service has found out: what it can't look up it refuses to answer.
    await wait_until(lambda: database.fetchval("SELECT to_regclass('announcements')"))
    await wait_until(lambda: service.call(lambda: archive.reachable))
    async with nobody_is_refused(orchestrator, batches[0]), anyio.create_task_group() as group:
        enough = anyio.Event()

        async def more() -> None:
            while not enough.is_set():
                await platform.send(spellchecked(batches[1], ESSAYS[-1]), *story(batches[2]))
                await wait_until(lambda: platform.caught_up(service.group))

        group.start_soon(more)
        ran = await bcs("db", "rebuild", "--json", **settings)
        enough.set()
    assert (ran.exit_code, ran.error) == (0, "")
    told = ran.json
    assert told["complete"] is True
    assert told["batches"] >= len(batches)
    assert told["undecodable"] >= 2 * len(batches)
    assert told["without_facts"] >= len(batches)
    assert told["messages"] == sum(each["end"] - each["first"] for each in told["partitions"])
    await wait_until(lambda: platform.caught_up(service.group))
    known = await known_to_kafka(platform)
    await assert_same_everywhere(service, archive, known)
    for batch_id in batches:
        rebuilt = {entry.entry_id: entry for entry in await history(service, archive, batch_id)}
        assert len(rebuilt) == len(known[batch_id]), "each message is kept once"
        # When it became known is not known any more; everything else is.
        assert all(replace(entry, at_us=0) == replace(rebuilt[entry.entry_id], at_us=0) for entry in before[batch_id])
    times = [entry.at_us for entry in await history(service, archive, batches[3])]
    assert times == sorted(times), "as it happened, and not topic by topic"

    async def numbers() -> list[asyncpg.Record]:
        kept: list[asyncpg.Record] = await database.fetch("SELECT number, entry_id FROM history ORDER BY number")
        return kept

    first = await numbers()
    again = await bcs_at_terminal(80, "db", "rebuild", **settings)
    assert again.exit_code == 0
    assert max(map(len, again.uncoloured.splitlines())) <= 80
    assert " messages read in " in again.uncoloured
    assert [row for row in await numbers() if row in first] == first
    await assert_same_everywhere(service, archive, known)


async def test_a_signal_ends_it_and_it_says_how_far_it_came(
    service: RunningService,
    settings: Mapping[str, object],
    platform: Platform,
    database: asyncpg.Connection,
    batch: str,
    tmp_path: Path,
) -> None:
    await platform.send(*story(batch))
    await wait_until(lambda: platform.caught_up(service.group))
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'batches'::regclass"
    with BcsProcess(tmp_path, "db", "rebuild", **settings) as process:
        async with database.transaction():
            await database.execute("LOCK TABLE batches IN EXCLUSIVE MODE")
            await wait_until(lambda: database.fetchval(waiting))
            process.signal(signal.SIGTERM)
        assert await process.ended() == 128 + signal.SIGTERM, process.log.read_text()
    assert process.log.read_text() == ""
    said = process.output.read_text()
    assert " messages read in " in said
    assert "Run it again" in said


@pytest.mark.parametrize(
    ("variable", "url", "said"),
    [
        ("BCS_REDIS_URL", "redis://{}", "redis is out of reach"),
        ("BCS_KAFKA_BOOTSTRAP_SERVERS", "{}", "kafka is out of reach"),
        ("BCS_DATABASE_URL", "postgresql://bob:a-secret@{}/bcs", "postgresql is out of reach"),
    ],
)
async def test_what_is_away_is_told_in_one_line_before_anything_is_read(
    settings: Mapping[str, object], variable: str, url: str, said: str
) -> None:
    ran = await bcs("db", "rebuild", **{**settings, variable: url.format(f"127.0.0.1:{free_port()}")})
    assert (ran.exit_code, ran.output) == (1, "")
    [line] = ran.error.splitlines()
    assert line.startswith(f"bcs: {said}")
    assert all(text in line for text in ("127.0.0.1:", variable, "onnection refused"))
    assert "a-secret" not in line
