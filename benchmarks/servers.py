"""A RabbitMQ and a PostgreSQL of the bench's own, as the tests start them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from services import (
    PostgresServer,
    RabbitServer,
    find_postgres,
    find_rabbitmq,
    free_port,
    install_if_root_on_debian,
)

from benchmarks import meters

__all__ = ["Servers", "both", "free_port", "install_if_root_on_debian"]


@dataclass(frozen=True, slots=True)
class Servers:
    """Both, running."""

    rabbit: RabbitServer
    postgres: PostgresServer

    def broker(self) -> str:
        """The URL of an empty broker."""
        return self.rabbit.new_vhost()

    def store(self) -> str:
        """The URL of an empty database."""
        return self.postgres.new_database()

    def read(self, workers: list[int]) -> meters.Reading:
        """The meters of these processes and of both servers."""
        return meters.read(workers, self.rabbit.pid, self.postgres.pid)


@contextmanager
def both() -> Iterator[Servers | None]:
    """None where they are not installed (`make services` does it)."""
    sbin, programs = find_rabbitmq(), find_postgres()
    if sbin is None or programs is None:
        yield None
        return
    those = Servers(RabbitServer(sbin), PostgresServer(programs))
    try:
        those.rabbit.start()
        those.postgres.start()
        yield those
    finally:
        those.postgres.close()
        those.rabbit.close()
