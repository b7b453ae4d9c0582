"""One hop, when one of a hundred orders, or one of ten, fails at its first try.

flowrun, Celery and Dramatiq try again after 100 ms; FastStream gives the message back to its queue at once.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import hops, peer, plot
from benchmarks.flowrun import Flowrun
from benchmarks.rounds import Scale, interleave, rate_table
from benchmarks.servers import Servers
from benchmarks.systems import System

EVENTS = 1_500
OURS: list[System] = [Flowrun(store="SQLite"), Flowrun(store="PostgreSQL")]
PEERS: list[System] = [peer.FASTSTREAM, peer.DRAMATIQ, peer.CELERY]


def compare(servers: Servers, scale: Scale) -> Iterator[str]:
    systems = OURS + (PEERS if scale.peers else [])
    for percent in (1, 10):
        contestants = hops.saturated(servers, systems, scale.of(EVENTS), kind="classic", failing_percent=percent)
        results = interleave(contestants, scale.rounds)
        yield f"{percent} % of the first tries fail:\n"
        yield from rate_table(results, what="events", base=peer.FASTSTREAM.name)
        title = f"One hop, {percent} % of first tries fail: events/s"
        yield from plot.rates(f"failing_{percent}", title, results, scale)
        yield ""
