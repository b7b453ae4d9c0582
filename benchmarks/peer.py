"""The systems in `benchmarks/peers`, as the bench runs them: `python -m benchmarks.peers.NAME worker`.

They live in an environment of their own, `.venv/peers`: flowrun reads the metadata of what is installed beside it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import amqp, orders
from benchmarks.servers import Servers
from benchmarks.systems import OUT, Workers

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".venv/peers"
PYTHON = HOME / "bin/python"
IN = "in"
ORDERS = "orders"
RESTATE = "@restatedev/restate-server@1"


@dataclass(slots=True)
class PeerSession:
    """A peer with its queues declared. See `systems.Session`."""

    peer: Peer
    broker: str
    kind: str
    queue: str = IN

    def produce(self, count: int, *, rate: float | None = None, failing_percent: int = 0) -> None:
        """See `systems.Session.produce`: as the peer's own client does it, if its messages have a form of their own."""
        if self.peer.own_messages:
            self._run("produce", str(count), str(rate or 0), str(failing_percent))
        else:
            amqp.publish(self.broker, ORDERS, "order.placed", orders.at_rate(count, rate, failing_percent))

    def start(self) -> Workers:
        """See `systems.Session.start`."""
        return Workers([self._command("worker")] * self.peer.processes, ROOT, self._environment())

    def declare(self) -> None:
        """Make `in` and `out` stand."""
        if self.peer.own_messages:
            self._run("declare")
            return
        queues = self.peer.queues
        amqp.declare(self.broker, *queues, OUT, kind=self.kind)
        amqp.bind(self.broker, ORDERS, "topic", dict.fromkeys(queues, "order.placed"))

    def _run(self, *arguments: str) -> None:
        subprocess.run(self._command(*arguments), cwd=ROOT, env=self._environment(), check=True)

    def _command(self, *arguments: str) -> list[str | Path]:
        return [PYTHON, "-m", f"benchmarks.peers.{self.peer.module}", *arguments]

    def _environment(self) -> dict[str, str]:
        queues = ",".join(self.peer.queues)
        return {**os.environ, "BENCH_BROKER": self.broker, "BENCH_KIND": self.kind, "BENCH_QUEUES": queues}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A system that takes orders from RabbitMQ. With `own_messages` its client makes them and declares its queues, by
    `produce` and `declare` of its module; else they are plain JSON."""

    name: str
    module: str
    guarantees: str
    own_messages: bool = False
    processes: int = 1
    queues: tuple[str, ...] = (IN,)

    @contextmanager
    def set_up(self, servers: Servers, kind: str) -> Iterator[PeerSession]:
        """See `systems.System.set_up`."""
        session = PeerSession(self, servers.broker(), kind)
        session.declare()
        yield session


CONFIRMED = "at least once, sent on confirmed before the ack; nothing kept"
AIO_PIKA = Peer(name="aio-pika, by hand", module="aio_pika", guarantees=CONFIRMED)
FASTSTREAM = Peer(name="FastStream", module="faststream", guarantees=CONFIRMED)
TASKIQ = Peer(name="taskiq", module="taskiq", guarantees=CONFIRMED, own_messages=True)
DRAMATIQ = Peer(
    name="Dramatiq, 8 threads", module="dramatiq", guarantees=f"{CONFIRMED}; retries in the broker", own_messages=True
)
CELERY = Peer(
    name="Celery, 8 threads",
    module="celery",
    guarantees=f"{CONFIRMED}; retries in the worker's memory",
    own_messages=True,
)


def install() -> None:
    """Make the peers' environment what pyproject.toml's group `bench` says, unless it is already."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    wanted, stamp = "\n".join([RESTATE, *groups["bench"]]), HOME / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"Installing the peers into {HOME.relative_to(ROOT)} ...", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
    pip = [PYTHON, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "pip>=25.1"], check=True)  # the first that knows groups
    subprocess.run([*pip, "--group", f"{ROOT}/pyproject.toml:bench"], check=True)
    if shutil.which("npm") is not None:
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", HOME]
        subprocess.run([*npm, RESTATE], check=True)
    stamp.write_text(wanted)
