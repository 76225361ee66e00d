-- Up to which time facts of a phase were recorded under a definition of the phase. Times are microseconds since 1970 UTC.
CREATE TABLE phase_definitions (
    batch_key  bigint NOT NULL,
    phase      text COLLATE "C" NOT NULL,
    definition text COLLATE "C" NOT NULL,
    at_us      bigint NOT NULL,
    PRIMARY KEY (batch_key, phase, definition)
);
