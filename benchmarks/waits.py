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

from benchmarks import project

RUNS = 10_000
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
    with tempfile.TemporaryDirectory(prefix="flowrun-bench-") as name:
        folder = Path(name)
        (folder / "flows").mkdir()
        (folder / "flows/f.yaml").write_text(FLOW)
        (folder / "asked.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(RUNS)))
        process = project.start(folder, "--quiet")
        project.run("emit", "asked", "--data", '{"n": -1}', cwd=folder)
        waiting(folder, 1)
        before = resident_mb(process)
        project.run("emit", "asked", "--file", "asked.jsonl", cwd=folder)
        waiting(folder, RUNS)
        after = resident_mb(process)
        wakes = [wake_ms(folder, n) for n in range(ROUNDS)]
        process.terminate()
        process.communicate()
    yield f"| embedded broker, SQLite, {RUNS:,} runs asleep | | goal |"
    yield "| --- | --- | --- |"
    yield f"| worker's memory, MB | {before:.0f} → {after:.0f} (+{after - before:.0f}) | + ≤ 10 |"
    shown = f"{statistics.median(wakes):.0f} ({min(wakes):.0f}–{max(wakes):.0f}, {ROUNDS} events)"
    yield f"| event's time → its run goes on, ms | {shown} | ≤ 100 |"


def waiting(folder: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(runs(folder, "--state", "waiting", "--limit", str(count))) < count:
        assert time.monotonic() < deadline, "they do not come to wait"
        time.sleep(0.5)


def wake_ms(folder: Path, n: int) -> float:
    """From the event's time, which a UUIDv7 begins with (RFC 9562), to the end of the step that waited."""
    sent = json.loads(project.run("emit", "answered", "--data", f'{{"n": {n}}}', "--json", cwd=folder))["id"]
    deadline = time.monotonic() + PATIENCE_S
    while len(runs(folder, "--state", "completed", "--limit", "10000")) <= n:
        assert time.monotonic() < deadline, "it was not woken"
        time.sleep(0.02)
    ended = [run["finished_at"] for run in runs(folder, "--state", "completed", "--limit", "10000")]
    latest = max(datetime.fromisoformat(moment).timestamp() for moment in ended)
    return latest * 1000 - int(sent.replace("-", "")[:12], 16)


def runs(folder: Path, *filters: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(project.run("runs", "list", "--json", *filters, cwd=folder))
    return found


def resident_mb(supervisor: subprocess.Popen[str]) -> float:
    """Of the worker, the only child."""
    [child] = subprocess.run(
        ["ps", "-o", "rss=", "--ppid", str(supervisor.pid)], check=True, capture_output=True, text=True
    ).stdout.split()
    return int(child) / 1024
