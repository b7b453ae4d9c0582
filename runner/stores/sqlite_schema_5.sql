-- The tables of the SQLite store, version 5: read models.

CREATE TABLE builds (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never the same again: entries of one that was given up may still be there
    name TEXT NOT NULL,
    definition TEXT NOT NULL,
    state TEXT NOT NULL,  -- served, building or retired
    position INTEGER NOT NULL DEFAULT 0,
    claimed_by TEXT,
    claimed_until TEXT,
    faults INTEGER NOT NULL DEFAULT 0,
    last_fault TEXT
);

CREATE UNIQUE INDEX builds_one ON builds (name, state) WHERE state <> 'retired';

CREATE TABLE entries (
    build INTEGER NOT NULL,
    key TEXT NOT NULL,
    state TEXT,
    position INTEGER NOT NULL,
    changes INTEGER NOT NULL,
    latest TEXT NOT NULL,
    PRIMARY KEY (build, key)
) WITHOUT ROWID;

CREATE TABLE entry_changes (
    build INTEGER NOT NULL,
    key TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (build, key, position)
) WITHOUT ROWID;

CREATE TABLE entry_snapshots (
    build INTEGER NOT NULL,
    key TEXT NOT NULL,
    position INTEGER NOT NULL,
    state TEXT,
    changes INTEGER NOT NULL,
    latest TEXT NOT NULL,
    PRIMARY KEY (build, key, position)
) WITHOUT ROWID;
