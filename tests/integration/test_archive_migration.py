"""A record that the release before wrote, under the law of this one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from pydantic_core import to_json
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

import bcs.storage.postgres.migrations
from bcs.domain.facts import (
    EssayPhaseEnded,
    EssaysRegistered,
    Fact,
    Outcome,
    PhaseOutcome,
    PhaseReported,
    repeat_key_of,
)
from bcs.domain.history import FactsRecorded
from bcs.domain.law import CompleteWhen, CompletionLaw
from bcs.domain.progress import summarize
from bcs.domain.state import BatchState, Mark, delta_of
from bcs.errors import StoreUnavailable
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.postgres.gateway import ArchiveGateway
from bcs.storage.redis.archive_queue import FACTS, waiting_key
from bcs.storage.redis.gateway import RedisGateway
from tests.support.databases import archive_in, unprobed_archive
from tests.support.history_entries import consumed
from tests.support.laws import LAW
from tests.support.redis_queues import archive_queue

pytestmark = pytest.mark.anyio

DATA = Path(__file__).parents[1] / "data" / "record_v0001.sql"
FIRST_VERSION = Path(bcs.storage.postgres.migrations.__file__).parent / "versions" / "v0001_record.sql"
# What tests/data/make_record_v0001.py says.
AT_US = 1_764_000_000_000_000
CORRELATION_ID = "550e8400-e29b-41d4-a716-446655440000"
SUCCEEDED, WITH_FAILURES, CRITICALLY = "completed_successfully", "completed_with_failures", "failed_critically"
ODD = "odd \\0 \0 id"
C, F = Outcome.COMPLETED, Outcome.FAILED


def at(second: int) -> int:
    return AT_US + second * 1_000_000


def registered(*essays: str) -> Fact:
    return EssaysRegistered(essays, len(essays), AT_US)


def spellchecked(essay: str, outcome: Outcome = C, second: int = 1) -> Fact:
    return EssayPhaseEnded("spellcheck", essay, outcome, at(second))


def els(
    second: int,
    status: str,
    completed: tuple[str, ...] = (),
    failed: tuple[str, ...] = (),
    phase: str = "nlp",
    correlation_id: str = CORRELATION_ID,
) -> Fact:
    key = repeat_key_of(phase, correlation_id, status, completed, failed)
    nameless = status == SUCCEEDED and not completed and not failed
    return PhaseOutcome(
        phase, status, completed=completed, failed=failed, speaks_for_all=nameless, at_us=at(second), repeat_key=key
    )


def cj(second: int, status: str, completed: tuple[str, ...], failed: tuple[str, ...] = ()) -> Fact:
    return PhaseOutcome(
        "cj_assessment", status, completed=completed, failed=failed, speaks_for_all=False, at_us=at(second)
    )


HISTORIES: dict[str, list[Fact]] = {
    "dropped by cj": [
        registered("e0", "e1", "e2"),
        *map(spellchecked, ("e0", "e1", "e2")),
        cj(2, SUCCEEDED, ("e0", "e1")),
    ],
    "nameless": [registered("e0", "e1"), *map(spellchecked, ("e0", "e1")), els(2, SUCCEEDED)],
    "nameless, one not due": [
        registered("e0", "e1"),
        spellchecked("e0"),
        spellchecked("e1", F),
        els(2, SUCCEEDED),
    ],
    "left out by els": [registered("e0", "e1", "e2"), els(2, SUCCEEDED, ("e0", "e1"))],
    "reported": [
        registered("e0", "e1"),
        PhaseReported("ai_feedback", C, at(3)),
        PhaseReported("nlp", C, at(3)),
        PhaseReported("nlp", F, at(4)),
    ],
    "failures": [
        registered("e0", "e1", "e2"),
        spellchecked("e0", F, 2),
        spellchecked("e0", C, 1),
        els(3, WITH_FAILURES, ("e0",), ("e1",)),
        cj(4, WITH_FAILURES, ("e0",), ("e1", "e2")),
        cj(5, SUCCEEDED, ("e1",)),
        els(6, CRITICALLY, phase="ai_feedback"),
        els(6, CRITICALLY, failed=("e2",), phase="spellcheck"),
        els(6, SUCCEEDED, phase="ai_feedback", correlation_id="b\\0\0b"),
    ],
    ODD: [
        registered("\0", "\\0", "ä 😀"),
        spellchecked("\0"),
        spellchecked("\\0", F),
        els(2, WITH_FAILURES, ("\0", "ä 😀"), ("\\0",), correlation_id="c\\0\0c"),
        cj(3, SUCCEEDED, ("\0", "\\0", "ä 😀")),
    ],
    "copies": [registered("e0", "e1"), els(2, SUCCEEDED, ("e0", "e1")), PhaseReported("nlp", F, at(3))],
}
# Of what came from Redis, the marks of essays are left, and not those of the batch.
ADOPTED = BatchState(
    essay_marks={"spellcheck": {"e0": Mark(C, at(1)), "\0": Mark(F, AT_US)}}, first_seen_us={"e0": AT_US, "\0": at(1)}
)
HALF_ADOPTED = BatchState(
    essay_marks={"spellcheck": {"e0": Mark(F, at(3)), "e1": Mark(C, at(2))}, "nlp": {"e1": Mark(C, at(1))}},
    first_seen_us={"e0": AT_US - 5, "e1": AT_US},
)
STATES = {
    **{batch: delta_of(facts) for batch, facts in HISTORIES.items()},
    "adopted": ADOPTED,
    "half adopted": HALF_ADOPTED,
}
for known in (ADOPTED, HALF_ADOPTED):
    known.expected = delta_of([registered("e0", "e1")]).expected


async def load(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(FIRST_VERSION.read_text())
        await connection.execute(
            "CREATE TABLE bcs_schema_version (version_num varchar(32) PRIMARY KEY);"
            "INSERT INTO bcs_schema_version VALUES ('0001')"
        )
        await connection.execute(DATA.read_text())
    finally:
        await connection.close()


@pytest.fixture
async def migrated(database_url: str) -> AsyncIterator[PostgresArchive]:
    """The previous release's archive, after the upgrade at the start of the service."""
    await load(database_url)
    archive = unprobed_archive(database_url)
    await archive.probe(10)
    yield archive
    await archive.aclose()


