"""A RabbitMQ and a PostgreSQL of the bench's own, as the tests start them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from services import PostgresServer, RabbitServer, find_postgres, find_rabbitmq


@contextmanager
def both() -> Iterator[tuple[str, str] | None]:
    """The URLs of the broker and of the store; None where they are not installed (`make services` does it)."""
    sbin, programs = find_rabbitmq(), find_postgres()
    if sbin is None or programs is None:
        yield None
        return
    rabbit, postgres = RabbitServer(sbin), PostgresServer(programs)
    try:
        rabbit.start()
        postgres.start()
        yield rabbit.new_vhost(), postgres.new_database()
    finally:
        postgres.close()
        rabbit.close()
