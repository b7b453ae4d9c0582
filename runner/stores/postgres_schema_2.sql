-- The tables of the PostgreSQL store, version 2: idempotency keys, what persons ask of runs, what runs wait for.

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

ALTER TABLE runs
    ADD COLUMN caller text,  -- who waits for the reply, if a command began the run
    ADD COLUMN woken boolean NOT NULL DEFAULT false,  -- something came for it while a runner had it
    ADD COLUMN asleep boolean NOT NULL DEFAULT false;  -- in a wait of the flow's own

CREATE TABLE commands (
    id text PRIMARY KEY,
    run_id text COLLATE "C" NOT NULL,
    answer text
);

CREATE INDEX commands_of ON commands (run_id);

CREATE TABLE callers (
    run_id text COLLATE "C" NOT NULL,
    correlation_id text NOT NULL,
    reply_to text NOT NULL,
    caller text NOT NULL,
    PRIMARY KEY (run_id, correlation_id, reply_to)
);

CREATE TABLE waits (
    token text NOT NULL,
    run_id text COLLATE "C" NOT NULL,
    cancels boolean NOT NULL DEFAULT false,
    PRIMARY KEY (token, run_id, cancels)
);

CREATE INDEX waits_of ON waits (run_id);

CREATE TABLE arrivals (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    token text NOT NULL,
    source text NOT NULL,
    id text NOT NULL,
    received_at text COLLATE "C" NOT NULL,
    arrival text NOT NULL,
    data bytea NOT NULL,
    UNIQUE (token, source, id)
);

CREATE INDEX arrivals_old ON arrivals (received_at);

CREATE TABLE schedules (
    name text PRIMARY KEY,
    slot text NOT NULL
);

CREATE TABLE wait_patterns (
    event text NOT NULL,
    fields text NOT NULL,
    PRIMARY KEY (event, fields)
);
