"""A thousand steps as rounds of one `foreach`, one and twenty at a time, and as a thousand runs of their own."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from benchmarks import project

STEPS = 1_000
ROUNDS = 3
FLOW = """
flow: f
events: {one: {external: true}, twenty: {external: true}, alone: {external: true}}
routes: [{on: one, to: one}, {on: twenty, to: twenty}, {on: alone, to: alone}]
handlers:
  one:
    steps: [{foreach: {in: event.items, do: [{use: log, with: {message: x, level: debug}}]}}]
  twenty:
    steps: [{foreach: {in: event.items, concurrency: 20, do: [{use: log, with: {message: x, level: debug}}]}}]
  alone:
    steps: [{use: log, with: {message: x, level: debug}}]
"""


def measure() -> Iterator[str]:
    kinds = {
        "one": "rounds of a `foreach`, one at a time",
        "twenty": "rounds of a `foreach`, twenty at a time",
        "alone": "runs of their own",
    }
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind in kinds:
            rates[kind].append(rate(kind))
    base = statistics.median(rates["alone"])
    yield f"| {STEPS:,} `use` steps, embedded broker, SQLite | steps/s, median (min–max) | × runs of their own |"
    yield "| --- | --- | --- |"
    for kind, says in kinds.items():
        median, low, high = statistics.median(rates[kind]), min(rates[kind]), max(rates[kind])
        yield f"| {says} | {median:.0f} ({low:.0f}–{high:.0f}) | {median / base:.1f} |"


def rate(kind: str) -> float:
    """Steps a second, from the first run's beginning to the last one's end."""
    with tempfile.TemporaryDirectory(prefix="flowrun-bench-") as name:
        folder = Path(name)
        (folder / "flows").mkdir()
        (folder / "flows/f.yaml").write_text(FLOW)
        payload = json.dumps({"items": list(range(STEPS))}) if kind != "alone" else "{}"
        (folder / "events.jsonl").write_text(f"{payload}\n" * (1 if kind != "alone" else STEPS))
        project.run("emit", kind, "--file", "events.jsonl", cwd=folder)
        project.run("start", "--until-idle", "--quiet", cwd=folder)
        runs = json.loads(project.run("runs", "list", "--json", "--limit", "10000", cwd=folder))
        assert {run["state"] for run in runs} == {"completed"}
        begun = min(datetime.fromisoformat(run["started_at"]) for run in runs)
        ended = max(datetime.fromisoformat(run["finished_at"]) for run in runs)
        return STEPS / (ended - begun).total_seconds()
