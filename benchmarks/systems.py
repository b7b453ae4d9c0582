"""What is measured: something that takes orders from a broker, and sends them on to the queue `out`."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Protocol

from benchmarks.rounds import BenchError
from benchmarks.servers import Servers

OUT = "out"


class Workers:
    """Processes at work, until the `with` block ends: then they are killed, with all that they started."""

    def __init__(self, commands: Sequence[Sequence[str | Path]], cwd: Path, environment: dict[str, str]) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed in __exit__
        self._processes = [
            subprocess.Popen(
                command, cwd=cwd, env=environment, stdout=self._log, stderr=self._log, start_new_session=True
            )
            for command in commands
        ]

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def check(self) -> None:
        """Raise BenchError if one has ended: nothing that is awaited would come any more."""
        for process in self._processes:
            if process.poll() is not None:
                self._log.seek(0)
                raise BenchError(f"a worker ended with {process.returncode}: {self._log.read()[-1000:].strip()}")

    def kill(self) -> None:
        """End them as a crash would."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._log.close()


class Session(Protocol):
    """A system that is set up, with empty queues on the broker at `broker`. Orders go to `queue`."""

    broker: str
    queue: str

    def produce(self, count: int, *, rate: float | None = None, failing_percent: int = 0) -> None:
        """Send orders; without a rate, as fast as it goes. So many of a hundred fail when they are first tried."""

    def start(self) -> Workers:
        """Begin to take them."""


class System(Protocol):
    """One row of a table."""

    @property
    def name(self) -> str:
        """As the table calls it."""

    @property
    def guarantees(self) -> str:
        """What a user of it may rely on, set up like this."""

    def set_up(self, servers: Servers, kind: str) -> AbstractContextManager[Session]:
        """From nothing, with queues of that kind: `quorum` or `classic`."""
