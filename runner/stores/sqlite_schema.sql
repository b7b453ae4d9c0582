-- The tables of the SQLite store, version 1. Times are RFC 3339 in UTC, JSON is text.

CREATE TABLE runs (
    id TEXT PRIMARY KEY,  -- derived from handler, source and message id: the row is the inbox entry as well
    flow TEXT NOT NULL,
    handler TEXT NOT NULL,
    plan_hash TEXT NOT NULL,
    state TEXT NOT NULL,
    trigger TEXT NOT NULL,
    trace TEXT NOT NULL,
    data BLOB NOT NULL,
    started_at TEXT NOT NULL,
    finished_at TEXT,
    due_at TEXT,
    error TEXT,
    owner TEXT,
    crashes INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE INDEX runs_newest ON runs (started_at);

CREATE INDEX runs_due ON runs (due_at) WHERE due_at IS NOT NULL;

CREATE INDEX runs_unfinished ON runs (owner, plan_hash) WHERE finished_at IS NULL;

CREATE TABLE records (
    run_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (run_id, number)
) WITHOUT ROWID;

CREATE TABLE events (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    type TEXT NOT NULL,
    source TEXT NOT NULL,
    subject TEXT,
    version INTEGER,
    time TEXT NOT NULL,
    correlation_id TEXT NOT NULL,
    causation_id TEXT,
    data BLOB NOT NULL
);

CREATE UNIQUE INDEX events_chain ON events (subject, version) WHERE subject IS NOT NULL;

CREATE TABLE outbox (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    exchange TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    properties TEXT NOT NULL,
    body BLOB NOT NULL,
    mandatory INTEGER NOT NULL,
    owner TEXT,
    reason TEXT
);

CREATE TABLE dead_letters (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    reason TEXT NOT NULL,
    handler TEXT NOT NULL,
    received_at TEXT NOT NULL,
    letter TEXT NOT NULL,
    body BLOB NOT NULL
);

CREATE TABLE plans (
    hash TEXT PRIMARY KEY,
    sources TEXT NOT NULL
);
