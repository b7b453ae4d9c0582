"""Ten thousand runs that wait for an event: what they cost in memory, and how fast an event wakes its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import project, servers

RUNS = 10_000
WARM = 100
"""Runs that wait before memory is measured: what a worker takes on as it gets to work is not what waiting costs."""
ROUNDS = 20
PATIENCE_S = 300.0
FLOW = """
flow: f
events: {asked: {external: true}, answered: {external: true}}
routes: [{on: asked, to: ask}]
handlers:
  ask:
    steps:
      - {id: answer, wait_for: {event: answered, match: {n: "{{ event.n }}"}, timeout: 7d}}
"""


def measure() -> Iterator[str]:
    yield "| 10,000 runs asleep | worker's memory, MB (goal + ≤ 10) | from an event to its run, ms (goal ≤ 100) |"
    yield "| --- | --- | --- |"
    yield f"| embedded broker, SQLite | {' | '.join(figures())} |"
    with servers.both() as those:
        if those is not None:
            where = ("--broker", those.broker(), "--store", those.store())
            yield f"| RabbitMQ, PostgreSQL | {' | '.join(figures(*where))} |"


def figures(*where: str) -> tuple[str, str]:
    with tempfile.TemporaryDirectory(prefix="flowrun-bench-") as name:
        folder = Path(name)
        (folder / "flows").mkdir()
        (folder / "flows/f.yaml").write_text(FLOW)
        (folder / "warm.jsonl").write_text("".join(f'{{"n": {-1 - n}}}\n' for n in range(WARM)))
        (folder / "asked.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(RUNS - WARM)))
        process = project.start(folder, "--quiet", *where)
        project.run("emit", "asked", "--file", "warm.jsonl", *where, cwd=folder)
        waiting(folder, WARM, where)
        before = resident_mb(process)
        project.run("emit", "asked", "--file", "asked.jsonl", *where, cwd=folder)
        waiting(folder, RUNS, where)
        after = resident_mb(process)
        wakes = [wake_ms(folder, n, where) for n in range(ROUNDS)]
        process.terminate()
        process.communicate()
    memory = f"{before:.0f} → {after:.0f} (+{after - before:.0f})"
    return memory, f"{statistics.median(wakes):.0f} ({min(wakes):.0f}–{max(wakes):.0f}, {ROUNDS} events)"


def waiting(folder: Path, count: int, where: tuple[str, ...]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(runs(folder, where, "--state", "waiting", "--limit", str(count))) < count:
        assert time.monotonic() < deadline, "they do not come to wait"
        time.sleep(0.5)


def wake_ms(folder: Path, n: int, where: tuple[str, ...]) -> float:
    """From the event's time, which a UUIDv7 begins with (RFC 9562), to the end of the step that waited."""
    sent = json.loads(project.run("emit", "answered", "--data", f'{{"n": {n}}}', "--json", *where, cwd=folder))["id"]
    deadline = time.monotonic() + PATIENCE_S
    while len(runs(folder, where, "--state", "completed", "--limit", "10000")) <= n:
        assert time.monotonic() < deadline, "it was not woken"
        time.sleep(0.02)
    ended = [run["finished_at"] for run in runs(folder, where, "--state", "completed", "--limit", "10000")]
    latest = max(datetime.fromisoformat(moment).timestamp() for moment in ended)
    return latest * 1000 - int(sent.replace("-", "")[:12], 16)


def runs(folder: Path, where: tuple[str, ...], *filters: str) -> list[dict[str, Any]]:
    store = where[where.index("--store") :] if "--store" in where else ()
    found: list[dict[str, Any]] = json.loads(project.run("runs", "list", "--json", *filters, *store, cwd=folder))
    return found


def resident_mb(supervisor: subprocess.Popen[str]) -> float:
    """Of the worker, the only child."""
    [child] = subprocess.run(
        ["ps", "-o", "rss=", "--ppid", str(supervisor.pid)], check=True, capture_output=True, text=True
    ).stdout.split()
    return int(child) / 1024
