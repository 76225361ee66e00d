-- Facts merge, see bcs.domain.state. Times are microseconds since 1970 UTC.

-- The earliest time at which an essay was known to belong to the batch.
ALTER TABLE essays RENAME COLUMN known_since_us TO first_seen_us;

-- Under an outcome's key stands its list: the time is 0, since it is the outcome's. Under '' the newest mark that has a
-- time of its own.
ALTER TABLE marks ADD COLUMN outcome_key text COLLATE "C" NOT NULL DEFAULT '';

ALTER TABLE marks ALTER COLUMN outcome_key DROP DEFAULT, DROP CONSTRAINT marks_pkey,
    ADD PRIMARY KEY (batch_key, phase, outcome_key, essay_id);

DROP TABLE batch_marks;

-- Under '' the newest outcome of those that have a time of their own; under any other key an outcome without one, with
-- the earliest time of its copies.
CREATE TABLE outcomes (
    batch_key      bigint NOT NULL,
    phase          text COLLATE "C" NOT NULL,
    outcome_key    text COLLATE "C" NOT NULL,
    status         text COLLATE "C" NOT NULL,
    speaks_for_all boolean NOT NULL,
    at_us          bigint NOT NULL,
    PRIMARY KEY (batch_key, phase, outcome_key)
);

CREATE TABLE reports (
    batch_key bigint NOT NULL,
    phase     text COLLATE "C" NOT NULL,
    outcome   text COLLATE "C" NOT NULL,
    at_us     bigint NOT NULL,
    PRIMARY KEY (batch_key, phase)
);

-- No essay: all of them.
CREATE TABLE invalidations (
    batch_key bigint NOT NULL,
    phase     text COLLATE "C" NOT NULL,
    essay_id  text COLLATE "C",
    at_us     bigint NOT NULL,
    UNIQUE NULLS NOT DISTINCT (batch_key, phase, essay_id)
);
