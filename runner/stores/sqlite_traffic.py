"""Circuit breakers, and whose producers were told what, in a SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta

from runner.message import Outgoing
from runner.plan import Breaker
from runner.records import Circuit, EventRecord
from runner.sql import load_queries
from runner.sqlite_file import SqliteFile
from runner.times import rfc3339

_SQL = load_queries("runner.stores", "sqlite_traffic.sql")


class SqliteTraffic:
    """The port `TrafficStore`, in the file of a store. `publish` adds an event to the log, and a message to the
    outbox."""

    def __init__(
        self, file: SqliteFile, publish: Callable[[sqlite3.Connection, EventRecord, Outgoing | None], None]
    ) -> None:
        self._file = file
        self._publish = publish

    async def circuits(self) -> Mapping[str, Circuit]:
        """See `TrafficStore.circuits`."""
        found = await self._file.read(lambda c: c.execute(_SQL["circuits"]).fetchall())
        return {row[0]: Circuit(*row) for row in found}

    async def failed(self, name: str, breaker: Breaker, now: datetime, opened: EventRecord) -> bool:
        """See `TrafficStore.failed`."""
        until = rfc3339(now + timedelta(seconds=breaker.pause_s))

        def note(connection: sqlite3.Connection) -> bool:
            if connection.execute(_SQL["open_again"], (name, until)).rowcount:
                return True
            connection.execute(_SQL["add_failure"], (name, rfc3339(now)))
            since = rfc3339(now - timedelta(seconds=breaker.period_s))
            connection.execute(_SQL["forget_failures"], (name, since))
            if connection.execute(_SQL["failures"], (name,)).fetchone()[0] < breaker.failures:
                return False
            if connection.execute(_SQL["open"], (name, until)).rowcount:
                self._publish(connection, opened, None)
            return True

        return await self._file.write(note)

    async def probe(self, name: str, now: datetime, until: datetime) -> bool:
        """See `TrafficStore.probe`."""
        values = (name, rfc3339(now), rfc3339(until))
        return await self._file.write(lambda c: c.execute(_SQL["probe"], values).rowcount == 1)

    async def succeeded(self, name: str, closed: EventRecord) -> bool:
        """See `TrafficStore.succeeded`."""

        def close(connection: sqlite3.Connection) -> bool:
            if connection.execute(_SQL["close"], (name,)).rowcount == 0:
                return False
            connection.execute(_SQL["forget_all_failures"], (name,))
            self._publish(connection, closed, None)
            return True

        return await self._file.write(close)

    async def pressures(self) -> Collection[str]:
        """See `TrafficStore.pressures`."""
        return await self._file.read(lambda c: [handler for (handler,) in c.execute(_SQL["pressures"])])

    async def tell(self, handler: str, is_high: bool, event: EventRecord, outgoing: Outgoing) -> bool:
        """See `TrafficStore.tell`."""

        def change(connection: sqlite3.Connection) -> bool:
            if connection.execute(_SQL["press" if is_high else "ease"], (handler,)).rowcount == 0:
                return False
            self._publish(connection, event, outgoing)
            return True

        return await self._file.write(change)
