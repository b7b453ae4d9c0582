-- The tables of the SQLite store, version 2: idempotency keys, and what persons ask of runs.

ALTER TABLE runs ADD COLUMN key TEXT;

ALTER TABLE runs ADD COLUMN key_until TEXT;

ALTER TABLE runs ADD COLUMN request TEXT;

CREATE UNIQUE INDEX runs_key ON runs (handler, key) WHERE key_until IS NOT NULL;

CREATE INDEX runs_requested ON runs (owner) WHERE request IS NOT NULL;

CREATE TABLE declared_objects (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (kind, name)
);
