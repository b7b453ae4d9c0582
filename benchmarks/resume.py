"""A thousand runs in the middle of a step when their process is killed: how long until all of them have ended."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import amqp, meters, project
from benchmarks.flowrun import EVENTS, Flowrun
from benchmarks.rounds import BenchError, Scale
from benchmarks.servers import Servers
from benchmarks.systems import OUT

RUNS = 1_000
PATIENCE_S = 90.0
FLOW = f"""{EVENTS}
routes: [{{on: order.placed, to: accept}}]
handlers:
  accept:
    concurrency: {RUNS}
    steps:
      - {{id: reserve, use: orders.reserve, with: {{order_id: "{{{{ event.order_id }}}}"}}, irreversible: true}}
      - {{use: orders.linger, with: {{}}, irreversible: true}}
      - {{emit: order.accepted, with: "{{{{ event }}}}"}}
"""


def compare(servers: Servers, scale: Scale) -> Iterator[str]:
    count = scale.of(RUNS)
    yield f"| {count:,} runs in flight | seconds from the kill to the last run's end, median (min–max) | goal |"
    yield "| --- | --- | --- |"
    for store in ("SQLite", "PostgreSQL"):
        for what, all_of_them in (("the worker is killed", False), ("all is killed, and started anew", True)):
            took = [resumed_s(servers, store, count, all_of_them=all_of_them) for _ in range(scale.rounds)]
            spread = f"{statistics.median(took):.1f} ({min(took):.1f}–{max(took):.1f})"
            yield f"| {store}: {what} | {spread} | ≤ 3 |"


def resumed_s(servers: Servers, store: str, count: int, *, all_of_them: bool) -> float:
    with Flowrun(store=store, flow=FLOW).set_up(servers, "quorum") as session:
        session.produce(count)
        with session.start() as first:
            amqp.wait_for_consumer(session.broker, session.queue, first.check)
            _wait_until_running(session.folder, session.store, count)
            (session.folder / "crashed").touch()
            killed_at = time.monotonic()
            if all_of_them:
                first.kill()
                with session.start() as second:
                    amqp.wait_for_depth(session.broker, OUT, count, second.check)
            else:
                for child in meters.children(first.pids[0]):
                    os.kill(child, signal.SIGKILL)
                amqp.wait_for_depth(session.broker, OUT, count, first.check)
            return time.monotonic() - killed_at


def _wait_until_running(folder: Path, store: str, count: int) -> None:
    """All of them, and in their second step."""
    deadline = time.monotonic() + PATIENCE_S
    asked = ["runs", "list", "--state", "running", "--json", "--limit", str(count), "--store", store]
    while len(json.loads(project.run(*asked, cwd=folder))) < count:
        if time.monotonic() > deadline:
            raise BenchError("they do not come to run")
        time.sleep(0.2)
    time.sleep(1)
