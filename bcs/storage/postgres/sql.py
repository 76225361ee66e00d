"""The SQL of the archive. It repeats the merge rules of `bcs.domain.state`.

`tests/integration/test_merge_contract.py` checks that both give the same state.
"""

# One round trip, one transaction. Every replica first locks the rows of `batches`, in the same order and until the end,
# so two replicas can't deadlock, and no other session can delete the rows of a batch in between. An erased batch is
# left out: nothing about it is merged or inserted until its tombstone ends.
MERGE = """
WITH named AS (
    SELECT * FROM unnest($1::text[], $2::numeric[], $3::bigint[], $41::boolean[]) WITH ORDINALITY
        AS named (batch_id, expected_count, expected_at_us, changes, n)
), batch AS (
    INSERT INTO batches AS known (batch_id, expected_count, expected_at_us, touched_on, changed_at, listed_at)
    SELECT batch_id, expected_count, expected_at_us, current_date,
        CASE WHEN changes THEN now() END, CASE WHEN changes THEN date_bin('10 s', now(), timestamptz 'epoch') END
    FROM named ORDER BY batch_id COLLATE "C"
    ON CONFLICT (batch_id) DO UPDATE SET
        touched_on = excluded.touched_on,
        changed_at = coalesce(excluded.changed_at, known.changed_at),
        listed_at = coalesce(excluded.listed_at, known.listed_at),
        (expected_count, expected_at_us) = (
            SELECT CASE WHEN newer THEN excluded.expected_count ELSE known.expected_count END,
                   CASE WHEN newer THEN excluded.expected_at_us ELSE known.expected_at_us END
            FROM (SELECT excluded.expected_at_us IS NOT NULL AND (
                known.expected_at_us IS NULL
                OR (excluded.expected_at_us, excluded.expected_count) > (known.expected_at_us, known.expected_count)
            )) AS comparison (newer)
        ),
        erased_until = NULL, tombstone = NULL
        WHERE known.erased_until IS NULL OR known.erased_until <= now()
    RETURNING batch_key, batch_id
), keyed AS (
    SELECT n::integer, batch_key FROM named JOIN batch USING (batch_id)
), essay AS (
    INSERT INTO essays AS known (batch_key, essay_id, first_seen_us)
    SELECT batch_key, essay_id, first_seen_us
    FROM unnest($4::integer[], $5::text[], $6::bigint[]) AS essay (n, essay_id, first_seen_us) JOIN keyed USING (n)
    ON CONFLICT (batch_key, essay_id) DO UPDATE SET first_seen_us = excluded.first_seen_us
        WHERE excluded.first_seen_us < known.first_seen_us
), mark AS (
    INSERT INTO marks AS known (batch_key, phase, outcome_key, essay_id, outcome, at_us)
    SELECT batch_key, phase, outcome_key, essay_id, outcome, at_us
    FROM unnest($7::integer[], $8::text[], $9::text[], $10::text[], $11::text[], $12::bigint[])
        AS mark (n, phase, outcome_key, essay_id, outcome, at_us) JOIN keyed USING (n)
    ON CONFLICT (batch_key, phase, outcome_key, essay_id) DO UPDATE
        SET outcome = excluded.outcome, at_us = excluded.at_us
        WHERE (excluded.at_us, excluded.outcome) > (known.at_us, known.outcome)
), outcome AS (
    INSERT INTO outcomes AS known (batch_key, phase, outcome_key, status, speaks_for_all, at_us)
    SELECT batch_key, phase, outcome_key, status, speaks_for_all, at_us
    FROM unnest($13::integer[], $14::text[], $15::text[], $16::text[], $17::boolean[], $18::bigint[])
        AS outcome (n, phase, outcome_key, status, speaks_for_all, at_us) JOIN keyed USING (n)
    ON CONFLICT (batch_key, phase, outcome_key) DO UPDATE SET
        status = excluded.status, speaks_for_all = excluded.speaks_for_all, at_us = excluded.at_us
        WHERE CASE
            WHEN excluded.at_us = known.at_us
                THEN (NOT excluded.speaks_for_all, excluded.status) > (NOT known.speaks_for_all, known.status)
            WHEN known.outcome_key = '' THEN excluded.at_us > known.at_us
            ELSE excluded.at_us < known.at_us
        END
), report AS (
    INSERT INTO phase_reports AS known (batch_key, phase, outcome, at_us)
    SELECT batch_key, phase, outcome, at_us
    FROM unnest($19::integer[], $20::text[], $21::text[], $22::bigint[])
        AS report (n, phase, outcome, at_us) JOIN keyed USING (n)
    ON CONFLICT (batch_key, phase) DO UPDATE SET outcome = excluded.outcome, at_us = excluded.at_us
        WHERE (excluded.at_us, excluded.outcome) > (known.at_us, known.outcome)
), invalidation AS (
    INSERT INTO invalidations AS known (batch_key, phase, essay_id, at_us)
    SELECT batch_key, phase, essay_id, at_us
    FROM unnest($23::integer[], $24::text[], $25::text[], $26::bigint[])
        AS invalidation (n, phase, essay_id, at_us) JOIN keyed USING (n)
    ON CONFLICT (batch_key, phase, essay_id) DO UPDATE SET at_us = excluded.at_us
        WHERE excluded.at_us > known.at_us
), definition AS (
    INSERT INTO phase_definitions AS known (batch_key, phase, definition, at_us)
    SELECT batch_key, phase, definition, at_us
    FROM unnest($27::integer[], $28::text[], $29::text[], $30::bigint[])
        AS definition (n, phase, definition, at_us) JOIN keyed USING (n)
    ON CONFLICT (batch_key, phase, definition) DO UPDATE SET at_us = excluded.at_us
        WHERE excluded.at_us > known.at_us
)
INSERT INTO history (
    batch_key, entry_id, recorded_at, kind, correlation_id, event_id,
    source_topic, source_partition, source_offset, detail
)
SELECT batch_key, entry_id, recorded_at, kind, correlation_id, event_id,
    source_topic, source_partition, source_offset, detail::json
FROM unnest(
    $31::integer[], $32::uuid[], $33::timestamptz[], $34::text[], $35::text[], $36::text[],
    $37::text[], $38::integer[], $39::bigint[], $40::text[]
) WITH ORDINALITY AS entry (
    n, entry_id, recorded_at, kind, correlation_id, event_id,
    source_topic, source_partition, source_offset, detail, place
) JOIN keyed USING (n)
ORDER BY place
ON CONFLICT (batch_key, entry_id) DO NOTHING
"""

