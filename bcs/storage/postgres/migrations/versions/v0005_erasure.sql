-- The tombstone of an erased batch, in the row that every writer locks first.
ALTER TABLE batches ADD COLUMN erased_until timestamptz, ADD COLUMN tombstone text;
