"""The way from `flowrun emit` in one process to `flowrun start` in another, on the embedded broker."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import project

ROUNDS = 20


def measure() -> Iterator[str]:
    with project.new_project() as folder:
        process = project.start(folder)
        project.wait_for(process, "ready:")
        for number in range(ROUNDS):
            project.run("emit", "greeting.requested", "--data", json.dumps({"name": f"n{number}"}), cwd=folder)
            project.wait_for(process, "completed")
        process.terminate()
        process.communicate()
        waits = [wait_ms(run) for run in runs(folder)]
    yield f"| | median ms | min–max | goal |  ({len(waits)} events; from the event's time to the run's beginning)"
    yield "| --- | --- | --- | --- |"
    yield f"| emit → run begins | {statistics.median(waits):.0f} | {min(waits):.0f}–{max(waits):.0f} | ≤ 100 |"


def runs(folder: Path) -> list[dict[str, Any]]:
    command = [project.FLOWRUN, "runs", "list", "--json"]
    listed = subprocess.run(command, cwd=folder, env=project.environment(), check=True, stdout=subprocess.PIPE)
    found: list[dict[str, Any]] = json.loads(listed.stdout)
    return found


def wait_ms(run: dict[str, Any]) -> float:
    """UUIDv7 begins with the milliseconds of its making (RFC 9562): the moment of the emit."""
    emitted = int(run["trigger"]["id"].replace("-", "")[:12], 16)
    return datetime.fromisoformat(run["started_at"]).timestamp() * 1000 - emitted
