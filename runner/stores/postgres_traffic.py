"""Circuit breakers, and whose producers were told what, in a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from runner.message import Outgoing
from runner.plan import Breaker
from runner.records import Circuit, EventRecord
from runner.sql import load_queries
from runner.stores.postgres_projections import With
from runner.times import rfc3339

_SQL = load_queries("runner.stores", "postgres_traffic.sql")
_Connection = Any  # asyncpg's pool hands out proxies that its stubs type apart from connections


class PostgresTraffic:
    """The port `TrafficStore`, in the schema of a store. `publish` adds an event to the log, and a message to the
    outbox."""

    def __init__(
        self,
        do: With,
        publish: Callable[[_Connection, EventRecord, Outgoing | None], Awaitable[None]],
        *,
        schema: str,
    ) -> None:
        self._with = do
        self._publish = publish
        self._schema = schema

    async def circuits(self) -> Mapping[str, Circuit]:
        """See `TrafficStore.circuits`."""
        return {row["name"]: Circuit(*row) for row in await self._with(lambda c: c.fetch(_SQL["circuits"]))}

    async def failed(self, name: str, breaker: Breaker, now: datetime, opened: EventRecord) -> bool:
        """See `TrafficStore.failed`. Under a lock: of two that fail at once, each must see the other's failure."""
        until = rfc3339(now + timedelta(seconds=breaker.pause_s))

        async def note(connection: _Connection) -> bool:
            async with connection.transaction():
                await connection.execute(_SQL["lock"], f"flowrun circuit {self._schema} {name}")
                if await connection.fetchval(_SQL["open_again"], name, until) is not None:
                    return True
                await connection.execute(_SQL["add_failure"], name, rfc3339(now))
                since = rfc3339(now - timedelta(seconds=breaker.period_s))
                await connection.execute(_SQL["forget_failures"], name, since)
                if await connection.fetchval(_SQL["failures"], name) < breaker.failures:
                    return False
                if await connection.fetchval(_SQL["open"], name, until) is not None:
                    await self._publish(connection, opened, None)
                return True

        return await self._with(note)

    async def probe(self, name: str, now: datetime, until: datetime) -> bool:
        """See `TrafficStore.probe`."""
        values = (name, rfc3339(now), rfc3339(until))
        return await self._with(lambda c: c.fetchval(_SQL["probe"], *values)) is not None

    async def succeeded(self, name: str, closed: EventRecord) -> bool:
        """See `TrafficStore.succeeded`."""

        async def close(connection: _Connection) -> bool:
            async with connection.transaction():
                if await connection.fetchval(_SQL["close"], name) is None:
                    return False
                await connection.execute(_SQL["forget_all_failures"], name)
                await self._publish(connection, closed, None)
                return True

        return await self._with(close)

    async def pressures(self) -> Collection[str]:
        """See `TrafficStore.pressures`."""
        return [row["handler"] for row in await self._with(lambda c: c.fetch(_SQL["pressures"]))]

    async def tell(self, handler: str, is_high: bool, event: EventRecord, outgoing: Outgoing) -> bool:
        """See `TrafficStore.tell`."""

        async def change(connection: _Connection) -> bool:
            async with connection.transaction():
                if await connection.fetchval(_SQL["press" if is_high else "ease"], handler) is None:
                    return False
                await self._publish(connection, event, outgoing)
                return True

        return await self._with(change)
