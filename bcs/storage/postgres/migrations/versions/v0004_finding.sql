-- changed_at is when the last facts came. listed_at is the same, rounded down to ten seconds: an index on it changes at
-- most once in ten seconds for a batch. Both are NULL for a batch that only the release before has written.
ALTER TABLE batches ADD COLUMN changed_at timestamptz, ADD COLUMN listed_at timestamptz;

CREATE INDEX batches_by_change ON batches
    ((coalesce(listed_at, touched_on::timestamp AT TIME ZONE 'UTC')), batch_id);

-- An id may have any length, and an entry of an index may not.
CREATE INDEX history_by_correlation ON history ((left(correlation_id, 100) COLLATE "C"), number);
