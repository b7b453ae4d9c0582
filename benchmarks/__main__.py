"""Run all cases, or those named on the command line, and print their tables."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterable

from benchmarks import peer, servers
from benchmarks.rounds import BenchError, Scale

ALONE = {
    "startup": "how long commands take before they do anything",
    "waits": "ten thousand runs that wait for an event",
    "blocks": "a thousand steps in a loop, and as runs of their own",
    "events": "how fast the event log takes in what comes",
    "validate": "how `validate` grows with the number of files",
    "projections": "a million events: logged, folded into a read model, folded anew; and one thing's story among them",
    "emit": "from `flowrun emit` in one process to the run's beginning in another",
}
BESIDE_PEERS = {
    "hop": "an order taken, checked, handled, sent on confirmed and acknowledged, as fast as it goes; quorum queues",
    "hop_classic": "the same over classic queues",
    "hop_latency": "the same, 100 orders a second",
    "saga": "runs of three steps, each kept before the next begins, as fast as it goes",
    "saga_latency": "the same, 20 runs a second",
    "workers": "a hop by one process, by two and by four",
    "failing": "a hop that fails for some of the orders when it is first tried",
    "fanout": "an order that ten handlers take",
    "embedded": "hops and runs of three steps without a server: embedded broker, SQLite",
    "grown": "a hop with an empty store and with a million events in it",
    "traffic": "what a handler's limits, order and breaker cost a hop; and an order of many keys beside one of few",
    "resume": "a thousand runs that were in the middle when their process was killed",
}


def main() -> int:
    known = ALONE | BESIDE_PEERS
    names = sys.argv[1:] or list(known)
    for name in names:
        if name not in known:
            print(f"there is no case {name}; cases: {', '.join(known)}", file=sys.stderr)
            return 2
    print(f"Python {platform.python_version()}, {platform.machine()}, {platform.system()}\n")
    for name in names:
        if name in ALONE:
            show(name, importlib.import_module(f"benchmarks.{name}").measure())
    beside = [name for name in names if name in BESIDE_PEERS]
    if not beside:
        return 0
    peer.install()
    with servers.both() as those:
        if those is None:
            print("RabbitMQ or PostgreSQL is not installed: `make services` does it", file=sys.stderr)
            return 1
        for name in beside:
            show(name, importlib.import_module(f"benchmarks.{name}").compare(those, Scale()))
    return 0


def show(name: str, lines: Iterable[str]) -> None:
    """A case's heading, and each line as soon as it is known."""
    print(f"## {name}: {(ALONE | BESIDE_PEERS)[name]}\n", flush=True)
    try:
        for line in lines:
            print(line, flush=True)
    except BenchError as error:  # the other cases can be measured all the same
        print(f"failed: {error}", flush=True)
    print()


if __name__ == "__main__":
    sys.exit(main())
