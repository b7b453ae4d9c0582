"""The fault suite at full size, and the table of what it did: `make faults`, `make faults FAULT=kill`."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 3600
HEAD = "| fault | times | messages confirmed | lost | doubled | stuck | back at work after: median | max | |"
NUMBERS = 7
Row = Mapping[str, Any]


def main() -> int:
    fault = sys.argv[1] if len(sys.argv) > 1 else ""
    with tempfile.TemporaryDirectory(prefix="flowrun-faults-") as folder:
        rows = Path(folder) / "rows.jsonl"
        code = run(rows, fault)
        found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    print(f"\n{versions()}\n\n" + "\n".join(table(found)))
    return code


def run(rows: Path, fault: str) -> int:
    """Run the suite, all of it or what `fault` names; returns pytest's exit code."""
    environment = {**os.environ, "FLOWRUN_FAULTS": "large", "FLOWRUN_FAULTS_TABLE": str(rows)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/faults",
        "-o",
        f"timeout={TIMEOUT_S}",
        "-v",
        "--durations=0",
        "-k",
        fault,
    ]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def table(rows: Iterable[Row]) -> list[str]:
    """The rows as Markdown."""
    return [HEAD, "| --- |" + " ---: |" * NUMBERS + " --- |", *(line(row) for row in rows)]


def line(row: Row) -> str:
    """One row, as `harness.record_row` wrote it."""
    back = sorted(row["recovery_s"])
    times = (f"{statistics.median(back):.1f} s", f"{back[-1]:.1f} s") if back else ("", "")
    stuck = row["stuck"] + row["unsent"]
    counts = (row["times"], row["confirmed"], row["lost"], row["doubled"], stuck)
    cells = [row["fault"], *(f"{count:,}" for count in counts), *times, row["note"]]
    return "| " + " | ".join(cells) + " |"


def versions() -> str:
    """What the numbers were measured on."""
    sys.path.insert(0, str(ROOT / "tests"))
    from services import find_postgres, find_rabbitmq

    sbin, programs = find_rabbitmq(), find_postgres()
    rabbitmq = re.search(r"rabbitmq_server-([\d.]+)", str(sbin))
    answer = [str(programs / "postgres"), "--version"] if programs is not None else ["true"]
    postgres = re.search(r"[\d.]+", subprocess.run(answer, capture_output=True, text=True, check=False).stdout)
    system = platform.freedesktop_os_release()["PRETTY_NAME"] if sys.platform == "linux" else platform.platform()
    return ", ".join(
        [
            f"Python {platform.python_version()}",
            f"RabbitMQ {rabbitmq[1] if rabbitmq else '—'}",
            f"PostgreSQL {postgres[0] if postgres else '—'}",
            f"{system} on {os.cpu_count()} cores",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
