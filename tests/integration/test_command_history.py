"""`bcs batches history`, and `show` where Redis has forgotten, from a record in a real PostgreSQL."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from bcs.devtools.servers.embedded import free_port
from bcs.domain.facts import EssaysRegistered, Outcome, PhaseInvalidated, PhaseReported
from bcs.domain.history import INVALIDATED, PhaseDecided
from bcs.domain.state import delta_of
from bcs.storage.postgres.archive import PostgresArchive
from bcs.storage.redis.batch_codec import BatchKeys
from bcs.storage.redis.gateway import RedisGateway
from bcs.storage.redis.server import identity_of
from tests.integration.stores import MakeStore
from tests.support.commands import bcs, bcs_at_terminal, installed_bcs
from tests.support.history_entries import AT, AT_US, CORRELATION_ID, answered, consumed, reported, spellchecked

pytestmark = pytest.mark.anyio

PATIENT: dict[str, object] = {"BCS_DATABASE_DEADLINE_SECONDS": 4}  # the machine may have much to do


@pytest.fixture
def environment(module_database_url: str) -> dict[str, object]:
    """The variables with which the commands find the archive."""
    return {**PATIENT, "BCS_DATABASE_URL": module_database_url}


async def test_who_said_what_and_what_was_answered_is_told_newest_first(
    archive: PostgresArchive, environment: dict[str, object], batch: str
) -> None:
    essays = tuple(f"e{number}" for number in range(30))
    await archive.write([consumed(batch, EssaysRegistered(essays, 30, AT_US), event_id=None)])
    await archive.write([consumed(batch, spellchecked("e1"), event_id=None)])
    both = [spellchecked(essay) for essay in essays[:29]] + [spellchecked("e29", Outcome.FAILED)]
    await archive.write([consumed(batch, *both)])
    await archive.write([reported(batch, PhaseReported("nlp", Outcome.COMPLETED, AT_US), by="\x1b[31mbos")])
    await archive.write([answered(batch)])
    await archive.write([answered(batch, [PhaseDecided("nlp", True, "nothing_known", "")])])
    await archive.write([answered(batch, [PhaseDecided("nlp", False, "already_completed", "")])])
    ran = await bcs("batches", "history", batch, **environment)
    assert (ran.exit_code, ran.error) == (0, "")
    heading, *entries = [entry.splitlines() for entry in ran.output.split("\n\n")]
    assert heading == [f"Batch {batch}: 7 entries, newest first"]
    numbers = [int(entry[0].removeprefix(f"{AT}  number ")) for entry in entries]
    assert numbers == sorted(numbers, reverse=True)
    asked, correlated = "  asked by 127.0.0.1; read from redis, version 3", f"  correlation id {CORRELATION_ID}"
    named = "  pipeline definitions 7 0123456789abcdef"
    never = "; the batch was not registered"
    event, source = "  SpellcheckPhaseCompletedV1", "  from huleedu.batch.spellcheck.phase.completed.v1/2/15"
    assert [entry[1:] for entry in entries] == [
        [f"  asked for ai_feedback: runs nothing; pruned nlp (already completed){never}", asked, named, correlated],
        [f"  asked for ai_feedback: runs nlp{never}", asked, named, correlated],
        [
            f"  asked for ai_feedback: runs ai_feedback; pruned spellcheck (already completed){never}",
            asked,
            named,
            correlated,
        ],
        ["  nlp reported completed for the whole batch", r"  PhaseReported over HTTP, by \x1b[31mbos", correlated],
        [
            "  spellcheck completed for 29 essays",
            "  spellcheck failed for essay e29",
            f"{event}, event id event-7",
            source,
            correlated,
        ],
        ["  spellcheck completed for essay e1", event, source, correlated],
        ["  30 essays registered, 30 expected", event, source, correlated],
    ]
    at_terminal = await bcs_at_terminal(80, "batches", "history", batch, "--limit", "6", **environment)
    assert "\x1b[1m" in at_terminal.output
    assert "\x1b[31m" not in at_terminal.output
    assert max(map(len, at_terminal.uncoloured.splitlines())) <= 80
    assert at_terminal.uncoloured.count(CORRELATION_ID) == 6
    assert at_terminal.uncoloured.splitlines()[-1] == f"There are older entries: --before {numbers[5]}"


async def test_an_order_to_take_completions_back_is_shown_with_who_and_why(
    archive: PostgresArchive, environment: dict[str, object], batch: str
) -> None:
    facts = [PhaseInvalidated("nlp", None, AT_US), *(PhaseInvalidated("spellcheck", essay, AT_US) for essay in "ab")]
    order = reported(batch, *facts, by="operator (curl at 127.0.0.1)")
    await archive.write([replace(order, event_type=INVALIDATED, reason="a wrong dictionary\x1b[31m")])
    ran = await bcs("batches", "history", batch, **environment)
    assert ran.output.split("\n\n")[1].splitlines()[1:] == [
        "  nlp invalidated for all essays",
        "  spellcheck invalidated for 2 essays",
        "  PhasesInvalidated over HTTP, by operator (curl at 127.0.0.1)",
        r"  reason: a wrong dictionary\x1b[31m",
        f"  correlation id {CORRELATION_ID}",
    ]
    [entry] = (await bcs("batches", "history", batch, "--json", **environment)).json["entries"]
    assert (entry["reason"], entry["reported_by"]) == ("a wrong dictionary\x1b[31m", "operator (curl at 127.0.0.1)")


async def test_pages_follow_each_other(archive: PostgresArchive, environment: dict[str, object], batch: str) -> None:
    await archive.write([consumed(batch) for _ in range(3)])
    first = await bcs("batches", "history", batch, "--limit", "2", "--json", **environment)
    assert (first.exit_code, first.json["batch_id"]) == (0, batch)
    newest, middle = first.json["entries"]
    assert first.json["next"] == middle["number"] < newest["number"]
    rest = await bcs("batches", "history", batch, "--before", str(middle["number"]), "--json", **environment)
    [oldest] = rest.json["entries"]
    assert rest.json["next"] is None
    assert oldest["source"] == {"topic": "huleedu.batch.spellcheck.phase.completed.v1", "partition": 2, "offset": 15}
    nothing = await bcs("batches", "history", batch, "--before", str(oldest["number"]), **environment)
    assert (nothing.exit_code, nothing.output) == (0, f"Batch {batch}: no such entry\n")


async def test_an_id_may_be_anything(archive: PostgresArchive, environment: dict[str, object]) -> None:
    strange = "a/b\\c%25 {d} [red]🦉\n\\0"
    await archive.write([consumed(strange)])
    assert (await bcs("batches", "history", strange, "--json", **environment)).json["batch_id"] == strange


async def test_what_redis_has_forgotten_is_shown_from_the_record(
    archive: PostgresArchive, environment: dict[str, object], redis_url: str, redis_key_prefix: str, batch: str
) -> None:
    await archive.add_states({batch: delta_of([EssaysRegistered(("e1",), 2, AT_US), spellchecked("e1")])})
    redis = {"BCS_REDIS_URL": redis_url, "BCS_REDIS_KEY_PREFIX": redis_key_prefix}
    ran = await bcs("batches", "show", batch, **redis, **environment)
    assert ran.output.splitlines()[0] == (f"Batch {batch}: 1 essay known, 2 expected, from the archive (PostgreSQL)")
    document = (await bcs("batches", "show", batch, "--json", **redis, **environment)).json
    assert (document["source"], document["version"]) == ("postgresql", None)
    assert document["known_essays"] == [{"essay_id": "e1", "first_seen": AT}]
    unknown = await bcs("batches", "show", f"{batch}-2", **redis, **environment)
    assert (unknown.exit_code, unknown.output) == (1, "")
    assert len(unknown.error.splitlines()) == 1


@pytest.mark.parametrize("written_by_another", [True, False])
async def test_a_copy_of_another_redis_is_not_shown_without_the_archive(
    gateway: RedisGateway,
    in_redis: MakeStore,
    redis_url: str,
    redis_key_prefix: str,
    batch: str,
    written_by_another: bool,
) -> None:
    info = b"".join(await gateway.call(("INFO", "server"), ("INFO", "replication"))).decode()
    identity = identity_of(dict(re.findall(r"(\w+):(\w+)", info)))
    redis = "another" if written_by_another else identity
    await in_redis(gateway).commit(batch, delta_of([EssaysRegistered(("e1",), 1, AT_US), spellchecked("e1")]))
    keys = BatchKeys(redis_key_prefix, batch)
    await gateway.call(("HSET", keys.facts, "complete", f"{redis}/archive"))
    before = await gateway.call(("HGETALL", keys.facts), ("KEYS", f"{keys.stem}*"))
    found = {"BCS_REDIS_URL": redis_url, "BCS_REDIS_KEY_PREFIX": redis_key_prefix}
    away = f"postgresql://127.0.0.1:{free_port()}/db"
    for command in (["batches", "show", batch], ["resolve", batch, "spellcheck", "--offline"]):
        ran = await bcs(*command, **found, BCS_DATABASE_URL=away)
        assert ran.exit_code == (1 if written_by_another else 0), ran.error
        assert ("Redis has changed" in ran.error) == written_by_another
    assert await gateway.call(("HGETALL", keys.facts), ("KEYS", f"{keys.stem}*")) == before, "commands write nothing"


async def test_commands_do_not_write_to_the_archive_what_only_redis_has(
    archive: PostgresArchive,
    gateway: RedisGateway,
    in_redis: MakeStore,
    environment: dict[str, object],
    redis_url: str,
    redis_key_prefix: str,
    batch: str,
) -> None:
    await in_redis(gateway).commit(batch, delta_of([EssaysRegistered(("e1",), 1, AT_US), spellchecked("e1")]))
    redis = {"BCS_REDIS_URL": redis_url, "BCS_REDIS_KEY_PREFIX": redis_key_prefix}
    assert (await bcs("batches", "show", batch, **redis, **environment)).exit_code == 0
    assert (await archive.state(batch)).empty


async def test_an_unknown_batch_is_said_to_be_unknown(
    archive: PostgresArchive, environment: dict[str, object], batch: str
) -> None:
    ran = await bcs("batches", "history", batch, **environment)
    assert (ran.exit_code, ran.output) == (1, "")
    [line] = ran.error.splitlines()
    assert batch in line


async def test_a_record_without_tables_stays_without(database_url: str, batch: str) -> None:
    ran = await bcs("batches", "history", batch, BCS_DATABASE_URL=database_url, **PATIENT)
    assert (ran.exit_code, ran.output) == (1, "")
    [line] = ran.error.splitlines()
    assert "bcs db upgrade" in line
    connection = await asyncpg.connect(database_url)
    try:
        assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("given", "exit_code", "says"),
    [
        ({}, 2, "BCS_DATABASE_URL is not set"),
        ({"BCS_DATABASE_URL": "mysql://user:secret@host/db"}, 2, "BCS_DATABASE_URL: must begin with postgresql://"),
        ({"BCS_DATABASE_URL": "postgresql://user:secret@127.0.0.1:{free_port}/db"}, 1, "postgresql is out of reach"),
    ],
)
async def test_without_a_record_it_fails_and_says_why(
    batch: str, given: dict[str, str], exit_code: int, says: str
) -> None:
    environment = {name: value.format(free_port=free_port()) for name, value in given.items()}
    ran = await bcs("batches", "history", batch, **environment)
    assert (ran.exit_code, ran.output) == (exit_code, "")
    assert says in ran.error.splitlines()[-1]
    assert "secret" not in ran.error


async def test_without_the_client_it_is_said_what_to_install(tmp_path: Path, batch: str) -> None:
    # As if it were not installed.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['asyncpg'] = None\n")
    ran = await installed_bcs("batches", "history", batch, PYTHONPATH=tmp_path, BCS_DATABASE_URL="postgresql://host/db")
    assert (ran.exit_code, ran.output) == (2, "")
    [line] = ran.error.splitlines()
    assert "pip install 'batch-conductor-service[postgres]'" in line


async def test_a_page_of_more_than_the_service_tells_is_wrong_usage(batch: str) -> None:
    ran = await bcs("batches", "history", batch, "--limit", "501")
    assert (ran.exit_code, ran.output) == (2, "")
    assert "--limit" in ran.error
