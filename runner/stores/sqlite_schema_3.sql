-- The tables of the SQLite store, version 3: rate limits.

CREATE TABLE buckets (
    name TEXT NOT NULL,
    key TEXT NOT NULL,
    full_at INTEGER NOT NULL,
    PRIMARY KEY (name, key)
) WITHOUT ROWID;

CREATE INDEX buckets_full ON buckets (full_at);
