-- The tables of the PostgreSQL store, version 1, inside the project's own schema. Times are RFC 3339 texts in UTC,
-- as in the SQLite store; only leases are by the server's clock.

CREATE TABLE runners (
    id text PRIMARY KEY,
    lease_until timestamptz NOT NULL
);

CREATE TABLE runs (
    id text COLLATE "C" PRIMARY KEY,  -- derived from handler, source and message id: the row is the inbox entry as well
    flow text NOT NULL,
    handler text NOT NULL,
    plan_hash text NOT NULL,
    state text NOT NULL,
    trigger text NOT NULL,
    trace text NOT NULL,
    data bytea NOT NULL,
    started_at text NOT NULL,
    finished_at text,
    due_at text,
    error text,
    owner text,
    crashes integer NOT NULL DEFAULT 0
);

CREATE INDEX runs_newest ON runs (started_at);

CREATE INDEX runs_due ON runs (due_at) WHERE due_at IS NOT NULL;

CREATE INDEX runs_unfinished ON runs (owner, plan_hash) WHERE finished_at IS NULL;

CREATE TABLE records (
    run_id text COLLATE "C" NOT NULL,
    number integer NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (run_id, number)
);

CREATE TABLE events (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text NOT NULL,
    type text NOT NULL,
    source text NOT NULL,
    subject text,
    version integer,
    time text NOT NULL,
    correlation_id text NOT NULL,
    causation_id text,
    data bytea NOT NULL
);

CREATE UNIQUE INDEX events_chain ON events (subject, version) WHERE subject IS NOT NULL;

CREATE TABLE outbox (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    exchange text NOT NULL,
    routing_key text NOT NULL,
    properties text NOT NULL,
    body bytea NOT NULL,
    mandatory boolean NOT NULL,
    owner text,
    reason text
);

CREATE TABLE dead_letters (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text COLLATE "C" NOT NULL UNIQUE,
    reason text NOT NULL,
    handler text NOT NULL,
    received_at text NOT NULL,
    letter text NOT NULL,
    body bytea NOT NULL
);

CREATE TABLE plans (
    hash text PRIMARY KEY,
    sources text NOT NULL
);
