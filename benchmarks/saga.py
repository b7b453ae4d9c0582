"""Runs of three steps at saturation: flowrun from queue to queue, DBOS and Restate without a broker."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import hops, plot, sagas
from benchmarks.rounds import Contestant, Scale, interleave, rate_table
from benchmarks.servers import Servers

RUNS, DBOS_RUNS, RESTATE_RUNS = 3_000, 300, 800


def compare(servers: Servers, scale: Scale) -> Iterator[str]:
    ours = hops.saturated(servers, [sagas.POSTGRES], scale.of(RUNS))
    peers = [sagas.dbos_postgres(servers, DBOS_RUNS), sagas.restate(servers, RESTATE_RUNS)]
    yield from _table("saga_postgres", "PostgreSQL", ours, peers, sagas.BASE_POSTGRES, scale)
    yield ""
    ours = hops.saturated(servers, [sagas.SQLITE], scale.of(RUNS))
    yield from _table("saga_sqlite", "SQLite", ours, [sagas.dbos_sqlite(servers, DBOS_RUNS)], sagas.BASE_SQLITE, scale)


def _table(
    name: str, store: str, ours: list[Contestant], peers: list[Contestant], base: str, scale: Scale
) -> Iterator[str]:
    results = interleave(ours + (peers if scale.peers else []), scale.rounds)
    yield from rate_table(results, what="runs", base=base)
    yield from plot.rates(name, f"Runs of three steps, {store}: runs/s", results, scale)
