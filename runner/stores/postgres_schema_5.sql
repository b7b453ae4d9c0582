-- The tables of the PostgreSQL store, version 5: read models.

CREATE TABLE builds (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    definition text NOT NULL,
    state text NOT NULL,  -- served, building or retired
    position bigint NOT NULL DEFAULT 0,
    claimed_by text,
    claimed_until text,
    faults integer NOT NULL DEFAULT 0,
    last_fault text
);

CREATE UNIQUE INDEX builds_one ON builds (name, state) WHERE state <> 'retired';

CREATE TABLE entries (
    build bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    state text,
    position bigint NOT NULL,
    changes integer NOT NULL,
    latest text NOT NULL,
    PRIMARY KEY (build, key)
);

CREATE TABLE entry_changes (
    build bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (build, key, position)
);

CREATE TABLE entry_snapshots (
    build bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    state text,
    changes integer NOT NULL,
    latest text COLLATE "C" NOT NULL,
    PRIMARY KEY (build, key, position)
);
