"""How PostgreSQL finds rows: by an index, however unevenly the rows are spread over the batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from bcs.domain.facts import EssaysRegistered, Outcome, PhaseInvalidated, PhaseOutcome, PhaseReported, RecordedUnder
from bcs.domain.state import delta_of
from bcs.storage.postgres import sql as statements
from bcs.storage.postgres.connecting import Connector, perform
from bcs.storage.postgres.rows import merge_arguments
from tests.support.databases import archive_in
from tests.support.history_entries import AT_US, consumed
from tests.support.pgbouncer import behind

pytestmark = pytest.mark.anyio

ROWS, A_MILLION = 3000, 1_000_000
LONG_AGO, FAR_AHEAD = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
FACTS = (
    EssaysRegistered(("e1",), 1, AT_US),
    PhaseOutcome(
        "nlp",
        "completed_successfully",
        completed=("e1",),
        failed=(),
        speaks_for_all=False,
        at_us=AT_US,
        repeat_key="key",
    ),
    PhaseReported("nlp", Outcome.COMPLETED, AT_US),
    PhaseInvalidated("nlp", None, AT_US),
    RecordedUnder("nlp", "definition", AT_US),
)
# So many rows of one batch that PostgreSQL expects half of a table in any batch.
FILL = """
INSERT INTO essays SELECT {key}, 'essay ' || n, n FROM generate_series(1, {rows}) n;
INSERT INTO marks (batch_key, phase, outcome_key, essay_id, outcome, at_us)
    SELECT {key}, 'nlp', '', 'essay ' || n, 'c', n FROM generate_series(1, {rows}) n;
INSERT INTO history (batch_key, entry_id, recorded_at, kind, detail)
    SELECT {key}, gen_random_uuid(), now() - n * interval '1 min', 'facts', '{{}}' FROM generate_series(1, {rows}) n;
INSERT INTO announcements (kind, topic, value) SELECT '', '', '' FROM generate_series(1, {rows});
INSERT INTO phase_definitions SELECT {key}, 'nlp', 'definition ' || n, n FROM generate_series(1, {rows}) n;
ANALYZE batches, essays, marks, outcomes, phase_reports, invalidations, phase_definitions, history, announcements
"""
# Of these tables an index has the order, and LIMIT says where to stop.
IN_ORDER = ("announcements", "batches")


async def fill(database_url: str, rows: int, large: str, small: str) -> None:
    async with archive_in(database_url) as archive:
        await archive.write([consumed(large, *FACTS), consumed(small, *FACTS)])
    connection = await Connector(database_url).connect()
    try:
        key = await connection.fetchval("SELECT batch_key FROM batches WHERE batch_id = $1", large)
        await connection.execute(FILL.format(key=key, rows=rows))
    finally:
        await connection.close()


def statements_and_arguments(*batches: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for batch in batches:
        entry = consumed(batch, *FACTS)
        yield statements.MERGE, merge_arguments({batch: delta_of(FACTS)}, [entry])
        yield statements.STATE, (batch,)
        yield statements.PAGE, (batch, 2**63 - 1, 50, 1_000_000)
        yield statements.MATCHING, (batch, 2**63 - 1, 5000, LONG_AGO, None, "facts", None, None, "id")
    yield statements.CORRELATED, ("id", 2**63 - 1, 5000, None, FAR_AHEAD, None, None, "PhaseReported")
    yield statements.ENTRIES, ([1, 2], [1, 2], 1_000_000)
    for before in (LONG_AGO, FAR_AHEAD):
        yield statements.DELETE_EXPIRED_HISTORY, (before, 1000)
        yield statements.DELETE_EXPIRED_BATCHES, (before.date(), 1000)
    yield statements.CHANGED_BEFORE, (FAR_AHEAD, "", LONG_AGO, 100)
    yield statements.CHANGED_AFTER, (LONG_AGO, "", 100)
    yield statements.TAKE_ANNOUNCEMENTS, (100,)
    yield statements.DELETE_ANNOUNCEMENTS, ([1, 2, 3],)
    yield statements.COUNT_ANNOUNCEMENTS, (100,)


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes_of(part)


async def scans_of(connection: Any, statement: str, arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
    """How the tables are read, in the plan for these arguments and in the plan for any arguments."""
    async with connection.transaction():
        planned = [await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *arguments)]
        await connection.execute(f"SET LOCAL plan_cache_mode = force_generic_plan; PREPARE planned AS {statement}")
        nothing = ", ".join(["NULL"] * len(arguments))
        planned.append(await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE planned ({nothing})"))
        await connection.execute("DEALLOCATE planned")
    nodes = [node for plan in planned for one in json.loads(plan) for node in nodes_of(one["Plan"])]
    return [node for node in nodes if "Relation Name" in node and node["Node Type"].endswith("Scan")]


@pytest.mark.parametrize(
    ("through", "rows"),
    [("direct", ROWS), ("pooled", ROWS), pytest.param("direct", A_MILLION, marks=pytest.mark.release)],
)
async def test_every_statement_uses_an_index_for_any_spread_of_rows(
    request: pytest.FixtureRequest, module_database_url: str, batch: str, through: str, rows: int
) -> None:
    large, small = f"{batch}-large", f"{batch}-small"
    await fill(module_database_url, rows, large, small)
    url = module_database_url
    if through == "pooled":
        url = behind(request.getfixturevalue("pooler"), url)
    connection = await Connector(url).connect()
    try:
        for statement, arguments in statements_and_arguments(large, small):
            for scan in await perform(connection, partial(scans_of, statement=statement, arguments=arguments)):
                assert scan["Node Type"] in ("Index Scan", "Index Only Scan", "Tid Scan"), (statement, scan)
                if scan["Relation Name"] not in IN_ORDER:
                    assert {"Index Cond", "TID Cond"} & scan.keys(), (statement, scan)
    finally:
        await connection.close()
