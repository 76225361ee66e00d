-- Facts merge: the newer mark wins, at the same instant "failed" does ('f' > 'c'). Times are microseconds since 1970 UTC.
-- In every text a backslash stands as two and a NUL, which PostgreSQL can't keep, as backslash and 0.

CREATE TABLE batches (
    batch_key      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    batch_id       text COLLATE "C" NOT NULL UNIQUE,
    expected_count numeric,
    expected_at_us bigint,
    touched_on     date NOT NULL
) WITH (fillfactor = 70);

CREATE TABLE essays (
    batch_key      bigint NOT NULL,
    essay_id       text COLLATE "C" NOT NULL,
    known_since_us bigint NOT NULL,
    PRIMARY KEY (batch_key, essay_id)
);

CREATE TABLE marks (
    batch_key bigint NOT NULL,
    phase     text COLLATE "C" NOT NULL,
    essay_id  text COLLATE "C" NOT NULL,
    outcome   text COLLATE "C" NOT NULL,
    at_us     bigint NOT NULL,
    PRIMARY KEY (batch_key, phase, essay_id)
);

CREATE TABLE batch_marks (
    batch_key bigint NOT NULL,
    phase     text COLLATE "C" NOT NULL,
    outcome   text COLLATE "C" NOT NULL,
    at_us     bigint NOT NULL,
    PRIMARY KEY (batch_key, phase)
);

-- Append only. `number` gives the order in which entries came in; `entry_id` keeps a repeat out.
CREATE TABLE history (
    batch_key        bigint NOT NULL,
    number           bigint GENERATED ALWAYS AS IDENTITY,
    entry_id         uuid NOT NULL,
    recorded_at      timestamptz NOT NULL,
    kind             text NOT NULL,
    correlation_id   text,
    event_id         text,
    source_topic     text,
    source_partition integer,
    source_offset    bigint,
    detail           json NOT NULL,
    PRIMARY KEY (batch_key, entry_id)
);

CREATE INDEX history_by_number ON history (batch_key, number);

-- For retention.
CREATE INDEX history_by_time ON history (recorded_at);

-- Announcements that were accepted while Redis, which has the outbox, was away.
CREATE TABLE announcements (
    announcement_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind            text NOT NULL,
    topic           text NOT NULL,
    key             bytea,
    value           bytea NOT NULL
);
