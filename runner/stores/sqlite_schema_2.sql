-- The tables of the SQLite store, version 2: idempotency keys, what persons ask of runs, what runs wait for.

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

ALTER TABLE runs ADD COLUMN caller TEXT;

ALTER TABLE runs ADD COLUMN woken INTEGER NOT NULL DEFAULT 0;

ALTER TABLE runs ADD COLUMN asleep INTEGER NOT NULL DEFAULT 0;

CREATE TABLE commands (
    id TEXT PRIMARY KEY,
    run_id TEXT NOT NULL,
    answer TEXT
) WITHOUT ROWID;

CREATE INDEX commands_of ON commands (run_id);

CREATE TABLE callers (
    run_id TEXT NOT NULL,
    correlation_id TEXT NOT NULL,
    reply_to TEXT NOT NULL,
    caller TEXT NOT NULL,
    PRIMARY KEY (run_id, correlation_id, reply_to)
) WITHOUT ROWID;

CREATE TABLE waits (
    token TEXT NOT NULL,
    run_id TEXT NOT NULL,
    cancels INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (token, run_id, cancels)
) WITHOUT ROWID;

CREATE INDEX waits_of ON waits (run_id);

CREATE TABLE arrivals (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    token TEXT NOT NULL,
    source TEXT NOT NULL,
    id TEXT NOT NULL,
    received_at TEXT NOT NULL,
    arrival TEXT NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (token, source, id)
);

CREATE INDEX arrivals_old ON arrivals (received_at);

CREATE TABLE schedules (
    name TEXT PRIMARY KEY,
    slot TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE wait_patterns (
    event TEXT NOT NULL,
    fields TEXT NOT NULL,
    PRIMARY KEY (event, fields)
) WITHOUT ROWID;
