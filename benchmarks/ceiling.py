"""The ceiling of a hop: a C program on librabbitmq, `peers/ceiling.c`; built where there are compiler and library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import amqp, orders
from benchmarks.peer import HOME, IN, ORDERS, ROOT
from benchmarks.servers import Servers, install_if_root_on_debian
from benchmarks.systems import OUT, Workers

SOURCE = Path(__file__).parent / "peers/ceiling.c"
PROGRAM = HOME / "ceiling"


@dataclass(slots=True)
class CeilingSession:
    """The program, with its queues declared. See `systems.Session`."""

    broker: str
    queue: str = IN

    def produce(self, count: int, *, rate: float | None = None, failing_percent: int = 0) -> None:
        """See `systems.Session.produce`."""
        amqp.publish(self.broker, ORDERS, "order.placed", orders.at_rate(count, rate, failing_percent))

    def start(self) -> Workers:
        """See `systems.Session.start`."""
        return Workers([[PROGRAM]], ROOT, {**os.environ, "BENCH_BROKER": self.broker})


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A hop by a C program that reads no body and checks nothing: what broker and machine can do."""

    name: str = "C, librabbitmq: a ceiling"
    guarantees: str = "at least once, sent on confirmed before the ack; nothing decoded, checked or kept"

    @contextmanager
    def set_up(self, servers: Servers, kind: str) -> Iterator[CeilingSession]:
        """See `systems.System.set_up`."""
        session = CeilingSession(servers.broker())
        amqp.declare(session.broker, IN, OUT, kind=kind)
        amqp.bind(session.broker, ORDERS, "topic", {IN: "order.placed"})
        yield session


def ceiling() -> list[Ceiling]:
    """The row, or none where it cannot be built."""
    compiler = shutil.which("cc")
    if compiler is None:
        print("no ceiling row: there is no C compiler", file=sys.stderr)
        return []
    fault = _build(compiler)
    if fault is not None and install_if_root_on_debian(["librabbitmq"]):
        fault = _build(compiler)
    if fault is not None:
        print(f"no ceiling row: {fault} (on Debian: apt-get install librabbitmq-dev)", file=sys.stderr)
        return []
    return [Ceiling()]


def _build(compiler: str) -> str | None:
    """Why it cannot be built; None if it was."""
    HOME.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOME) as folder:
        built = Path(folder) / "ceiling"
        command = [compiler, "-std=c99", "-O2", "-Wall", "-o", built, SOURCE, "-lrabbitmq"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or ["the compiler says nothing"])[0]
        built.replace(PROGRAM)
    return None
