"""What the bench tells a peer, and how a peer whose messages have a form of their own answers to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

from benchmarks import orders

BROKER = os.environ["BENCH_BROKER"]
KIND = os.environ["BENCH_KIND"]
"""Of the queues: `quorum` or `classic`."""
QUEUES = os.environ["BENCH_QUEUES"].split(",")
PREFETCH = 100


def main(
    *, worker: Callable[[], object], declare: Callable[[], object], produce: Callable[[Iterator[orders.Order]], object]
) -> None:
    """`worker`, `declare`, or `produce COUNT RATE FAILING_PERCENT`; a rate of 0 is as fast as it goes."""
    match sys.argv[1:]:
        case ["worker"]:
            worker()
        case ["declare"]:
            declare()
        case ["produce", count, rate, failing]:
            produce(orders.at_rate(int(count), float(rate) or None, int(failing)))
        case other:
            raise SystemExit(f"unknown: {other}")
