"""Gates in a SQLite file: one writer at a time, so that nobody passes unseen."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from runner.records import Change, GateRules, Passed, StoredRun
from runner.sql import load_queries
from runner.sqlite_file import SqliteFile
from runner.stores import rows
from runner.stores.gates import Candidate, Decision, bucket_name, decide, moment
from runner.times import rfc3339

_SQL = load_queries("runner.stores", "sqlite_gate.sql")


class SqliteGate:
    """The port `GateStore`, in the file of a store. `commit` applies a change; `own` makes runs the store's, and reads
    them."""

    def __init__(
        self,
        file: SqliteFile,
        *,
        commit: Callable[[sqlite3.Connection, Change], bool],
        own: Callable[[sqlite3.Connection, Sequence[str]], Sequence[StoredRun]],
    ) -> None:
        self._file = file
        self._commit = commit
        self._own = own

    async def come(self, changes: Sequence[Change]) -> Sequence[bool]:
        """See `GateStore.come`."""
        return await self._file.write(lambda connection: [self._commit(connection, change) for change in changes])

    async def admit(self, rules: GateRules, now: datetime, limit: int) -> Passed:
        """See `GateStore.admit`."""
        return await self._file.write(lambda connection: self._admit(connection, rules, now, limit))

    async def waiting(self, handler: str, most: int) -> int:
        """See `GateStore.waiting`."""
        row = await self._file.read(lambda c: c.execute(_SQL["waiting"], (handler, most)).fetchone())
        return int(row[0])

    async def gates(self) -> Sequence[str]:
        """See `GateStore.gates`."""
        return await self._file.read(lambda c: [handler for (handler,) in c.execute(_SQL["gates"])])

    async def open(self, handler: str) -> None:
        """See `GateStore.open`."""
        await self._file.write(lambda c: c.execute(_SQL["open_shut"], (handler,)))

    def _admit(self, connection: sqlite3.Connection, rules: GateRules, now: datetime, limit: int) -> Passed:
        handler, now_ns = rules.handler, rows.nanoseconds(now)
        connection.execute(_SQL["open_timed"], (handler, now_ns))
        connection.execute(_SQL["open_due"], (handler, rfc3339(now)))
        passed: list[StoredRun] = []
        closed_until: int | None = None
        asked = limit
        while asked > 0 and closed_until is None:
            found = connection.execute(_SQL["candidates"], (handler, rules.is_shut, asked))
            candidates = [
                Candidate(run_id=run_id, line=line, is_ordered=bool(is_ordered), slot=slot, bucket=bucket)
                for run_id, line, is_ordered, slot, bucket in found
            ]
            decision = decide(
                candidates,
                rules,
                now,
                running=_counts(connection, "running", handler, (each.slot for each in candidates)),
                full_at=_counts(connection, "buckets", bucket_name(handler), (each.bucket for each in candidates)),
            )
            _carry_out(connection, handler, decision)
            passed += self._own(connection, [each.run_id for each in decision.let_in])
            closed_until = decision.closed_until
            if len(candidates) < asked and not decision.has_opened:
                break
            asked = limit - len(passed)
        next_at = closed_until or connection.execute(_SQL["next_timed"], (handler,)).fetchone()[0]
        return Passed(runs=tuple(passed), next_at=None if next_at is None else moment(next_at))


def apply(connection: sqlite3.Connection, change: Change) -> None:
    """What a committed change does at the gate: its run comes to it, or lets another pass."""
    if change.place is not None:
        connection.execute(_SQL["join"], rows.place_values(change, change.place))
    elif change.gate is None:
        return
    elif change.finished_at is not None:
        for handler, line, slot in connection.execute(_SQL["leave"], (change.run_id,)).fetchall():
            connection.execute(_SQL["next_in_line"], (handler, line))
            connection.execute(_SQL["next_for_slot"], (handler, slot))
    elif change.due_at is not None:
        connection.executemany(_SQL["next_for_slot"], connection.execute(_SQL["park"], (change.run_id,)).fetchall())


def go_on(connection: sqlite3.Connection, run_ids: Sequence[tuple[str]]) -> None:
    """Runs are taken up that have passed, or that are to be ended before they do."""
    connection.executemany(_SQL["go_on"], run_ids)


def park_all(connection: sqlite3.Connection, owner: str) -> None:
    """Whoever runs is put down, because its owner leaves: there may be room for others."""
    if connection.execute(_SQL["park_all"], (owner,)).rowcount:
        connection.execute(_SQL["open_shut"], (None,))


def _counts(connection: sqlite3.Connection, query: str, name: str, keys: Iterable[str | None]) -> Mapping[str, int]:
    wanted = {key for key in keys if key is not None}
    return dict(connection.execute(_SQL[query], (name, rows.text(sorted(wanted)))).fetchall()) if wanted else {}


def _carry_out(connection: sqlite3.Connection, handler: str, decision: Decision) -> None:
    connection.executemany(_SQL["let_in"], [(each.run_id,) for each in decision.let_in])
    connection.executemany(_SQL["next_in_line"], [(handler, line) for line in decision.opened])
    connection.executemany(_SQL["full"], [(run_id,) for run_id in decision.full])
    connection.executemany(_SQL["timed"], decision.timed)
    connection.executemany(_SQL["next_for_slot"], [(handler, slot) for slot in decision.left])
    name = bucket_name(handler)
    connection.executemany(_SQL["keep_bucket"], [(name, key, full_at) for key, full_at in decision.buckets.items()])
