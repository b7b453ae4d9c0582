"""Runs of three steps, twenty a second: how long each takes, for flowrun both ways over the broker included."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import hops, plot, sagas
from benchmarks.rounds import Contestant, Scale, interleave, latency_table
from benchmarks.servers import Servers

RUNS = 120
RATE = 20.0


def compare(servers: Servers, scale: Scale) -> Iterator[str]:
    count = scale.of(RUNS)
    contestants = hops.at_rate(servers, [sagas.POSTGRES, sagas.SQLITE], count, RATE)
    peers: list[Contestant] = [
        sagas.dbos_postgres(servers, count, rate=RATE),
        sagas.dbos_sqlite(servers, count, rate=RATE),
        sagas.restate(servers, count, rate=RATE),
    ]
    results = interleave(contestants + (peers if scale.peers else []), scale.rounds)
    yield from latency_table(results, base=sagas.BASE_POSTGRES)
    yield from plot.latencies("saga_latency", "Runs of three steps at 20/s: p99, ms", results, scale)
