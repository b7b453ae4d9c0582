"""Read models in a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from runner.errors import GivenUpError
from runner.records import AsOf, Build, Entry, Folded, LoggedEvent
from runner.sql import load_queries
from runner.stores import rows

_SQL = load_queries("runner.stores", "postgres_projections.sql")
_Connection = Any  # asyncpg's pool hands out proxies that its stubs type apart from connections
T = TypeVar("T")


class With(Protocol):
    """Does some work on a connection. Raises StoreError."""

    def __call__(self, work: Callable[[_Connection], Awaitable[T]], /) -> Awaitable[T]:
        """Do it, and return what it does."""
        ...


class PostgresProjections:
    """The port `ProjectionStore`, in the schema of a store."""

    def __init__(self, do: With, *, schema: str) -> None:
        self._with = do
        self._lock = f"flowrun projections {schema}"

    async def builds(self) -> Sequence[Build]:
        """See `ProjectionStore.builds`."""
        return [rows.build(row) for row in await self._with(lambda c: c.fetch(_SQL["builds"]))]

    async def begin_build(self, name: str, definition: str, *, anew: bool = False) -> None:
        """See `ProjectionStore.begin_build`."""

        async def begin(connection: _Connection) -> None:
            async def stands(state: str) -> bool:
                return await connection.fetchval(_SQL["stands"], name, definition, state) is not None

            async with connection.transaction():
                await connection.execute(_SQL["lock"], self._lock)
                is_wanted = anew or not await stands("served")
                if is_wanted and await stands("building"):
                    return
                await connection.execute(_SQL["retire_building"], name)
                if is_wanted:
                    await connection.execute(_SQL["begin_build"], name, definition)

        await self._with(begin)

    async def keep_only(self, names: Collection[str]) -> None:
        """See `ProjectionStore.keep_only`."""
        await self._with(lambda c: c.execute(_SQL["keep_only"], list(names)))

    async def fold(self, build: Build, folded: Folded, *, claimed_by: str, claimed_until: str) -> bool:
        """See `ProjectionStore.fold`."""
        fault = rows.storable(folded.last_fault)
        to = (build.id, build.position, folded.position, folded.faults, fault, claimed_by, claimed_until)

        async def keep(connection: _Connection) -> bool:
            async with connection.transaction():
                if await connection.fetchval(_SQL["move"], *to) is None:
                    return False
                for name, values in (
                    ("put_entries", [rows.entry_values(build, each) for each in folded.entries]),
                    ("add_changes", [(build.id, *change) for change in folded.changes]),
                    ("add_snapshots", [rows.entry_values(build, each) for each in folded.snapshots]),
                ):
                    if values:
                        await connection.execute(_SQL[name], *rows.columns(values))
            return True

        return await self._with(keep)

    async def serve(self, build: Build) -> None:
        """See `ProjectionStore.serve`."""

        async def swap(connection: _Connection) -> None:
            async with connection.transaction():
                await connection.execute(_SQL["lock"], self._lock)
                if await connection.fetchval(_SQL["is_at"], build.id, build.position) is not None:
                    await connection.execute(_SQL["retire_served"], build.name)
                    await connection.execute(_SQL["serve"], build.id)

        await self._with(swap)

    async def entries(self, build: Build, keys: Collection[str]) -> tuple[int, Mapping[str, Entry]]:
        """See `ProjectionStore.entries`."""
        return rows.entries(build, await self._with(lambda c: c.fetch(_SQL["entries"], build.id, list(keys))))

    async def page(self, build: Build, *, after: str = "", limit: int) -> Sequence[Entry]:
        """See `ProjectionStore.page`."""

        async def read(connection: _Connection) -> Sequence[Entry]:
            found = await connection.fetch(_SQL["page"], build.id, after, limit)
            await _see_it_is_kept(connection, build)
            return [rows.entry(row) for row in found]

        return await self._with(read)

    async def history(self, build: Build, key: str, as_of: AsOf) -> tuple[Entry | None, Sequence[LoggedEvent]]:
        """See `ProjectionStore.history`."""
        which = (build.id, key, as_of.position, as_of.time)

        async def read(connection: _Connection) -> tuple[Entry | None, Sequence[LoggedEvent]]:
            row = await connection.fetchrow(_SQL["snapshot"], *which)
            snapshot = None if row is None else rows.entry(row)
            since = 0 if snapshot is None else snapshot.position
            events = await connection.fetch(_SQL["history"], *which, since)
            await _see_it_is_kept(connection, build)
            return snapshot, [rows.logged_event(event) for event in events]

        return await self._with(read)

    async def sweep(self, limit: int) -> bool:
        """See `ProjectionStore.sweep`."""

        async def delete(connection: _Connection) -> bool:
            async with connection.transaction():
                retired = await connection.fetchval(_SQL["retired"])
                if retired is None:
                    return False
                for part in ("sweep_entries", "sweep_snapshots", "sweep_changes"):
                    if await connection.execute(_SQL[part], retired, limit) != "DELETE 0":
                        return True
                await connection.execute(_SQL["forget_build"], retired)
                return True

        return await self._with(delete)


async def _see_it_is_kept(connection: _Connection, build: Build) -> None:
    if await connection.fetchval(_SQL["is_kept"], build.id) is None:
        raise GivenUpError.of(build.name)