async def test_an_upgrade_converts_each_state_to_the_new_law(migrated: PostgresArchive) -> None:
    for batch, state in STATES.items():
        assert await migrated.state(batch) == state, batch


@pytest.mark.parametrize(("entries", "characters"), [(1, 10**6), (500, 1), (7, 900)])
async def test_an_upgrade_reads_the_history_in_parts_of_any_size(
    database_url: str, monkeypatch: pytest.MonkeyPatch, entries: int, characters: int
) -> None:
    script = import_module("bcs.storage.postgres.migrations.versions.v0002_completion_law")
    monkeypatch.setattr(script, "_ENTRIES", entries)
    monkeypatch.setattr(script, "_CHARACTERS", characters)
    await load(database_url)

    def upgrade(connection: Connection) -> None:
        with Operations.context(MigrationContext.configure(connection)):
            script.upgrade()

    engine = create_async_engine("postgresql+asyncpg://", async_creator=partial(asyncpg.connect, database_url))
    async with engine.begin() as connection:
        await connection.run_sync(upgrade)
        await connection.exec_driver_sql("UPDATE bcs_schema_version SET version_num = '0002'")
    await engine.dispose()
    async with archive_in(database_url) as archive:
        for batch, state in STATES.items():
            assert await archive.state(batch) == state, batch