# Essays that differ only in the time share one row: a batch may have a hundred thousand marks, and a row for each would
# take most of the time.
STATE = """
WITH batch AS MATERIALIZED (
    SELECT batch_key, expected_count, expected_at_us, CASE WHEN erased_until > now() THEN tombstone END AS tombstone
    FROM batches WHERE batch_id = $1
)
SELECT 'expected', NULL, NULL, NULL::text[], NULL, NULL::boolean, expected_count, ARRAY[expected_at_us]
    FROM batch WHERE expected_at_us IS NOT NULL
UNION ALL
SELECT 'erased', NULL, NULL, NULL, tombstone, NULL, NULL, NULL FROM batch WHERE tombstone IS NOT NULL
UNION ALL
SELECT 'essay', NULL, NULL, array_agg(essay_id), NULL, NULL, NULL, array_agg(first_seen_us) FROM essays
    WHERE batch_key = (SELECT batch_key FROM batch)
    HAVING count(*) > 0
UNION ALL
SELECT 'mark', phase, outcome_key, array_agg(essay_id), outcome, NULL, NULL,
        array_agg(at_us) FILTER (WHERE outcome_key = '') FROM marks
    WHERE batch_key = (SELECT batch_key FROM batch)
    GROUP BY phase, outcome_key, outcome
UNION ALL
SELECT 'outcome', phase, outcome_key, NULL, status, speaks_for_all, NULL, ARRAY[at_us] FROM outcomes
    WHERE batch_key = (SELECT batch_key FROM batch)
UNION ALL
SELECT 'report', phase, NULL, NULL, outcome, NULL, NULL, ARRAY[at_us] FROM phase_reports
    WHERE batch_key = (SELECT batch_key FROM batch)
UNION ALL
SELECT 'invalidation', phase, NULL, array_agg(essay_id), NULL, NULL, NULL, array_agg(at_us) FROM invalidations
    WHERE batch_key = (SELECT batch_key FROM batch)
    GROUP BY phase
UNION ALL
SELECT 'definition', phase, definition, NULL, NULL, NULL, NULL, ARRAY[at_us] FROM phase_definitions
    WHERE batch_key = (SELECT batch_key FROM batch)
"""

