"""One hop with an empty store, and with a million events and the runs that came of them in it."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Iterator

import asyncpg

from benchmarks import hops
from benchmarks.flowrun import PROJECT, Flowrun
from benchmarks.rounds import Scale, interleave, rate_table
from benchmarks.servers import Servers
from benchmarks.systems import System
from runner.sqlite_file import SqliteFile
from runner.stores.postgres import PostgresStore
from runner.stores.sqlite import SqliteStore

HOPS = 2_500
EVENTS, RUNS = 1_000_000, 250_000
FULL = ", grown"

# Ids in the order of time, as UUIDv7 are; a hundred thousand subjects. A run's id is a hash.
SQLITE = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {events})
INSERT INTO events (id, type, source, subject, version, time, correlation_id, data)
SELECT printf('018f0000-0000-7000-8000-%012d', i), 'order.accepted', '/flowrun/bench/orders',
    'order/' || (i % 100000), 1 + i / 100000, '2026-11-24T09:00:00.000Z', printf('018f-%012d', i / 2),
    CAST('{{"order_id": "as long as many a payload is, more or less"}}' AS BLOB)
FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {runs})
INSERT INTO runs (id, flow, handler, plan_hash, state, trigger, trace, data, started_at, finished_at)
SELECT lower(hex(randomblob(16))), 'orders', 'orders.accept', 'c9b4d3e61d554201', 'completed', '{{}}', '{{}}', x'7b7d',
    '2026-11-24T09:00:00.000Z', '2026-11-24T09:00:01.000Z'
FROM n ORDER BY 1;
ANALYZE;
"""
POSTGRES = """
INSERT INTO {schema}.events (id, type, source, subject, version, time, correlation_id, data)
SELECT '018f0000-0000-7000-8000-' || lpad(i::text, 12, '0'), 'order.accepted', '/flowrun/bench/orders',
    'order/' || (i % 100000), 1 + i / 100000, '2026-11-24T09:00:00.000Z', '018f-' || lpad((i / 2)::text, 12, '0'),
    '{{"order_id": "as long as many a payload is, more or less"}}'::bytea
FROM generate_series(1, {events}) AS i;
INSERT INTO {schema}.runs (id, flow, handler, plan_hash, state, trigger, trace, data, started_at, finished_at)
SELECT md5(i::text), 'orders', 'orders.accept', 'c9b4d3e61d554201', 'completed', '{{}}', '{{}}', '{{}}'::bytea,
    '2026-11-24T09:00:00.000Z', '2026-11-24T09:00:01.000Z'
FROM generate_series(1, {runs}) AS i;
"""


def compare(servers: Servers, scale: Scale) -> Iterator[str]:
    count, sizes = scale.of(HOPS), {"events": scale.of(EVENTS), "runs": scale.of(RUNS)}
    with tempfile.TemporaryDirectory(prefix="flowrun-bench-") as folder:
        full = {
            "SQLite": asyncio.run(grown_sqlite(f"{folder}/grown.db", sizes)),
            "PostgreSQL": asyncio.run(grown_postgres(servers.store(), sizes)),
        }
        for number, (store, url) in enumerate(full.items()):
            empty = Flowrun(store=store)
            systems: list[System] = [Flowrun(store=store, kept_in=url, label=FULL), empty]
            results = interleave(hops.saturated(servers, systems, count), scale.rounds)
            yield from [""] * (number > 0)
            yield from rate_table(results, what="events", base=empty.name)


async def grown_sqlite(path: str, sizes: dict[str, int]) -> str:
    """The URL of a store that holds that much."""
    async with SqliteStore(SqliteFile(path)):
        pass
    with sqlite3.connect(path) as connection:
        connection.executescript(SQLITE.format(**sizes))
    connection.close()
    return f"sqlite:{path}"


async def grown_postgres(url: str, sizes: dict[str, int]) -> str:
    """The same in PostgreSQL, which is told what its tables have become, as autovacuum would do in a minute."""
    async with PostgresStore(url, PROJECT):
        pass
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(POSTGRES.format(schema=PROJECT, **sizes))
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
    return url
