"""One hop at saturation, over quorum queues, for those that can use them."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import hops, peer, plot
from benchmarks.ceiling import ceiling
from benchmarks.flowrun import Flowrun
from benchmarks.rounds import Scale, interleave, rate_table
from benchmarks.servers import Servers
from benchmarks.systems import System

EVENTS = 5_000
OURS: list[System] = [Flowrun(store="SQLite"), Flowrun(store="PostgreSQL")]
PEERS: list[System] = [peer.FASTSTREAM, peer.AIO_PIKA, peer.TASKIQ, peer.CELERY]


def compare(servers: Servers, scale: Scale) -> Iterator[str]:
    systems = OURS + ([*PEERS, *ceiling()] if scale.peers else [])
    results = interleave(hops.saturated(servers, systems, scale.of(EVENTS)), scale.rounds)
    yield from rate_table(results, what="events", base=peer.FASTSTREAM.name)
    yield from plot.rates("hop", "One hop, quorum queues: events/s", results, scale)
