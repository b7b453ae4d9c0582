"""One hop at 100 orders a second: from the making of an order to what was made of it."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import hops, peer, plot
from benchmarks.flowrun import Flowrun
from benchmarks.rounds import Scale, interleave, latency_table
from benchmarks.servers import Servers
from benchmarks.systems import System

EVENTS = 400
RATE = 100.0
OURS: list[System] = [Flowrun(store="SQLite"), Flowrun(store="PostgreSQL")]
PEERS: list[System] = [peer.FASTSTREAM, peer.AIO_PIKA, peer.TASKIQ, peer.CELERY]


def compare(servers: Servers, scale: Scale) -> Iterator[str]:
    systems = OURS + (PEERS if scale.peers else [])
    results = interleave(hops.at_rate(servers, systems, scale.of(EVENTS), RATE), scale.rounds)
    yield from latency_table(results, base=peer.FASTSTREAM.name)
    yield from plot.latencies("hop_latency", "One hop at 100/s: p99, ms", results, scale)
