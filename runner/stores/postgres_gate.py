"""Gates in a PostgreSQL database: under a lock for each handler, so that nobody passes unseen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from runner.errors import StoreError
from runner.records import Change, GateRules, Passed, StoredRun
from runner.sql import load_queries
from runner.stores import rows
from runner.stores.gates import Candidate, Decision, bucket_name, decide, moment
from runner.stores.postgres_projections import With
from runner.times import rfc3339

_SQL = load_queries("runner.stores", "postgres_gate.sql")
_Connection = Any  # asyncpg's pool hands out proxies that its stubs type apart from connections
Own = Callable[[_Connection, Sequence[str]], Awaitable[Sequence[StoredRun]]]
Hold = Callable[[Sequence[StoredRun] | None], None]
Commit = Callable[[_Connection, Sequence[Change]], Awaitable[Sequence[bool | StoreError]]]


class PostgresGate:
    """The port `GateStore`, in the schema of a store. `commit` applies changes in a transaction; `own` makes runs the
    store's, and reads them; `hold` is told of those that it owns for certain, and by None that there may be others."""

    def __init__(self, do: With, *, commit: Commit, own: Own, hold: Hold, schema: str) -> None:
        self._with = do
        self._commit = commit
        self._own = own
        self._hold = hold
        self._schema = schema

    async def admit(self, rules: GateRules, now: datetime, limit: int) -> Passed:
        """See `GateStore.admit`."""

        async def admit(connection: _Connection) -> Passed:
            async with connection.transaction():
                await self.lock(connection, [rules.handler])
                return await self._admit(connection, rules, now, limit)

        try:
            passed = await self._with(admit)
        except StoreError:
            self._hold(None)  # it may have been done, and its answer lost
            raise
        self._hold(passed.runs)
        return passed

    async def come(self, changes: Sequence[Change]) -> Sequence[bool]:
        """See `GateStore.come`."""
        outcomes = await self._with(lambda connection: self._commit(connection, changes))
        return [outcome is True for outcome in outcomes]

    async def waiting(self, handler: str, most: int) -> int:
        """See `GateStore.waiting`."""
        return int(await self._with(lambda c: c.fetchval(_SQL["waiting"], handler, most)))

    async def gates(self) -> Sequence[str]:
        """See `GateStore.gates`."""
        return [row["handler"] for row in await self._with(lambda c: c.fetch(_SQL["gates"]))]

    async def open(self, handler: str) -> None:
        """See `GateStore.open`."""
        await self._with(lambda c: c.execute(_SQL["open_shut"], handler))

    async def lock(self, connection: _Connection, handlers: Collection[str]) -> None:
        """Until the end of the transaction, nobody else comes to these gates or passes them. In one order, so that two
        who lock several do not wait for each other."""
        for handler in sorted(handlers):
            await connection.execute(_SQL["lock"], f"flowrun gate {self._schema} {handler}")

    async def apply(self, connection: _Connection, changes: Iterable[Change]) -> None:
        """What committed changes do at the gates, which are locked: their runs come, or let others pass."""
        coming = [tuple(rows.place_values(c, c.place).values()) for c in changes if c.place is not None]
        past = [c for c in changes if c.gate is not None and c.place is None]
        if coming:
            await connection.execute(_SQL["join"], *rows.columns(coming))
        free: list[tuple[str, str | None]] = []
        if over := [c.run_id for c in past if c.finished_at is not None]:
            left = await connection.fetch(_SQL["leave"], over)
            await self._next_in_line(connection, {(row["handler"], row["line"]) for row in left})
            free += [(row["handler"], row["slot"]) for row in left]
        if parked := [c.run_id for c in past if c.finished_at is None and c.due_at is not None]:
            free += [tuple(row) for row in await connection.fetch(_SQL["park"], parked)]
        if slots := [pair for pair in free if pair[1] is not None]:
            await connection.execute(_SQL["next_for_slot"], *rows.columns(slots))

    async def go_on(self, connection: _Connection, run_ids: Sequence[str]) -> None:
        """Runs are taken up that have passed, or that are to be ended before they do."""
        if run_ids:
            await connection.execute(_SQL["go_on"], run_ids)

    async def park_all(self, connection: _Connection, owner: str, but: Collection[str] = ()) -> None:
        """Whatever an owner runs is put down, `but` these: there may be room for others."""
        if await connection.execute(_SQL["park_all"], owner, list(but)) != "UPDATE 0":
            await connection.execute(_SQL["open_shut"], None)

    async def _admit(self, connection: _Connection, rules: GateRules, now: datetime, limit: int) -> Passed:
        handler = rules.handler
        await connection.execute(_SQL["open_timed"], handler, rows.nanoseconds(now))
        await connection.execute(_SQL["open_due"], handler, rfc3339(now))
        passed: list[StoredRun] = []
        closed_until: int | None = None
        asked = limit
        while asked > 0 and closed_until is None:
            found = await connection.fetch(_SQL["candidates"], handler, rules.is_shut, asked)
            candidates = [Candidate(**row) for row in found]
            decision = decide(
                candidates,
                rules,
                now,
                running=await _counts(connection, "running", handler, (each.slot for each in candidates)),
                full_at=await _counts(connection, "buckets", bucket_name(handler), (c.bucket for c in candidates)),
            )
            await self._carry_out(connection, handler, decision)
            passed += await self._own(connection, [each.run_id for each in decision.let_in])
            closed_until = decision.closed_until
            if len(candidates) < asked and not decision.has_opened:
                break
            asked = limit - len(passed)
        next_at = closed_until or await connection.fetchval(_SQL["next_timed"], handler)
        return Passed(runs=tuple(passed), next_at=None if next_at is None else moment(next_at))

    async def _carry_out(self, connection: _Connection, handler: str, decision: Decision) -> None:
        if decision.let_in:
            await connection.execute(_SQL["let_in"], [each.run_id for each in decision.let_in])
        await self._next_in_line(connection, {(handler, line) for line in decision.opened})
        if decision.full:
            await connection.execute(_SQL["full"], decision.full)
        if decision.timed:
            await connection.execute(_SQL["timed"], *rows.columns(decision.timed))
        if decision.left:
            await connection.execute(_SQL["next_for_slot"], [handler] * len(decision.left), decision.left)
        if decision.buckets:
            keys, full_at = rows.columns(list(decision.buckets.items()))
            await connection.execute(_SQL["keep_buckets"], bucket_name(handler), keys, full_at)

    async def _next_in_line(self, connection: _Connection, lines: Collection[tuple[str, str | None]]) -> None:
        if known := [line for line in lines if line[1] is not None]:
            await connection.execute(_SQL["next_in_line"], *rows.columns(known))


async def _counts(connection: _Connection, query: str, name: str, keys: Iterable[str | None]) -> Mapping[str, int]:
    wanted = sorted({key for key in keys if key is not None})
    return {row[0]: row[1] for row in await connection.fetch(_SQL[query], name, wanted)} if wanted else {}
