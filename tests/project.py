"""The shop, this repository's own project, in a folder of a test's own, and `flowrun` run on it as a user would."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

ROOT = Path(__file__).parent.parent
FLOWRUN = Path(sys.executable).parent / "flowrun"
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Shop:
    """The repository's own project, with store and service databases below `folder`."""

    folder: Path
    broker: str = "embedded:"
    root: Path = ROOT
    store: str | None = None
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __enter__(self) -> Shop:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing that a failed test started goes on."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    @property
    def environment(self) -> dict[str, str]:
        """What every command gets."""
        return {
            **os.environ,
            "FLOWRUN_BROKER": self.broker,
            "FLOWRUN_STORE": self.store or f"sqlite:{self.folder}/shop.db",
            "SHOP_DATA": str(self.folder / "data"),
        }

    def run(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run(
            [FLOWRUN, *arguments],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            **options,
        )
        assert not check or done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def json(self, *arguments: str) -> Any:
        """What a command prints with --json."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin `flowrun start`, and return without waiting."""
        return self.begin("start", *arguments)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin a command, and return without waiting."""
        process = subprocess.Popen(
            [FLOWRUN, *arguments],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def query(self, service: str, sql: str) -> list[tuple[Any, ...]]:
        """Ask a service's database, or `shop` for the store's own; no rows while it is not there."""
        if service == "shop" and self.store is not None:
            return asyncio.run(_query_postgres(self.store, sql))
        path = self.folder / ("shop.db" if service == "shop" else f"data/{service}.db")
        if not path.exists():
            return []
        connection = sqlite3.connect(path, timeout=10)
        try:
            return connection.execute(sql).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise
        finally:
            connection.close()


async def _query_postgres(url: str, sql: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url, server_settings={"search_path": "shop"})
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    except asyncpg.UndefinedTableError:
        return []
    finally:
        await connection.close()


def wait_until(condition: Callable[[], bool], *, alive: subprocess.Popen[str] | None = None) -> None:
    """Return once the condition holds; fail if it does not within PATIENCE_S, or if the process ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert alive is None or alive.poll() is None, f"ended with {alive.returncode}:\n{alive.stdout.read()}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def wait_for_line(process: subprocess.Popen[str], text: str) -> list[str]:
    """Read the process's output up to the line that holds `text`."""
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f'"{text}" was not said:\n' + "".join(lines))


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str]:
    """Send a signal, wait for the end; exit code and the rest of the output."""
    process.send_signal(number)
    assert process.stdout is not None
    output = process.stdout.read()
    process.wait(PATIENCE_S)
    return process.returncode, output
