"""A fresh project in a temporary folder, and the commands run on it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.rounds import BenchError

FLOWRUN = Path(sys.executable).parent / "flowrun"


def environment() -> dict[str, str]:
    """As a user's shell has it: no settings of flowrun, and byte code cached."""
    hidden = ("PYTHONDONTWRITEBYTECODE", "FLOWRUN_BROKER", "FLOWRUN_STORE")
    return {key: value for key, value in os.environ.items() if key not in hidden}


@contextmanager
def new_project() -> Iterator[Path]:
    """A project as `flowrun init` makes it."""
    with tempfile.TemporaryDirectory(prefix="flowrun-bench-") as folder:
        run("init", "hello", cwd=Path(folder))
        yield Path(folder) / "hello"


def run(*arguments: str, cwd: Path) -> str:
    """Run a command to its end; what it printed."""
    command = [FLOWRUN, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment(), check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"flowrun {' '.join(arguments)} ended with {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def start(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    """`flowrun start`; its log comes by the pipe."""
    command = [FLOWRUN, "start", *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Return when the process has said it."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise BenchError(f'"{text}" was never said')