async def test_essays_left_out_of_a_list_no_longer_count_as_complete(migrated: PostgresArchive) -> None:
    async def complete(batch: str, law: CompletionLaw = LAW) -> list[str]:
        summary = summarize(await migrated.state(batch), law, 0)
        return [phase for phase in ("spellcheck", "nlp", "cj_assessment", "ai_feedback") if summary.complete(phase)]

    assert await complete("dropped by cj") == ["spellcheck"]
    assert summarize(await migrated.state("dropped by cj"), LAW, 0).progress["cj_assessment"].left_out == 1
    settled = CompletionLaw(
        {"spellcheck": (), "cj_assessment": ()}, {"cj_assessment": CompleteWhen.EVERY_ESSAY_SETTLED}
    )
    assert await complete("dropped by cj", settled) == ["spellcheck", "cj_assessment"]
    assert await complete("nameless") == ["spellcheck", "nlp"]
    assert await complete("nameless, one not due") == []
    assert await complete("left out by els") == []
    assert await complete("reported") == ["ai_feedback"]
    assert await complete("failures") == []
    assert await complete(ODD) == ["cj_assessment"]
    # The second copy is stamped anew, after the report of failure.
    assert await complete("copies") == []
    # What was true of these before there was a record, only the marks of the batch said.
    assert await complete("adopted") == []
    assert await complete("half adopted") == []


async def test_the_history_matches_the_states_after_an_upgrade(migrated: PostgresArchive) -> None:
    for batch in HISTORIES:
        entries = [kept.entry for kept in await migrated.history(batch, limit=100)]
        told = [fact for entry in entries if isinstance(entry, FactsRecorded) for fact in entry.facts]
        assert delta_of(told) == STATES[batch], batch
    kinds = {type(kept.entry).__name__ for kept in await migrated.history("reported", limit=100)}
    assert kinds == {"FactsRecorded", "PipelineResolved"}


async def test_the_archive_accepts_facts_after_an_upgrade(migrated: PostgresArchive) -> None:
    facts = (spellchecked("e2", F, 9), els(1, SUCCEEDED, ("e0", "e1")), cj(9, SUCCEEDED, ("e2",)))
    for batch in STATES:
        await migrated.write([consumed(batch, *facts)])
        expected = STATES[batch].copy()
        expected.merge(delta_of(facts))
        assert await migrated.state(batch) == expected


@pytest.mark.parametrize("table", ["batch_marks", "reports"])
async def test_a_statement_of_the_previous_release_fails_like_an_outage(
    table: str, migrated: PostgresArchive, database_url: str
) -> None:
    assert migrated.reachable
    gateway = ArchiveGateway(database_url, max_connections=1, deadline_seconds=4)
    await gateway.probe(4)

    async def write(connection: Any) -> None:
        row = "(batch_key, phase, outcome, at_us) VALUES (1, 'nlp', 'c', 1)"
        await connection.execute(f"INSERT INTO {table} {row}")

    with pytest.raises(StoreUnavailable):
        await gateway.run(write)
    assert not gateway.reachable
    await gateway.aclose()


async def test_queue_entries_of_the_previous_release_are_written(
    archive: PostgresArchive, gateway: RedisGateway, redis_key_prefix: str, batch: str
) -> None:
    written = [["essay", "nlp", "e0", "c", at(2)], ["essay", "nlp", "e1", "c", at(2)], ["batch", "nlp", "c", at(2)]]
    detail = to_json({"event_type": "ELSBatchPhaseOutcomeV1", "facts": written}).decode()
    entry = [False, str(UUID(int=1)), batch, at(9), CORRELATION_ID, None, ["topic", 0, 1], detail]
    await gateway.call(("XADD", waiting_key(redis_key_prefix, FACTS, 0), "*", "entry", to_json(entry)))
    backlog = archive_queue(gateway, redis_key_prefix)
    [leased] = await backlog.lease(9)
    await archive.write([leased.message])
    assert await archive.state(batch) == delta_of([els(2, SUCCEEDED, ("e0", "e1"))])


async def test_an_upgrade_runs_once_and_leaves_no_temporary_table(migrated: PostgresArchive, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        names = await connection.fetch("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
        assert not [row[0] for row in names if "0002" in row[0] or row[0].startswith("batch_marks")]
        # An outcome's mark has the outcome's time, and says none of its own.
        kept = await connection.fetchval("SELECT count(*) FROM marks WHERE outcome_key <> '' AND at_us <> 0")
        assert kept == 0
    finally:
        await connection.close()
    again = unprobed_archive(database_url)
    await again.probe(4)
    await again.aclose()