# Entries are read one by one until the page is full, because entries that do not fit may be large and slow to read.
PAGE = """
WITH RECURSIVE page AS (
    SELECT 0 AS place, 0::bigint AS bytes, batch_key, $2::bigint AS number, NULL::uuid AS entry_id,
        NULL::timestamptz AS recorded_at, NULL::text AS kind, NULL::text AS correlation_id, NULL::text AS event_id,
        NULL::text AS source_topic, NULL::integer AS source_partition, NULL::bigint AS source_offset,
        NULL::text AS detail
    FROM batches WHERE batch_id = $1
    UNION ALL
    SELECT place + 1, page.bytes + octet_length(next.detail) + coalesce(octet_length(next.correlation_id), 0)
            + coalesce(octet_length(next.event_id), 0) + coalesce(octet_length(next.source_topic), 0), next.*
    FROM page CROSS JOIN LATERAL (
        SELECT batch_key, number, entry_id, recorded_at, kind, correlation_id, event_id,
            source_topic, source_partition, source_offset, detail::text
        FROM history WHERE history.batch_key = page.batch_key AND history.number < page.number
        ORDER BY history.number DESC LIMIT 1
    ) AS next
    WHERE place < $3 AND page.bytes <= $4
)
SELECT number, entry_id, recorded_at, kind, correlation_id, event_id,
    source_topic, source_partition, source_offset, detail
FROM page WHERE place = 1 OR (place > 1 AND bytes <= $4) ORDER BY place
"""

# The event type of what came over HTTP is in the detail, which is small then. No other detail is read.
_WANTED = """
    ($4::timestamptz IS NULL OR recorded_at >= $4) AND ($5::timestamptz IS NULL OR recorded_at <= $5)
    AND ($6::text IS NULL OR kind = $6) AND ($7::text IS NULL OR source_topic IS NOT DISTINCT FROM $7)
    AND CASE WHEN $8::text IS NULL THEN true WHEN source_topic IS NOT NULL OR kind <> 'facts' THEN false
        ELSE detail ->> 'event_type' = $8 END
"""

_FOUND = """
SELECT array_agg(batch_key ORDER BY number DESC) FILTER (WHERE wanted) AS keys,
    array_agg(number ORDER BY number DESC) FILTER (WHERE wanted) AS numbers,
    min(number) AS lowest, count(*) AS scanned
FROM scanned
"""

MATCHING = f"""
WITH scanned AS (
    SELECT batch_key, number, {_WANTED} AND ($9::text IS NULL OR correlation_id IS NOT DISTINCT FROM $9) AS wanted
    FROM history
    WHERE batch_key = (SELECT batch_key FROM batches WHERE batch_id = $1) AND number < $2
    ORDER BY number DESC LIMIT $3
)
{_FOUND}
"""  # noqa: S608 (constants)

CORRELATED = f"""
WITH scanned AS (
    SELECT batch_key, number, correlation_id = $1 AND {_WANTED} AS wanted
    FROM history
    WHERE left(correlation_id, 100) COLLATE "C" = left($1, 100) COLLATE "C" AND number < $2
    ORDER BY number DESC LIMIT $3
)
{_FOUND}
"""  # noqa: S608 (constants)

# One by one, as for `PAGE`.
ENTRIES = """
WITH RECURSIVE page AS (
    SELECT 0 AS place, 0::bigint AS bytes, NULL::text COLLATE "C" AS batch_id, NULL::bigint AS number,
        NULL::uuid AS entry_id, NULL::timestamptz AS recorded_at, NULL::text AS kind, NULL::text AS correlation_id,
        NULL::text AS event_id, NULL::text AS source_topic, NULL::integer AS source_partition,
        NULL::bigint AS source_offset, NULL::text AS detail
    UNION ALL
    SELECT place + 1, page.bytes + octet_length(next.detail) + coalesce(octet_length(next.correlation_id), 0)
            + coalesce(octet_length(next.event_id), 0) + coalesce(octet_length(next.source_topic), 0), next.*
    FROM page CROSS JOIN LATERAL (
        SELECT (SELECT batch_id FROM batches WHERE batches.batch_key = history.batch_key),
            number, entry_id, recorded_at, kind, correlation_id, event_id,
            source_topic, source_partition, source_offset, detail::text
        FROM history
        WHERE batch_key = ($1::bigint[])[page.place + 1] AND history.number = ($2::bigint[])[page.place + 1]
        LIMIT 1
    ) AS next
    WHERE place < cardinality($1::bigint[]) AND page.bytes <= $3
)
SELECT batch_id, number, entry_id, recorded_at, kind, correlation_id, event_id,
    source_topic, source_partition, source_offset, detail
FROM page WHERE place = 1 OR (place > 1 AND bytes <= $3) ORDER BY place
"""

# As the index has it. Of a batch that only the release before has written, the day is known.
_LISTED = "coalesce(listed_at, touched_on::timestamp AT TIME ZONE 'UTC')"

CHANGED_BEFORE = f"""
SELECT batch_id, {_LISTED} AS listed_at, coalesce(changed_at, {_LISTED}) AS changed_at, now() AS now FROM batches
WHERE ({_LISTED}, batch_id) < ($1::timestamptz, $2::text) AND {_LISTED} >= $3::timestamptz
ORDER BY {_LISTED} DESC, batch_id DESC LIMIT $4
"""  # noqa: S608 (a constant)

