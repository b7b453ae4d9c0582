"""Start-up times: interleaved rounds, medians, beside a bare Python of the same machine and moment."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import project

ROUNDS = 15
GOALS_MS = {"flowrun --version": 80, "flowrun validate (one file)": 200, "flowrun start, until ready": 300}


def measure() -> Iterator[str]:
    with project.new_project() as folder:
        cases: dict[str, Callable[[], float]] = {
            "python -c pass": lambda: timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True)),
            "flowrun --version": lambda: timed(lambda: project.run("--version", cwd=folder)),
            "flowrun validate (one file)": lambda: timed(lambda: project.run("validate", cwd=folder)),
            "flowrun start, until ready": lambda: until_ready(folder),
        }
        for case in cases.values():
            case()  # byte code, page cache
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(ROUNDS):
            for name, case in cases.items():
                times[name].append(case())
    yield f"| command | median ms | min–max | goal | × bare python |  ({ROUNDS} interleaved rounds)"
    yield "| --- | --- | --- | --- | --- |"
    bare = statistics.median(times["python -c pass"])
    for name, taken in times.items():
        middle = statistics.median(taken)
        goal = f"≤ {GOALS_MS[name]}" if name in GOALS_MS else ""
        spread = f"{min(taken) * 1e3:.0f}–{max(taken) * 1e3:.0f}"
        yield f"| {name} | {middle * 1e3:.0f} | {spread} | {goal} | {middle / bare:.1f} |"


def timed(call: Callable[[], object]) -> float:
    """Seconds."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def until_ready(folder: Path) -> float:
    """Seconds from typing `flowrun start` until it consumes, on the embedded broker."""
    begin = time.perf_counter()
    process = project.start(folder)
    project.wait_for(process, "ready:")
    taken = time.perf_counter() - begin
    process.terminate()
    process.communicate()
    return taken
