"""The SQLite store: for a laptop, and for the processes of one machine."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from types import TracebackType

import msgspec

from runner.errors import NotFoundError, StoreError
from runner.records import SUSPECT_CRASHES, Backlog, Change, DeadLetter, OutboxRow, RunSummary, StoredRun
from runner.sql import load_queries
from runner.sqlite_file import SqliteFile
from runner.stores import rows
from runner.times import rfc3339

_SQL = load_queries("runner.stores", "sqlite_queries.sql")
_log = logging.getLogger("flowrun.store")


class SqliteStore:
    """`Store`, `StoreReader` and `PlanStore` in one SQLite file."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._owner = ""

    async def __aenter__(self) -> SqliteStore:
        await self._file.__aenter__()
        schema = files("runner.stores").joinpath("sqlite_schema.sql").read_text()
        try:
            await self._file.migrate("store", (schema,))
        except BaseException:
            await self._file.__aexit__()
            raise
        self._owner = self._file.new_owner()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(StoreError):  # what is not put down now is, once this process is gone
            await self._file.write(self._leave)
        await self._file.__aexit__()

    # --- Store

    async def commit(self, change: Change) -> bool:
        """See `Store.commit`."""
        owner = self._owner
        return await self._file.write(lambda connection: _apply(connection, change, owner))

    async def bury(self, letter: DeadLetter) -> None:
        """See `Store.bury`."""
        await self._file.write(lambda c: c.execute(_SQL["bury"], rows.letter_values(letter)))

    async def take(self, now: datetime, limit: int, *, handlers: Collection[str] | None = None) -> Sequence[StoredRun]:
        """See `Store.take`."""
        wanted = None if handlers is None else rows.text(sorted(handlers))
        return await self._file.write(lambda c: self._take(c, rfc3339(now), limit, wanted))

    async def outbox(self, limit: int, *, refused: bool = False) -> Sequence[OutboxRow]:
        """See `Store.outbox`."""
        return await self._file.write(lambda c: self._take_outbox(c, limit, refused))

    async def sent(self, results: Mapping[int, str | None]) -> None:
        """See `Store.sent`."""
        confirmed = [(position,) for position, reason in results.items() if reason is None]
        refused = [(reason, position) for position, reason in results.items() if reason is not None]

        def note(connection: sqlite3.Connection) -> None:
            connection.executemany(_SQL["outbox_confirmed"], confirmed)
            connection.executemany(_SQL["outbox_refused"], refused)

        await self._file.write(note)

    # --- StoreReader

    async def runs(self, *, limit: int, state: str | None = None, handler: str | None = None) -> Sequence[RunSummary]:
        """See `StoreReader.runs`."""
        found = await self._file.read(lambda c: c.execute(_SQL["runs"], (state, handler, limit)).fetchall())
        return [rows.run_summary(row) for row in found]

    async def run(self, run_id: str) -> StoredRun | None:
        """See `StoreReader.run`. Raises NotFoundError if the beginning fits several."""
        return await self._file.read(lambda c: _find(c, run_id))

    async def known(self, run_id: str) -> bool:
        """See `StoreReader.known`."""
        row = await self._file.read(lambda c: c.execute(_SQL["known"], (run_id,)).fetchone())
        return row is not None

    async def backlog(self, *, handlers: Collection[str] | None = None) -> Backlog:
        """See `StoreReader.backlog`."""
        wanted = None if handlers is None else rows.text(sorted(handlers))
        counts = await self._file.read(lambda c: c.execute(_SQL["backlog"], (wanted,)).fetchone())
        runs, outbox, refused, dead = counts
        return Backlog(runs=runs, outbox=outbox, refused=refused, dead_letters=dead)

    # --- DeadLetterStore

    async def dead_letters(
        self, *, limit: int, reason: str | None = None, handler: str | None = None
    ) -> Sequence[DeadLetter]:
        """See `DeadLetterStore.dead_letters`."""
        values = (reason, handler, limit)
        found = await self._file.read(lambda c: c.execute(_SQL["dead_letters"], values).fetchall())
        return [rows.dead_letter(row) for row in found]

    async def dead_letter(self, ident: str) -> DeadLetter | None:
        """See `DeadLetterStore.dead_letter`."""
        found = await self._file.read(lambda c: c.execute(_SQL["dead_letters_like"], (ident,)).fetchall())
        return rows.the_letter(found, ident)

    async def drop(self, letters: Sequence[DeadLetter]) -> None:
        """See `DeadLetterStore.drop`."""
        values = [(letter.id, letter.received_at) for letter in letters]
        await self._file.write(lambda c: c.executemany(_SQL["drop_letter"], values))

    # --- PlanStore

    async def keep_plan(self, plan_hash: str, sources: Mapping[str, str]) -> None:
        """See `PlanStore.keep_plan`."""
        values = (plan_hash, rows.text(dict(sources)))
        await self._file.write(lambda c: c.execute(_SQL["keep_plan"], values))

    async def unfinished_plans(self) -> Mapping[str, Mapping[str, str]]:
        """See `PlanStore.unfinished_plans`."""
        found = await self._file.read(lambda c: c.execute(_SQL["unfinished_plans"]).fetchall())
        return {plan_hash: msgspec.json.decode(text, type=dict[str, str]) for plan_hash, text in found}

    # --- inside a transaction

    def _take(self, connection: sqlite3.Connection, now: str, limit: int, wanted: str | None) -> Sequence[StoredRun]:
        due = connection.execute(_SQL["due"], (now, wanted, limit)).fetchall()
        orphans: list[tuple[str]] = []
        for owner in self._dead_among(connection.execute(_SQL["run_owners"])):
            orphans += connection.execute(_SQL["runs_of"], (owner, wanted, limit - len(due) - len(orphans))).fetchall()
        connection.executemany(_SQL["own_run"], [(self._owner, 0, run_id, SUSPECT_CRASHES) for (run_id,) in due])
        connection.executemany(_SQL["own_run"], [(self._owner, 1, run_id, SUSPECT_CRASHES) for (run_id,) in orphans])
        runs = (_readable(connection, run_id) for (run_id,) in (*due, *orphans))
        return [run for run in runs if run is not None]

    def _take_outbox(self, connection: sqlite3.Connection, limit: int, refused: bool) -> list[OutboxRow]:
        taken = connection.execute(_SQL["take_outbox"], (self._owner, refused, limit)).fetchall()
        if len(taken) < limit and (dead := self._dead_among(connection.execute(_SQL["outbox_owners"]))):
            connection.executemany(_SQL["free_outbox"], [(owner,) for owner in dead])
            taken += connection.execute(_SQL["take_outbox"], (self._owner, refused, limit - len(taken))).fetchall()
        return [rows.outbox_row(row) for row in sorted(taken)]

    def _dead_among(self, owners: Iterable[tuple[str]]) -> list[str]:
        return [owner for (owner,) in list(owners) if not self._file.is_alive(owner)]

    def _leave(self, connection: sqlite3.Connection) -> None:
        connection.execute(_SQL["put_down"], (self._owner,))
        connection.execute(_SQL["free_outbox"], (self._owner,))


