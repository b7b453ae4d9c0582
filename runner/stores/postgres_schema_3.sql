-- The tables of the PostgreSQL store, version 3: rate limits.

CREATE TABLE buckets (
    name text NOT NULL,
    key text NOT NULL,
    full_at bigint NOT NULL,  -- in nanoseconds since 1970; from then on it is as if the bucket were not there
    PRIMARY KEY (name, key)
);

CREATE INDEX buckets_full ON buckets (full_at);
