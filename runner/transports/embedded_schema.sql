-- The embedded broker, version 1.

CREATE TABLE broker_exchanges (name TEXT PRIMARY KEY, type TEXT NOT NULL);

CREATE TABLE broker_queues (name TEXT PRIMARY KEY, arguments TEXT NOT NULL);

CREATE TABLE broker_bindings (
    exchange TEXT NOT NULL,
    queue TEXT NOT NULL,
    pattern TEXT NOT NULL,
    PRIMARY KEY (exchange, queue, pattern)
);

CREATE TABLE broker_messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    exchange TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    properties TEXT NOT NULL,
    body BLOB NOT NULL,
    consumer TEXT,  -- who has it; null while it waits
    deliveries INTEGER NOT NULL DEFAULT 0
);

CREATE INDEX broker_waiting ON broker_messages (queue, id) WHERE consumer IS NULL;

CREATE INDEX broker_handed_over ON broker_messages (consumer) WHERE consumer IS NOT NULL;
