-- The tables of the SQLite store, version 6: traffic. A row of `gate` stands for a run from its acceptance until it is final.

CREATE TABLE gate (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL UNIQUE,
    handler TEXT NOT NULL,
    state TEXT NOT NULL,  -- waits: open, behind (another of its line), timed (for a token), full (for a slot); or is past: running, parked
    begun INTEGER NOT NULL DEFAULT 0,
    line TEXT,
    is_ordered INTEGER NOT NULL,
    slot TEXT,
    bucket TEXT,  -- null: it needs no token, or has it
    rank INTEGER NOT NULL,
    open_at INTEGER  -- of what is timed: nanoseconds since 1970
);

CREATE INDEX gate_open ON gate (handler, rank, place) WHERE state = 'open';
CREATE INDEX gate_queued ON gate (handler) WHERE NOT begun;
CREATE INDEX gate_lines ON gate (handler, line, rank, place) WHERE line IS NOT NULL;
CREATE INDEX gate_heads ON gate (handler, line) WHERE line IS NOT NULL AND state <> 'behind';
CREATE INDEX gate_slots ON gate (handler, slot, state, rank, place) WHERE slot IS NOT NULL;
CREATE INDEX gate_timed ON gate (handler, open_at) WHERE state = 'timed';

CREATE TABLE circuits (  -- those that are not closed
    name TEXT PRIMARY KEY,
    open_until TEXT NOT NULL,
    probe_until TEXT  -- while one attempt is under way
);

CREATE TABLE circuit_failures (
    name TEXT NOT NULL,
    at TEXT NOT NULL
);

CREATE INDEX circuit_failures_by_name ON circuit_failures (name, at);

CREATE TABLE pressures (  -- the handlers whose producers were told that they are behind
    handler TEXT PRIMARY KEY
);
