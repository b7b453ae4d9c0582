"""An order that ten handlers take: what each of them sends on counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks import hops, peer, plot
from benchmarks.flowrun import EVENTS as DECLARED
from benchmarks.flowrun import Flowrun
from benchmarks.rounds import Scale, interleave, rate_table
from benchmarks.servers import Servers
from benchmarks.systems import System

HANDLERS = 10
EVENTS = 1_500
NAMES = ["accept", *(f"accept_{number}" for number in range(2, HANDLERS + 1))]
STEPS = """
    steps:
      - {id: price, use: orders.price, with: {order: "{{ event }}"}}
      - {emit: order.accepted, with: "{{ steps.price.output }}"}
"""
FLOW = f"""{DECLARED}
routes: [{{on: order.placed, to: [{", ".join(NAMES)}]}}]
handlers:
{"".join(f"  {name}:{STEPS}" for name in NAMES)}
"""
QUEUES = tuple(f"{peer.IN}-{number}" for number in range(HANDLERS))
OURS: list[System] = [Flowrun(store=store, flow=FLOW) for store in ("SQLite", "PostgreSQL")]
PEERS: list[System] = [replace(each, queues=QUEUES) for each in (peer.FASTSTREAM, peer.AIO_PIKA)]


def compare(servers: Servers, scale: Scale) -> Iterator[str]:
    systems = OURS + (PEERS if scale.peers else [])
    results = interleave(hops.saturated(servers, systems, scale.of(EVENTS), each_gives=HANDLERS), scale.rounds)
    yield from rate_table(results, what="handled", base=peer.FASTSTREAM.name)
    yield from plot.rates("fanout", "An order to ten handlers: handled/s", results, scale)
