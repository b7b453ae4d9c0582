"""One hop at saturation, by one process, by two and by four, where broker and store want the cores too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks import hops, peer, plot
from benchmarks.flowrun import Flowrun
from benchmarks.rounds import Scale, interleave, rate_table
from benchmarks.servers import Servers
from benchmarks.systems import System

EVENTS = 2_500
BASE = "aio-pika, by hand × 1"


def compare(servers: Servers, scale: Scale) -> Iterator[str]:
    systems: list[System] = []
    for processes in (1, 2, 4):
        label = f" × {processes}"
        systems += [Flowrun(store=store, processes=processes, label=label) for store in ("SQLite", "PostgreSQL")]
        if scale.peers:
            systems += [
                replace(each, processes=processes, name=each.name + label) for each in (peer.FASTSTREAM, peer.AIO_PIKA)
            ]
    results = interleave(hops.saturated(servers, systems, scale.of(EVENTS)), scale.rounds)
    yield from rate_table(results, what="events", base=BASE)
    yield from plot.rates("workers", "One hop by one process, by two and by four: events/s", results, scale)
