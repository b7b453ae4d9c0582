"""Run all cases, or those named on the command line, and print their tables."""

from __future__ import annotations

import importlib
import platform
import sys

CASES = {
    "startup": "how long commands take before they do anything",
    "waits": "ten thousand runs that wait for an event",
    "blocks": "a thousand steps in a loop, and as runs of their own",
    "events": "how fast the event log takes in what comes",
    "validate": "how `validate` grows with the number of files",
    "projections": "a million events: logged, folded into a read model, folded anew; and one thing's story among them",
    "emit": "from `flowrun emit` in one process to the run's beginning in another",
}


def main() -> int:
    names = sys.argv[1:] or list(CASES)
    for name in names:
        if name not in CASES:
            print(f"there is no case {name}; cases: {', '.join(CASES)}", file=sys.stderr)
            return 2
    print(f"Python {platform.python_version()}, {platform.machine()}, {platform.system()}\n")
    for name in names:
        print(f"## {name}: {CASES[name]}\n", flush=True)
        for line in importlib.import_module(f"benchmarks.{name}").measure():
            print(line, flush=True)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
