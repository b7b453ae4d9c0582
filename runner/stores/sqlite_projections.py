"""Read models in a SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence

from runner.errors import GivenUpError
from runner.records import AsOf, Build, Entry, Folded, LoggedEvent
from runner.sql import load_queries
from runner.sqlite_file import SqliteFile
from runner.stores import rows

_SQL = load_queries("runner.stores", "sqlite_projections.sql")


class SqliteProjections:
    """The port `ProjectionStore`, in the file of a store."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    async def builds(self) -> Sequence[Build]:
        """See `ProjectionStore.builds`."""
        return [rows.build(row) for row in await self._file.read(lambda c: c.execute(_SQL["builds"]).fetchall())]

    async def begin_build(self, name: str, definition: str, *, anew: bool = False) -> None:
        """See `ProjectionStore.begin_build`."""

        def begin(connection: sqlite3.Connection) -> None:
            def stands(state: str) -> bool:
                return connection.execute(_SQL["stands"], (name, definition, state)).fetchone() is not None

            is_wanted = anew or not stands("served")
            if is_wanted and stands("building"):
                return
            connection.execute(_SQL["retire_building"], (name,))
            if is_wanted:
                connection.execute(_SQL["begin_build"], (name, definition))

        await self._file.write(begin)

    async def keep_only(self, names: Collection[str]) -> None:
        """See `ProjectionStore.keep_only`."""
        await self._file.write(lambda c: c.execute(_SQL["keep_only"], (rows.text(list(names)),)))

    async def fold(self, build: Build, folded: Folded, *, claimed_by: str, claimed_until: str) -> bool:
        """See `ProjectionStore.fold`."""
        to = (build.id, build.position, folded.position, folded.faults, folded.last_fault, claimed_by, claimed_until)

        def keep(connection: sqlite3.Connection) -> bool:
            if connection.execute(_SQL["move"], to).rowcount == 0:
                return False
            connection.executemany(_SQL["put_entry"], [rows.entry_values(build, each) for each in folded.entries])
            connection.executemany(_SQL["add_change"], [(build.id, *change) for change in folded.changes])
            connection.executemany(_SQL["add_snapshot"], [rows.entry_values(build, each) for each in folded.snapshots])
            return True

        return await self._file.write(keep)

    async def serve(self, build: Build) -> None:
        """See `ProjectionStore.serve`."""

        def swap(connection: sqlite3.Connection) -> None:
            if connection.execute(_SQL["is_at"], (build.id, build.position)).fetchone() is not None:
                connection.execute(_SQL["retire_served"], (build.name,))
                connection.execute(_SQL["serve"], (build.id,))

        await self._file.write(swap)

    async def entries(self, build: Build, keys: Collection[str]) -> tuple[int, Mapping[str, Entry]]:
        """See `ProjectionStore.entries`."""
        wanted = (build.id, rows.text(list(keys)))
        return rows.entries(build, await self._file.read(lambda c: c.execute(_SQL["entries"], wanted).fetchall()))

    async def page(self, build: Build, *, after: str = "", limit: int) -> Sequence[Entry]:
        """See `ProjectionStore.page`."""
        which = (build.id, after, limit)

        def read(connection: sqlite3.Connection) -> Sequence[Entry]:
            found = connection.execute(_SQL["page"], which).fetchall()
            _see_it_is_kept(connection, build)
            return [rows.entry(row) for row in found]

        return await self._file.read(read)

    async def history(self, build: Build, key: str, as_of: AsOf) -> tuple[Entry | None, Sequence[LoggedEvent]]:
        """See `ProjectionStore.history`."""
        which = (build.id, key, as_of.position, as_of.time)

        def read(connection: sqlite3.Connection) -> tuple[Entry | None, Sequence[LoggedEvent]]:
            row = connection.execute(_SQL["snapshot"], which).fetchone()
            snapshot = None if row is None else rows.entry(row)
            since = 0 if snapshot is None else snapshot.position
            events = connection.execute(_SQL["history"], (*which, since)).fetchall()
            _see_it_is_kept(connection, build)
            return snapshot, [rows.logged_event(event) for event in events]

        return await self._file.read(read)

    async def sweep(self, limit: int) -> bool:
        """See `ProjectionStore.sweep`."""
        if await self._file.read(lambda c: c.execute(_SQL["retired"]).fetchone()) is None:
            return False

        def delete(connection: sqlite3.Connection) -> bool:
            retired = connection.execute(_SQL["retired"]).fetchone()
            if retired is None:
                return False
            for part in ("sweep_entries", "sweep_snapshots", "sweep_changes"):
                if connection.execute(_SQL[part], (*retired, limit)).rowcount:
                    return True
            connection.execute(_SQL["forget_build"], retired)
            return True

        return await self._file.write(delete)


def _see_it_is_kept(connection: sqlite3.Connection, build: Build) -> None:
    if connection.execute(_SQL["is_kept"], (build.id,)).fetchone() is None:
        raise GivenUpError.of(build.name)
