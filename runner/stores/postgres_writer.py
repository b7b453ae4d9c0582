"""The one task of a process that commits to PostgreSQL: whatever is queued, as one transaction, in one call.

A change that needs more than the call does, as at a gate, or where an event expects a version, has a transaction around
it. The lock of the event log is the last that is taken, so that positions are committed in their order and others wait
for it as shortly as can be.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

import asyncpg

from runner.errors import OwnershipError, StoreError, VersionConflictError
from runner.message import Outgoing
from runner.records import SUSPECT_CRASHES, Change, EventRecord, Intervention, OutboxRow
from runner.sql import load_queries
from runner.stores import rows
from runner.stores.postgres_gate import PostgresGate
from runner.stores.postgres_projections import With

MAX_GROUP = 500

_SQL = load_queries("runner.stores", "postgres_queries.sql")
_log = logging.getLogger("flowrun.postgres")
_Connection = Any  # asyncpg's pool hands out proxies that its stubs type apart from connections
_Waiting = tuple[Change, "asyncio.Future[bool]"]
_Numbered = Sequence[tuple[int, Change]]
_OF_ONE_CHANGE = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)


class PostgresWriter:
    """Commits changes in groups, and hands what they send to `hand_over`, if somebody here takes it.

    `owner` is the runner's name once it has one. `ring` is called when it is not known what was committed.
    """

    def __init__(
        self, do: With, *, gate: PostgresGate, schema: str, owner: Callable[[], str], ring: Callable[[], None]
    ) -> None:
        self.hand_over: Callable[[Sequence[OutboxRow]], None] | None = None
        self._with = do
        self._gate = gate
        self._bell = f"flowrun {schema}"
        self._lock_of_the_log = f"flowrun events {schema}"
        self._owner = owner
        self._ring_here = ring
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()

    def add(self, change: Change) -> asyncio.Future[bool]:
        """Commit a change with the next group. The future says whether it was applied: False if its run stood already.

        It raises StoreError, OwnershipError or VersionConflictError.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((change, future))
        self._wake.set()
        return future

    async def run(self) -> None:
        """Commit whatever is queued, together, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
                # What expects a version is judged by what is durable, and so goes alone, after the rest.
                together = [waiting for waiting in group if not _expects_a_version(waiting[0])]
                alone = [[waiting] for waiting in group if _expects_a_version(waiting[0])]
                for part in (together, *alone):
                    try:
                        await self._commit_group(part)
                    except Exception as error:  # whatever it is, later commits must be written
                        _log.exception("internal error, please report it")
                        _fail(part, StoreError(f"the store failed: {error or type(error).__name__}"))

    async def apply(
        self, connection: _Connection, changes: Sequence[Change]
    ) -> tuple[list[bool | StoreError], list[OutboxRow]]:
        """What became of each change, and what they send."""
        gates = {gate for change in changes if (gate := _gate_of(change)) is not None}
        if not gates and not any(_needs_more(change) for change in changes):
            valid, outgoing = await self._call(connection, changes, changes)
            return _outcomes(changes, valid), outgoing
        async with connection.transaction():
            await self._gate.lock(connection, gates)
            valid, outgoing = await self._call(connection, changes, ())
            applied = [change for number, change in enumerate(changes) if number in valid]
            if cancelling := {c.run_id for c in applied if c.cancel_tokens and c.finished_at is None}:
                await self._cancel_if_it_came(connection, list(cancelling))
            await self._gate.apply(connection, applied)
            if events := [event for change in applied for event in change.events]:
                await self.log(connection, events)
            if any(_is_handed_over(change) for change in applied):
                await self.ring(connection)
        return _outcomes(changes, valid), outgoing

    async def log(self, connection: _Connection, events: Sequence[EventRecord]) -> int:
        """Add to the event log what it has not, as the last thing of a transaction: until its end no other adds.

        So versions have neither gaps nor doubles, and positions are committed in their order. Returns how many were
        added. Raises VersionConflictError.
        """
        if any(event.expected is not None for event in events):
            await connection.execute(_SQL["lock_log"], self._lock_of_the_log)
        for event in events:
            if event.expected is not None:
                actual = await connection.fetchval(_SQL["version"], rows.storable(event.meta.subject))
                rows.mind_the_version(event, actual)
        columns = rows.columns([(0, *rows.event_values(event)) for event in events])
        return int(await connection.fetchval(_SQL["add_events"], self._lock_of_the_log, None, *columns))

    async def publish(self, connection: _Connection, event: EventRecord | None, outgoing: Outgoing | None) -> None:
        """Log an event and put a message into the outbox, for whoever publishes it."""
        if outgoing is not None:
            await connection.execute(_SQL["add_outgoing"], *rows.outgoing_values(outgoing))
        if event is not None:
            await self.log(connection, [event])

    async def ring(self, connection: _Connection) -> None:
        """For what a person asked for; not for every commit, because NOTIFY makes commits wait for each other."""
        await connection.execute("SELECT pg_notify($1, '')", self._bell)

    async def _commit_group(self, group: list[_Waiting]) -> None:
        """As one transaction; if that fails by one change's fault, each alone, so that it harms only itself."""
        if not group:
            return
        try:
            outcomes, outgoing = await self._with(lambda c: self.apply(c, [change for change, _ in group]))
        except StoreError as error:
            if len(group) > 1 and isinstance(error.__cause__, _OF_ONE_CHANGE):
                for waiting in group:
                    await self._commit_group([waiting])
                return
            _fail(group, error)
            if not isinstance(error, VersionConflictError):
                self._ring_here()  # it may have been done, and what it sends be ours unknown to us
            return
        if self.hand_over is not None and outgoing:
            self.hand_over(outgoing)
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, StoreError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    async def _call(
        self, connection: _Connection, changes: Sequence[Change], log: Sequence[Change]
    ) -> tuple[Collection[int], list[OutboxRow]]:
        """Commit the changes, with the events of those to `log`. Which are valid, by their place, and what they send:
        ours to publish, if somebody here takes it over."""
        owner = self._owner()
        each = list(enumerate(changes))
        begins = {c.run_id: (n, c) for n, c in reversed(each) if c.started is not None}  # of two, the first
        each = [(n, c) for n, c in each if c.started is None or begins[c.run_id][0] == n]
        columns = [
            *_columns(19, [(n, *rows.run_values(c, c.started, owner)) for n, c in each if c.started is not None]),
            *_columns(10, [(n, *rows.state_values(c)) for n, c in each if c.started is None]),
            *_columns(4, [(n, *values) for n, c in each for values in rows.record_values(c)]),
            *_columns(3, [(n, command, c.run_id) for n, c in each for command in c.commands]),
            *_columns(4, [(n, *values) for n, c in each for values in rows.wait_values(c)]),
            *_columns(2, [(n, c.run_id) for n, c in each if c.finished_at is not None]),
            *_columns(6, [(n, *rows.outgoing_values(message)) for n, c in each for message in c.outgoing]),
            *_columns(10, [(n, *rows.event_values(event)) for n, c in each if log for event in c.events]),
        ]
        sender = None if self.hand_over is None else owner
        row = await connection.fetchrow(_SQL["commit"], owner, sender, SUSPECT_CRASHES, self._lock_of_the_log, *columns)
        valid = frozenset(row["valid"])
        messages = [message for n, c in each if n in valid for message in c.outgoing]
        outgoing = [OutboxRow(position=p, outgoing=m) for p, m in zip(row["sent"], messages, strict=True)]
        return valid, outgoing

    async def _cancel_if_it_came(self, connection: _Connection, run_ids: list[str]) -> None:
        runs = {row["id"]: row for row in await connection.fetch(_SQL["runs_whole"], run_ids)}
        for row in await connection.fetch(_SQL["arrived_cancels"], run_ids):
            arrival, run = rows.arrival((row["arrival"], row["data"])), runs[row["run_id"]]
            if rows.is_cancelled_by(arrival, run["trigger"], run["started_at"]):
                await connection.execute(_SQL["request"], *rows.cancel_values(arrival), row["run_id"])


def _columns(width: int, values: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
    return rows.columns(values) if values else [()] * width


def _fail(group: Sequence[_Waiting], error: StoreError) -> None:
    for _, future in group:
        if not future.done():
            own = error if isinstance(error, VersionConflictError) else StoreError(error.message, hint=error.hint)
            future.set_exception(own)


def _needs_more(change: Change) -> bool:
    """More than the call does."""
    return bool(change.cancel_tokens) or _is_handed_over(change) or _expects_a_version(change)


def _expects_a_version(change: Change) -> bool:
    return any(event.expected is not None for event in change.events)


def _gate_of(change: Change) -> str | None:
    """The handler at whose gate the change does something."""
    return change.gate if change.place is None else change.place.handler


def _is_handed_over(change: Change) -> bool:
    """A person has put the run in others' hands: it is due, and whoever waits for it shall hear."""
    last = change.records[-1] if change.records else None
    return change.due_at is not None and (change.started is not None or isinstance(last, Intervention))


def _outcomes(changes: Sequence[Change], valid: Collection[int]) -> list[bool | StoreError]:
    return [
        True if number in valid else False if change.started is not None else OwnershipError.of(change.run_id)
        for number, change in enumerate(changes)
    ]
