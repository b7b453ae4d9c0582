"""Runs of three steps, each kept before the next begins.

flowrun does them from queue to queue over RabbitMQ; DBOS and Restate are called, without a broker.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from benchmarks import meters
from benchmarks.flowrun import SAGA, Flowrun
from benchmarks.peer import HOME, PYTHON, ROOT
from benchmarks.rounds import BenchError, Contestant, Figures, figures
from benchmarks.servers import Servers, free_port
from benchmarks.systems import Workers

POSTGRES = Flowrun(store="PostgreSQL", flow=SAGA)
SQLITE = Flowrun(store="SQLite", flow=SAGA)
RESTATE_SERVER = HOME / "node_modules/.bin/restate-server"
BASE_POSTGRES, BASE_SQLITE = "DBOS, PostgreSQL", "DBOS, SQLite"


def dbos_postgres(servers: Servers, count: int, *, threads: int = 16, rate: float = 0) -> Contestant:
    def measure() -> Figures:
        return _dbos(servers, servers.store(), count, threads, rate)

    return _contestant(BASE_POSTGRES, "steps kept in PostgreSQL; no broker, no events; fsync", measure)


def dbos_sqlite(servers: Servers, count: int, *, threads: int = 4, rate: float = 0) -> Contestant:
    def measure() -> Figures:
        with tempfile.TemporaryDirectory(prefix="flowrun-bench-") as folder:
            return _dbos(servers, f"sqlite:///{folder}/dbos.db", count, threads, rate)

    return _contestant(BASE_SQLITE, "steps kept in SQLite; no broker, no events", measure)


def restate(servers: Servers, count: int, *, at_once: int = 32, rate: float = 0) -> Contestant:
    """Its server counts as worker, as does its service; its client does not."""

    def measure() -> Figures:
        ports = {name: free_port() for name in ("ingress", "admin", "node", "service")}
        with tempfile.TemporaryDirectory(prefix="flowrun-bench-") as folder:
            server = [RESTATE_SERVER, "--base-dir", folder]
            service = [PYTHON, "-m", "benchmarks.peers.restate", "serve", str(ports["service"])]
            with Workers([server, service], ROOT, _restate_environment(ports)) as workers:
                urls = [f"http://127.0.0.1:{ports[name]}" for name in ("ingress", "admin", "service")]
                command = ["benchmarks.peers.restate", "call", *urls, str(count), str(at_once), str(rate)]
                with _caller(command) as caller:
                    return _between_its_words(servers, caller, workers.pids, count)

    return _contestant("Restate", "steps kept in its own log; HTTP, no broker, no events", measure)


def _dbos(servers: Servers, store: str, count: int, threads: int, rate: float) -> Figures:
    with _caller(["benchmarks.peers.dbos", store, str(count), str(threads), str(rate)]) as caller:
        return _between_its_words(servers, caller, [caller.pid], count)


def _between_its_words(servers: Servers, caller: subprocess.Popen[str], pids: list[int], count: int) -> Figures:
    assert caller.stdout is not None
    _say(caller.stdout, "begin")
    before = servers.read(pids)
    took = json.loads(_say(caller.stdout, "end"))
    return figures(count, before, servers.read(pids), meters.peak_mb(pids), took)


def _say(said: IO[str], word: str) -> str:
    """What follows that word."""
    for line in said:
        first, _, rest = line.partition(" ")
        if first.strip() == word:
            return rest
    raise BenchError(f'it ended before it said "{word}"')


@contextmanager
def _caller(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([PYTHON, "-m", *command], cwd=ROOT, text=True, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _restate_environment(ports: dict[str, int]) -> dict[str, str]:
    return {
        **os.environ,
        "DO_NOT_TRACK": "1",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_BIND_IP": "127.0.0.1",
        "RESTATE_ADVERTISED_HOST": "127.0.0.1",
        "RESTATE_BIND_PORT": str(ports["node"]),
        "RESTATE_INGRESS__BIND_PORT": str(ports["ingress"]),
        "RESTATE_ADMIN__BIND_PORT": str(ports["admin"]),
        "RUST_LOG": "error",
    }


def _contestant(name: str, guarantees: str, measure: Callable[[], Figures]) -> Contestant:
    return Contestant(name=name, guarantees=guarantees, measure=measure)