CHANGED_AFTER = f"""
SELECT batch_id, {_LISTED} AS listed_at, coalesce(changed_at, {_LISTED}) AS changed_at, now() AS now FROM batches
WHERE ({_LISTED}, batch_id) > ($1::timestamptz, $2::text)
ORDER BY {_LISTED}, batch_id LIMIT $3
"""  # noqa: S608 (a constant)

INSERT_ANNOUNCEMENTS = "INSERT INTO announcements (kind, topic, key, value) VALUES ($1, $2, $3, $4)"

# Rows that another replica has locked are skipped.
TAKE_ANNOUNCEMENTS = """
SELECT announcement_id, kind, topic, key, value FROM announcements
ORDER BY announcement_id LIMIT $1 FOR UPDATE SKIP LOCKED
"""

# This runs at intervals, so the count is limited to be fast.
COUNT_ANNOUNCEMENTS = """
SELECT (SELECT count(*) FROM (SELECT FROM announcements LIMIT $1) AS first) AS count,
    (SELECT value FROM announcements ORDER BY announcement_id LIMIT 1) AS oldest
"""

DELETE_ANNOUNCEMENTS = "DELETE FROM announcements WHERE announcement_id = ANY ($1::bigint[])"

DELETE_EXPIRED_HISTORY = """
DELETE FROM history
WHERE ctid = ANY (ARRAY(SELECT ctid FROM history WHERE recorded_at < $1 ORDER BY recorded_at LIMIT $2))
"""

# An array instead of a join, because a join may read a whole table.
DELETE_EXPIRED_BATCHES = """
WITH old AS MATERIALIZED (
    SELECT batch_key FROM batches WHERE touched_on < $1 AND (erased_until IS NULL OR erased_until <= now())
    ORDER BY batch_id LIMIT $2 FOR UPDATE SKIP LOCKED
), no_essay AS (
    DELETE FROM essays WHERE batch_key = ANY (ARRAY(SELECT batch_key FROM old))
), no_mark AS (
    DELETE FROM marks WHERE batch_key = ANY (ARRAY(SELECT batch_key FROM old))
), no_outcome AS (
    DELETE FROM outcomes WHERE batch_key = ANY (ARRAY(SELECT batch_key FROM old))
), no_report AS (
    DELETE FROM phase_reports WHERE batch_key = ANY (ARRAY(SELECT batch_key FROM old))
), no_invalidation AS (
    DELETE FROM invalidations WHERE batch_key = ANY (ARRAY(SELECT batch_key FROM old))
), no_definition AS (
    DELETE FROM phase_definitions WHERE batch_key = ANY (ARRAY(SELECT batch_key FROM old))
), no_history AS (
    DELETE FROM history WHERE batch_key = ANY (ARRAY(SELECT batch_key FROM old))
)
DELETE FROM batches WHERE batch_key = ANY (ARRAY(SELECT batch_key FROM old))
"""

# The row of the batch is locked as by `MERGE`: when this has ended, no writer adds anything. The tombstone that lasts
# longer stays in force.
ERASE = """
WITH batch AS (
    INSERT INTO batches AS known (batch_id, touched_on, erased_until, tombstone)
    VALUES ($1, current_date, $2, $3)
    ON CONFLICT (batch_id) DO UPDATE SET
        touched_on = excluded.touched_on, expected_count = NULL, expected_at_us = NULL,
        erased_until = greatest(known.erased_until, excluded.erased_until),
        tombstone = CASE
            WHEN known.erased_until > excluded.erased_until THEN known.tombstone ELSE excluded.tombstone
        END
    RETURNING batch_key
)
INSERT INTO history (batch_key, entry_id, recorded_at, kind, correlation_id, detail)
SELECT batch_key, $4, $5, 'erasure', $6, $7::json FROM batch
ON CONFLICT (batch_key, entry_id) DO NOTHING
RETURNING batch_key
"""

BATCH_KEY = "SELECT batch_key FROM batches WHERE batch_id = $1"

_ERASED_TABLES = {
    **dict.fromkeys(
        ("essays", "marks", "outcomes", "phase_reports", "invalidations", "phase_definitions"), "batch_key = $1"
    ),
    "history": "batch_key = $1 AND kind <> 'erasure'",
}

COUNT_ERASABLE = {
    table: f"SELECT count(*) FROM {table} WHERE {condition}"  # noqa: S608 (constants)
    for table, condition in _ERASED_TABLES.items()
}

# A part at a time: a batch may have a million rows.
DELETE_ERASED = {
    table: f"DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table} WHERE {condition} LIMIT $2))"  # noqa: S608 (constants)
    for table, condition in _ERASED_TABLES.items()
}
