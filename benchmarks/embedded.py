"""flowrun without a server: everything in one SQLite file. Beside it DBOS, which needs no server either."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime
from functools import partial

from benchmarks import orders, plot, project, sagas
from benchmarks.flowrun import HOP, PROJECT, SAGA, project_of
from benchmarks.rounds import BenchError, Contestant, Figures, Scale, interleave, rate_table
from benchmarks.servers import Servers

RUNS, DBOS_RUNS = 2_000, 150
HERE = ["--broker", "embedded:", "--store", f"sqlite:.flowrun/{PROJECT}.db"]


def compare(servers: Servers, scale: Scale) -> Iterator[str]:
    count = scale.of(RUNS)
    contestants = [
        Contestant(
            name=f"flowrun, {what}",
            guarantees="each message once, no recorded step again, retries, undoing, events kept; fsync",
            measure=partial(_measure, flow, count),
        )
        for what, flow in (("hop", HOP), ("three steps", SAGA))
    ]
    if scale.peers:
        contestants.append(sagas.dbos_sqlite(servers, DBOS_RUNS))
    results = interleave(contestants, scale.rounds)
    yield from rate_table(results, what="runs", base=sagas.BASE_SQLITE)
    yield from plot.rates("embedded", "Without a server: runs/s", results, scale)


def _measure(flow: str, count: int) -> Figures:
    """From the beginning of the first run to the end of the last; the CPU is that of the whole process."""
    with project_of(flow) as folder:
        lines = (orders.encode(order).decode() for order in orders.at_rate(count, None, 0))
        (folder / "orders.jsonl").write_text("\n".join(lines))
        project.run("emit", "order.placed", "--file", "orders.jsonl", *HERE, cwd=folder)
        with project.start(folder, "--quiet", "--until-idle", *HERE) as process:
            assert process.stderr is not None
            said = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise BenchError(f"flowrun start ended with {os.waitstatus_to_exitcode(status)}: {said[-1000:]}")
        runs = json.loads(project.run("runs", "list", "--json", "--limit", str(count), *HERE[2:], cwd=folder))
    if len(runs) < count or any(run["state"] != "completed" for run in runs):
        raise BenchError(f"not all of {count:,} runs completed")
    began = min(datetime.fromisoformat(run["started_at"]) for run in runs)
    ended = max(datetime.fromisoformat(run["finished_at"]) for run in runs)
    return Figures(
        rate=count / (ended - began).total_seconds(),
        worker_us=(usage.ru_utime + usage.ru_stime) / count * 1e6,
        broker_us=0,
        store_us=0,
        peak_mb=usage.ru_maxrss / 1024,
    )