def _apply(connection: sqlite3.Connection, change: Change, owner: str) -> bool:
    started = change.started
    parked = change.due_at is not None or change.finished_at is not None
    if started is not None:
        values = (*rows.run_values(started, change.state), owner)
        if connection.execute(_SQL["begin_run"], values).rowcount == 0:
            return False
    if started is None or parked:
        error = rows.error_text(change.error)
        holder = None if parked else owner
        connection.execute(
            _SQL["set_state"],
            (
                change.state,
                change.due_at,
                change.finished_at,
                error,
                holder,
                change.suspect,
                change.run_id,
                SUSPECT_CRASHES,
            ),
        )
    connection.executemany(_SQL["add_record"], rows.record_values(change))
    connection.executemany(_SQL["add_event"], [rows.event_values(event) for event in change.events])
    connection.executemany(_SQL["add_outgoing"], [rows.outgoing_values(message) for message in change.outgoing])
    return True


def _find(connection: sqlite3.Connection, run_id: str) -> StoredRun | None:
    row = connection.execute(_SQL["run"], (run_id,)).fetchone()
    if row is None:
        near = connection.execute(_SQL["run_ids_like"], (run_id,)).fetchall()
        if len(near) > 1:
            raise NotFoundError(f'more than one run begins with "{run_id}"', hint="give more of its id")
        return _find(connection, near[0][0]) if near else None
    bodies = (body for (body,) in connection.execute(_SQL["records"], (row[0],)).fetchall())
    return rows.stored_run(row, bodies)


def _readable(connection: sqlite3.Connection, run_id: str) -> StoredRun | None:
    """One run that cannot be read, e.g. a newer flowrun's, must not keep the others from being taken up."""
    try:
        return _find(connection, run_id)
    except (msgspec.MsgspecError, ValueError) as error:
        _log.error("run %s cannot be read by this version, and is left alone: %s", run_id, error)
        return None
