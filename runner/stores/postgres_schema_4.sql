-- The tables of the PostgreSQL store, version 4: the event log holds each event once, and knows which run emitted it.

ALTER TABLE events
    ADD COLUMN run_id text COLLATE "C",
    ALTER COLUMN id TYPE text COLLATE "C",
    ALTER COLUMN time TYPE text COLLATE "C";

DELETE FROM events WHERE position NOT IN (SELECT min(position) FROM events GROUP BY id, source);

CREATE UNIQUE INDEX events_once ON events (id, source);

CREATE INDEX events_correlated ON events (correlation_id);

CREATE INDEX events_of_type ON events (type, position);
