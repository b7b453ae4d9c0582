-- The tables of the PostgreSQL store, version 2: idempotency keys, and what persons ask of runs.

ALTER TABLE runs
    ADD COLUMN key text,
    ADD COLUMN key_until text,  -- null: no key, or a free one; while the run is not final, the end of time
    ADD COLUMN request text;

CREATE UNIQUE INDEX runs_key ON runs (handler, key) WHERE key_until IS NOT NULL;

CREATE INDEX runs_requested ON runs (owner) WHERE request IS NOT NULL;

CREATE TABLE declared_objects (
    kind text NOT NULL,
    name text NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (kind, name)
);
