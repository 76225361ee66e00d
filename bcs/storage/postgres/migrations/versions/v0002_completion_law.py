"""The registers of the law of completion: outcomes with their lists, reports, invalidations.

The release before kept one mark for the whole batch where it believed that an outcome had left nobody out. These are
dropped, for they are wrong where a list was shorter than the batch; what they came from is read from the history again.

What the history was then is frozen here, the hash of an outcome's repeat key included: the service's own code goes on
changing.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

from alembic import op

from bcs.storage.postgres.migrations import run_sql_beside

revision = "0002"
down_revision = "0001"

# Read at a time: so many entries, and fewer where they are large.
_ENTRIES = 500
_CHARACTERS = 4_000_000

# The order is that in which the release before takes its locks, so that a statement of its own and this one do not wait
# for each other. What waits for the locks finds the tables changed, and fails.
_LOCK = "LOCK TABLE batches, essays, marks, batch_marks, history, announcements IN ACCESS EXCLUSIVE MODE"

# What the history says, unmerged; in the order in which the columns are filled below.
_SCRATCH = (
    """
    CREATE UNLOGGED TABLE bcs_0002_marks (
        batch_key bigint, phase text COLLATE "C", outcome_key text COLLATE "C", essay_id text COLLATE "C",
        outcome text COLLATE "C", at_us bigint, said_at_us bigint
    )
    """,
    """
    CREATE UNLOGGED TABLE bcs_0002_outcomes (
        batch_key bigint, phase text COLLATE "C", outcome_key text COLLATE "C", status text COLLATE "C",
        speaks_for_all boolean, at_us bigint
    )
    """,
    """
    CREATE UNLOGGED TABLE bcs_0002_reports (
        batch_key bigint, phase text COLLATE "C", outcome text COLLATE "C", at_us bigint
    )
    """,
)

_PAGE = """
SELECT batch_key, number, correlation_id, detail FROM (
    SELECT *, sum(characters) OVER (ORDER BY batch_key, number) - characters AS characters_before
    FROM (
        SELECT batch_key, number, correlation_id, detail::text AS detail,
            length(detail::text) + coalesce(length(correlation_id), 0) AS characters
        FROM history
        WHERE (batch_key, number) > ($1::bigint, $2::bigint) AND kind = 'facts'
        ORDER BY batch_key, number LIMIT $3::bigint
    ) AS next
) AS page
WHERE characters_before < $4::bigint
ORDER BY batch_key, number
"""

_ADD_MARKS = """
INSERT INTO bcs_0002_marks
SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[])
"""

_ADD_OUTCOMES = """
INSERT INTO bcs_0002_outcomes
SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::boolean[], $6::bigint[])
"""

_ADD_REPORTS = "INSERT INTO bcs_0002_reports SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[])"

_MERGE = (
    # To join the tables as they are, and not as an empty table would be joined.
    "ANALYZE bcs_0002_marks",
    # A mark that the history does not explain came from Redis, which knew the batch before there was a record.
    """
    DELETE FROM marks USING bcs_0002_marks AS told
    WHERE marks.batch_key = told.batch_key AND marks.phase = told.phase AND marks.essay_id = told.essay_id
        AND marks.outcome = told.outcome AND marks.at_us = told.said_at_us
    """,
    """
    INSERT INTO marks AS known (batch_key, phase, outcome_key, essay_id, outcome, at_us)
    SELECT DISTINCT ON (batch_key, phase, outcome_key, essay_id)
        batch_key, phase, outcome_key, essay_id, outcome, at_us
    FROM bcs_0002_marks
    ORDER BY batch_key, phase, outcome_key, essay_id, at_us DESC, outcome DESC
    ON CONFLICT (batch_key, phase, outcome_key, essay_id) DO UPDATE
        SET outcome = excluded.outcome, at_us = excluded.at_us
        WHERE (excluded.at_us, excluded.outcome) > (known.at_us, known.outcome)
    """,
    # The newest where the event has a time of its own, the earliest of the copies of one that has none.
    """
    INSERT INTO outcomes (batch_key, phase, outcome_key, status, speaks_for_all, at_us)
    SELECT DISTINCT ON (batch_key, phase, outcome_key) batch_key, phase, outcome_key, status, speaks_for_all, at_us
    FROM bcs_0002_outcomes
    ORDER BY batch_key, phase, outcome_key, CASE outcome_key WHEN '' THEN -at_us ELSE at_us END,
        speaks_for_all, status DESC
    """,
    """
    INSERT INTO reports (batch_key, phase, outcome, at_us)
    SELECT DISTINCT ON (batch_key, phase) batch_key, phase, outcome, at_us
    FROM bcs_0002_reports
    ORDER BY batch_key, phase, at_us DESC, outcome DESC
    """,
    "DROP TABLE bcs_0002_marks, bcs_0002_outcomes, bcs_0002_reports",
)


def upgrade() -> None:
    """Change the tables, and fill the new ones from the history, a part at a time."""
    execute = op.get_bind().exec_driver_sql
    execute(_LOCK)
    run_sql_beside(__file__)
    for statement in _SCRATCH:
        execute(statement)
    for page in _pages():
        marks: list[tuple[Any, ...]] = []
        outcomes: list[tuple[Any, ...]] = []
        reports: list[tuple[Any, ...]] = []
        for batch_key, _, correlation_id, detail in page:
            for table, *row in _rows(correlation_id, detail):
                {"marks": marks, "outcomes": outcomes, "reports": reports}[table].append((batch_key, *row))
        for statement, rows in ((_ADD_MARKS, marks), (_ADD_OUTCOMES, outcomes), (_ADD_REPORTS, reports)):
            if rows:
                execute(statement, tuple(list(column) for column in zip(*rows, strict=True)))
    for statement in _MERGE:
        execute(statement)


def _pages() -> Iterator[Sequence[Any]]:
    after = (0, 0)
    while True:
        page = op.get_bind().exec_driver_sql(_PAGE, (*after, _ENTRIES, _CHARACTERS)).fetchall()
        if not page:
            return
        yield page
        after = (page[-1][0], page[-1][1])


def _rows(correlation_id: str | None, detail: str) -> list[tuple[Any, ...]]:
    """What an entry says: the rows of the scratch tables, each behind its table's name and without the batch's key."""
    try:
        document = json.loads(detail)
        event_type, facts = document["event_type"], document["facts"]
        if event_type in ("ELSBatchPhaseOutcomeV1", "CJAssessmentCompletedV1"):
            return _rows_of_outcome(event_type, correlation_id, facts)
        rows: list[tuple[Any, ...]] = []
        for kind, *fact in facts:
            if kind == "essay":
                phase, essay_id, outcome, at_us = fact
                rows.append(("marks", phase, "", _to_text(essay_id), outcome, at_us, at_us))
            elif kind == "batch" and event_type == "PhaseReported":
                phase, outcome, at_us = fact
                rows.append(("reports", phase, outcome, at_us))
    except (ValueError, LookupError, TypeError, AttributeError):
        # Nothing of BCS's wrote that. The marks that are there stay.
        return []
    return rows


def _rows_of_outcome(event_type: str, correlation_id: str | None, facts: Iterable[list[Any]]) -> list[tuple[Any, ...]]:
    essays: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"c": [], "f": []})
    batch: dict[str, str] = {}
    times: dict[str, int] = {}
    for kind, phase, *rest in facts:
        times[phase] = rest[-1]
        if kind == "essay":
            essays[phase][rest[1]].append(rest[0])
        else:
            batch[phase] = rest[0]
    rows: list[tuple[Any, ...]] = []
    for phase, at_us in times.items():
        completed, failed = essays[phase]["c"], essays[phase]["f"]
        if batch.get(phase) == "c":
            status = "completed_successfully"
        else:
            status = "completed_with_failures" if completed else "failed_critically"
        nameless, key, mark_at_us = False, "", at_us
        if event_type == "ELSBatchPhaseOutcomeV1":
            nameless = batch.get(phase) == "c" and not completed and not failed
            # Without a correlation id nothing tells a copy from another outcome.
            if correlation_id:
                key, mark_at_us = repeat_key(phase, _from_text(correlation_id), status, completed, failed), 0
        rows.append(("outcomes", phase, key, status, nameless, at_us))
        for outcome, listed in (("c", completed), ("f", failed)):
            rows += [("marks", phase, key, _to_text(essay), outcome, mark_at_us, at_us) for essay in listed]
    return rows


def repeat_key(phase: str, correlation_id: str, status: str, completed: Iterable[str], failed: Iterable[str]) -> str:
    """The same text for every copy of an outcome that carries no time of its own."""
    lists = [sorted(set(completed)), sorted(set(failed))]
    parts = json.dumps([phase, correlation_id, "" if lists[0] or lists[1] else status, *lists])
    return blake2b(parts.encode(), digest_size=8).hexdigest()


def _to_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\0", "\\0")


def _from_text(text: str) -> str:
    if "\\" not in text:
        return text
    return "\\".join(part.replace("\\0", "\0") for part in text.split("\\\\"))
