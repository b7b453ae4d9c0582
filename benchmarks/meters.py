"""CPU and memory of a process and all that it started, as Linux tells it in /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Reading:
    """Seconds, of the clock and of CPU, at one moment."""

    at: float
    worker_s: float
    broker_s: float
    store_s: float


def read(workers: list[int], broker: int | None, store: int | None) -> Reading:
    """The meters now; each of the processes counts with what it started."""
    return Reading(
        at=time.perf_counter(),
        worker_s=sum(cpu_s(pid) for pid in workers),
        broker_s=cpu_s(broker) if broker is not None else 0.0,
        store_s=cpu_s(store) if store is not None else 0.0,
    )


def cpu_s(pid: int) -> float:
    """Seconds of CPU, of those that have ended and were waited for as well."""
    ticks = 0
    for each in _tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            # The name, in brackets, may hold spaces; utime, stime, cutime and cstime are fields 14 to 17.
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICKS_A_SECOND


def peak_mb(pids: list[int]) -> float:
    """The most memory that each of them held, together."""
    return sum(_status_kb(each, "VmHWM") for pid in pids for each in _tree(pid)) / 1024


def _status_kb(pid: int, name: str) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return 0


def children(pid: int) -> list[int]:
    """Of that process itself."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for child in children(pid):
        yield from _tree(child)
