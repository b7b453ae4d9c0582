"""The SQLite store: for a laptop, and for the processes of one machine."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from types import TracebackType
from typing import Any

import msgspec

from runner.errors import NotFoundError, OwnershipError, StoreError
from runner.message import Meta, Outgoing
from runner.plan import Topology
from runner.records import (
    SUSPECT_CRASHES,
    Answer,
    Arrival,
    Backlog,
    Caller,
    Change,
    DeadLetter,
    EventFilter,
    EventRecord,
    Figures,
    Intervention,
    LoggedEvent,
    OutboxRow,
    Patterns,
    RunStarted,
    RunSummary,
    StoredRun,
    StoreFacts,
)
from runner.sql import load_queries
from runner.sqlite_file import SqliteFile
from runner.stores import rows, sqlite_gate
from runner.stores.sqlite_gate import SqliteGate
from runner.stores.sqlite_projections import SqliteProjections
from runner.stores.sqlite_traffic import SqliteTraffic
from runner.times import parse_time, rfc3339

SCRIPTS = ("sqlite_schema.sql", *(f"sqlite_schema_{number}.sql" for number in range(2, 7)))

_SQL = load_queries("runner.stores", "sqlite_queries.sql")
MOST_TYPES = 200
"""So many of them are asked for each by itself: SQLite takes 500 in one query."""
_NARROW = frozenset({"id_begins", "subject", "correlation_id"})
_log = logging.getLogger("flowrun.store")


class SqliteStore:
    """Every port of a store, in one SQLite file."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._owner = ""
        self._hand_over: Callable[[Sequence[OutboxRow]], None] | None = None
        self.projections = SqliteProjections(file)
        self.traffic = SqliteTraffic(file, _publish)
        self.gate = SqliteGate(file, commit=self._bring, own=self._let_in)

    async def __aenter__(self) -> SqliteStore:
        await self._file.__aenter__()
        scripts = tuple(files("runner.stores").joinpath(name).read_text() for name in SCRIPTS)
        try:
            await self._file.migrate("store", scripts)
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
        owner, hand_over = self._owner, self._hand_over
        sender = None if hand_over is None else owner
        outgoing = await self._file.write(lambda connection: _apply(connection, change, owner, sender))
        if hand_over is not None and outgoing:
            hand_over(outgoing)
        return outgoing is not None

    async def bury(self, letter: DeadLetter) -> None:
        """See `Store.bury`."""
        await self._file.write(lambda c: c.execute(_SQL["bury"], rows.letter_values(letter)))

    async def take(
        self, now: datetime, limit: int, *, handlers: Collection[str] | None = None, suspects: bool = False
    ) -> Sequence[StoredRun]:
        """See `Store.take`."""
        wanted = None if handlers is None else rows.text(sorted(handlers))
        return await self._file.write(lambda c: self._take(c, rfc3339(now), limit, wanted, suspects))

    async def outbox(self, limit: int, *, refused: bool = False) -> Sequence[OutboxRow]:
        """See `Store.outbox`."""
        return await self._file.write(lambda c: self._take_outbox(c, limit, refused))

    async def sent(self, results: Mapping[int, str | None], answers: Sequence[Answer] = ()) -> None:
        """See `Store.sent`."""
        confirmed = [(position,) for position, reason in results.items() if reason is None]
        refused = [(reason, position) for position, reason in results.items() if reason is not None]

        def note(connection: sqlite3.Connection) -> None:
            connection.executemany(_SQL["outbox_confirmed"], confirmed)
            connection.executemany(_SQL["outbox_refused"], refused)
            for answer in answers:
                _give(connection, answer)

        await self._file.write(note)

    # --- StoreReader

    async def runs(
        self, *, limit: int, state: str | None = None, handler: str | None = None, error: str | None = None
    ) -> Sequence[RunSummary]:
        """See `StoreReader.runs`."""
        begins = None if error is None else rows.error_beginning(error)
        found = await self._file.read(lambda c: c.execute(_SQL["runs"], (state, handler, limit, begins)).fetchall())
        return [rows.run_summary(row) for row in found]

    async def run(self, run_id: str) -> StoredRun | None:
        """See `StoreReader.run`. Raises NotFoundError if the beginning fits several."""
        return await self._file.read(lambda c: _find(c, run_id))

    async def known(self, run_id: str) -> bool:
        """See `StoreReader.known`."""
        row = await self._file.read(lambda c: c.execute(_SQL["known"], (run_id,)).fetchone())
        return row is not None

    async def holder(self, handler: str, key: str, now: datetime) -> str | None:
        """See `StoreReader.holder`."""
        values = (handler, key, rfc3339(now))
        row = await self._file.read(lambda c: c.execute(_SQL["holder"], values).fetchone())
        return None if row is None else str(row[0])

    async def backlog(self, *, handlers: Collection[str] | None = None) -> Backlog:
        """See `StoreReader.backlog`."""
        wanted = None if handlers is None else rows.text(sorted(handlers))
        values = (wanted, SUSPECT_CRASHES)
        counts = await self._file.read(lambda c: c.execute(_SQL["backlog"], values).fetchone())
        runs, suspects, outbox, refused, dead = counts
        return Backlog(runs=runs, suspects=suspects, outbox=outbox, refused=refused, dead_letters=dead)

    async def figures(self, since: datetime) -> Mapping[str, Figures]:
        """See `StoreReader.figures`."""

        def ask(connection: sqlite3.Connection) -> Mapping[str, Figures]:
            recent = connection.execute(_SQL["recent"], (rfc3339(since),))
            return rows.figures(connection.execute(_SQL["unfinished"]), recent)

        return await self._file.read(ask)

    # --- RunControl, Mailbox and Doorbell

    @property
    def owner(self) -> str:
        """See `RunControl.owner`."""
        return self._owner

    async def seize(self, run_id: str) -> StoredRun | None:
        """See `RunControl.seize`."""

        def seize(connection: sqlite3.Connection) -> StoredRun | None:
            connection.execute(_SQL["seize"], (self._owner, run_id))
            return _find(connection, run_id)

        return await self._file.write(seize)

    async def request(self, run_id: str, request: Intervention) -> bool:
        """See `RunControl.request`."""
        values = (rows.text(request), request.at, run_id)
        return await self._file.write(lambda c: c.execute(_SQL["request"], values).rowcount == 1)

    async def requests(self) -> Mapping[str, Intervention]:
        """See `RunControl.requests`."""
        found = await self._file.read(lambda c: c.execute(_SQL["requests"], (self._owner,)).fetchall())
        return {run_id: rows.intervention(text) for run_id, text in found}

    async def lost(self, run_ids: Collection[str]) -> Collection[str]:
        """See `RunControl.lost`."""
        values = (rows.text(list(run_ids)), self._owner)
        return await self._file.read(lambda c: [run_id for (run_id,) in c.execute(_SQL["lost"], values)])

    async def woken(self, run_ids: Collection[str]) -> Collection[str]:
        """See `RunControl.woken`."""
        ids = (rows.text(list(run_ids)),)
        if await self._file.read(lambda c: c.execute(_SQL["any_woken"], ids).fetchone()) is None:
            return ()
        return await self._file.write(lambda c: [run_id for (run_id,) in c.execute(_SQL["woken"], ids)])

    async def answer(self, answer: Answer) -> bool:
        """See `Mailbox.answer`."""
        return await self._file.write(lambda c: _give(c, answer))

    async def arrive(self, arrivals: Sequence[Arrival]) -> None:
        """See `Mailbox.arrive`."""

        def keep(connection: sqlite3.Connection) -> None:
            for arrival in arrivals:
                if connection.execute(_SQL["arrive"], rows.arrival_values(arrival)).rowcount:
                    waiting = connection.execute(_SQL["waiting"], (arrival.token,)).fetchall()
                    for run_id, cancels, trigger, started_at in waiting:
                        if not cancels:
                            connection.execute(_SQL["wake"], (run_id,))
                        elif rows.is_cancelled_by(arrival, trigger, started_at):
                            connection.execute(_SQL["request"], (*rows.cancel_values(arrival), run_id))

        await self._file.write(keep)

    async def forget_arrivals(self, before: datetime) -> None:
        """See `Mailbox.forget_arrivals`."""
        await self._file.write(lambda c: c.execute(_SQL["forget_arrivals"], (rfc3339(before),)))

    async def keep_patterns(self, patterns: Patterns) -> None:
        """See `Mailbox.keep_patterns`."""
        values = rows.pattern_values(patterns)
        await self._file.write(lambda c: c.executemany(_SQL["keep_pattern"], values))

    async def patterns(self) -> Patterns:
        """See `Mailbox.patterns`."""
        return rows.patterns(await self._file.read(lambda c: c.execute(_SQL["patterns"]).fetchall()))

    async def add_caller(self, run_id: str, caller: Caller) -> None:
        """See `Mailbox.add_caller`."""
        values = (*rows.caller_values(run_id, caller), rows.text(caller))
        await self._file.write(lambda c: c.execute(_SQL["add_caller"], values))

    async def served_callers(self, limit: int) -> Sequence[tuple[str, Caller]]:
        """See `Mailbox.served_callers`."""
        found = await self._file.read(lambda c: c.execute(_SQL["served_callers"], (limit,)).fetchall())
        return [(run_id, rows.caller(text)) for run_id, text in found]

    async def drop_caller(self, run_id: str, caller: Caller) -> None:
        """See `Mailbox.drop_caller`."""
        await self._file.write(lambda c: c.execute(_SQL["drop_caller"], rows.caller_values(run_id, caller)))

    async def begin_schedule(self, name: str, now: datetime) -> datetime:
        """See `ScheduleStore.begin_schedule`."""

        def begin(connection: sqlite3.Connection) -> str:
            connection.execute(_SQL["begin_schedule"], (name, rfc3339(now)))
            return str(connection.execute(_SQL["last_slot"], (name,)).fetchone()[0])

        return parse_time(await self._file.write(begin))

    async def take_slot(
        self, name: str, slot: datetime, event: EventRecord | None = None, outgoing: Outgoing | None = None
    ) -> bool:
        """See `ScheduleStore.take_slot`."""

        def take(connection: sqlite3.Connection) -> bool:
            if connection.execute(_SQL["take_slot"], (name, rfc3339(slot))).rowcount == 0:
                return False
            _publish(connection, event, outgoing)
            return True

        return await self._file.write(take)

    async def take_token(
        self, name: str, key: str, *, limit: int, period_s: float, burst: int, now: datetime
    ) -> float | None:
        """See `RateLimits.take_token`."""
        bucket = rows.Bucket(limit, period_s, burst, now)

        def take(connection: sqlite3.Connection) -> float | None:
            connection.execute(_SQL["forget_full_buckets"], (bucket.now_ns,))
            connection.execute(_SQL["bound_bucket"], (*bucket.bound, name, key))
            if connection.execute(_SQL["take_token"], (name, key, *bucket.values)).fetchone() is not None:
                return None
            return bucket.wait_s(connection.execute(_SQL["full_at"], (name, key)).fetchone()[0])

        return await self._file.write(take)

    async def forget_dead(self, owners: Collection[str]) -> None:
        """See `RunControl.forget_dead`: the kernel has told already, by the lock that a process holds."""

    def on_ring(self, wake: Callable[[], None]) -> None:
        """See `Doorbell.on_ring`: a file rings for nobody."""

    def on_outgoing(self, hand_over: Callable[[Sequence[OutboxRow]], None]) -> None:
        """See `Doorbell.on_outgoing`."""
        self._hand_over = hand_over

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

    async def refused(self, limit: int) -> Sequence[OutboxRow]:
        """See `DeadLetterStore.refused`."""
        found = await self._file.read(lambda c: c.execute(_SQL["refused"], (limit,)).fetchall())
        return [rows.outbox_row(row) for row in found]

    # --- EventLog

    async def append(self, events: Sequence[EventRecord]) -> int:
        """See `EventLog.append`. Most are there already: those wait for no writer."""

        def is_new(connection: sqlite3.Connection, event: EventRecord) -> bool:
            return connection.execute(_SQL["has_event"], (event.meta.id, event.meta.source)).fetchone() is None

        def add(connection: sqlite3.Connection) -> int:
            return connection.executemany(_SQL["add_event"], map(rows.event_values, new)).rowcount

        new = await self._file.read(lambda c: [event for event in events if is_new(c, event)])
        return await self._file.write(add) if new else 0

    async def events(
        self, wanted: EventFilter, *, limit: int, after: int = 0, newest: bool = False
    ) -> Sequence[LoggedEvent]:
        """See `EventLog.events`."""
        query, values = _events_query(wanted, newest=newest)
        values |= {"after": after, "limit": limit}
        found = await self._file.read(lambda c: c.execute(query, values).fetchall())
        return [rows.logged_event(row) for row in sorted(found)]

    async def head(self) -> int:
        """See `EventLog.head`."""
        return await self._file.read(lambda c: int(c.execute(_SQL["head"]).fetchone()[0]))

    async def old(self, before: datetime, *, but: Collection[str], after: int, up_to: int) -> Sequence[LoggedEvent]:
        """See `EventLog.old`."""
        values = (after, up_to, rfc3339(before), rows.text(list(but)))
        found = await self._file.read(lambda c: c.execute(_SQL["old"], values).fetchall())
        return [rows.logged_event(row) for row in found]

    async def forget(self, positions: Collection[int]) -> None:
        """See `EventLog.forget`."""
        await self._file.write(lambda c: c.execute(_SQL["forget"], (rows.text(list(positions)),)))

    async def types(self) -> Sequence[str]:
        """See `EventLog.types`."""
        return await self._file.read(lambda c: [name for (name,) in c.execute(_SQL["event_types"])])

    async def subjects_near(self, subject: str, limit: int) -> Sequence[str]:
        """See `EventLog.subjects_near`."""
        values = (subject, limit)
        return await self._file.read(lambda c: [name for (name,) in c.execute(_SQL["subjects_near"], values)])

    async def begun_by(self, event: Meta) -> Sequence[RunSummary]:
        """See `EventLog.begun_by`."""
        begins = (rows.trigger_beginning(event),)
        found = await self._file.read(lambda c: c.execute(_SQL["begun_by"], begins).fetchall())
        return [run for run in map(rows.run_summary, found) if run.trigger["source"] == event.source]

    # --- PlanStore

    async def keep_plan(self, plan_hash: str, sources: Mapping[str, str]) -> None:
        """See `PlanStore.keep_plan`."""
        values = (plan_hash, rows.text(dict(sources)))
        await self._file.write(lambda c: c.execute(_SQL["keep_plan"], values))

    async def unfinished_plans(self) -> Mapping[str, Mapping[str, str]]:
        """See `PlanStore.unfinished_plans`."""
        found = await self._file.read(lambda c: c.execute(_SQL["unfinished_plans"]).fetchall())
        return {plan_hash: msgspec.json.decode(text, type=dict[str, str]) for plan_hash, text in found}

    async def keep_declared(self, topology: Topology) -> None:
        """See `PlanStore.keep_declared`."""
        values = rows.declared_values(topology)
        await self._file.write(lambda c: c.executemany(_SQL["keep_declared"], values))

    async def declared(self) -> Topology:
        """See `PlanStore.declared`."""
        return rows.declared_topology(await self._file.read(lambda c: c.execute(_SQL["declared"]).fetchall()))

    async def facts(self) -> StoreFacts:
        """See `PlanStore.facts`."""
        path = self._file.path
        return StoreFacts(
            product="SQLite",
            version=sqlite3.sqlite_version,
            schema_version=len(SCRIPTS),
            free_bytes=None if path == ":memory:" else shutil.disk_usage(path).free,
        )

    # --- inside a transaction

    def _take(
        self, connection: sqlite3.Connection, now: str, limit: int, wanted: str | None, suspects: bool
    ) -> Sequence[StoredRun]:
        due = connection.execute(_SQL["due"], (now, wanted, limit, SUSPECT_CRASHES, suspects)).fetchall()
        orphans: list[tuple[str]] = []
        for owner in self._dead_among(connection.execute(_SQL["run_owners"])):
            connection.execute(_SQL["let_go"], (owner,))
            values = (owner, wanted, limit - len(due) - len(orphans), SUSPECT_CRASHES, suspects)
            orphans += connection.execute(_SQL["runs_of"], values).fetchall()
        connection.executemany(_SQL["own_run"], [(self._owner, 0, run_id, SUSPECT_CRASHES) for (run_id,) in due])
        connection.executemany(_SQL["own_run"], [(self._owner, 1, run_id, SUSPECT_CRASHES) for (run_id,) in orphans])
        sqlite_gate.go_on(connection, [*due, *orphans])
        runs = (_readable(connection, run_id) for (run_id,) in (*due, *orphans))
        return [run for run in runs if run is not None]

    def _bring(self, connection: sqlite3.Connection, change: Change) -> bool:
        """Commit a change that brings a run to its gate, and sends nothing."""
        return _apply(connection, change, self._owner, None) is not None

    def _let_in(self, connection: sqlite3.Connection, run_ids: Sequence[str]) -> list[StoredRun]:
        """Own runs that pass a gate; one that a person has seized meanwhile is left out, and so is a suspect."""
        values = [(self._owner, run_id, SUSPECT_CRASHES) for run_id in run_ids]
        own = [each[1] for each in values if connection.execute(_SQL["own_let_in"], each).rowcount]
        return [run for run_id in own if (run := _readable(connection, run_id)) is not None]

    def _take_outbox(self, connection: sqlite3.Connection, limit: int, refused: bool) -> list[OutboxRow]:
        taken = connection.execute(_SQL["take_outbox"], (self._owner, refused, limit)).fetchall()
        if len(taken) < limit and (dead := self._dead_among(connection.execute(_SQL["outbox_owners"]))):
            connection.executemany(_SQL["free_outbox"], [(owner,) for owner in dead])
            taken += connection.execute(_SQL["take_outbox"], (self._owner, refused, limit - len(taken))).fetchall()
        return [rows.outbox_row(row) for row in sorted(taken)]

    def _dead_among(self, owners: Iterable[tuple[str]]) -> list[str]:
        return [owner for (owner,) in list(owners) if not self._file.is_alive(owner)]

    def _leave(self, connection: sqlite3.Connection) -> None:
        sqlite_gate.park_all(connection, self._owner)
        connection.execute(_SQL["put_down"], (self._owner,))
        connection.execute(_SQL["free_outbox"], (self._owner,))


def _publish(connection: sqlite3.Connection, event: EventRecord | None, outgoing: Outgoing | None) -> None:
    if event is not None:
        connection.execute(_SQL["add_event"], rows.event_values(event))
    if outgoing is not None:
        connection.execute(_SQL["add_outgoing"], (*rows.outgoing_values(outgoing), None))


def _events_query(wanted: EventFilter, *, newest: bool) -> tuple[str, dict[str, Any]]:
    """Of each type, by its index, the first in order, and of these the first: sorted together, all of the log would be
    sorted for each batch. What tells few events from all others is asked for by its own index instead."""
    given = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
    types = given.pop("types", None)
    order = _SQL["events_newest" if newest else "events_first"]
    conditions = "\n".join(_SQL[f"events_{name}"] for name in given)
    if types is None:
        return f"{_SQL['events']}\n{conditions}\n{order}", given
    if given.keys() & _NARROW or not 0 < len(types) <= MOST_TYPES:
        return f"{_SQL['events']}\n{conditions}\n{_SQL['events_types']}\n{order}", {**given, "types": rows.text(types)}
    named = {f"type_{number}": name for number, name in enumerate(types)}
    some = "\nUNION ALL ".join(f"{_SQL['positions']} :{name}\n{conditions}\n{order})" for name in named)
    return f"{_SQL['events']}\nAND events.position IN ({some})\n{order}", {**given, **named}


def _apply(
    connection: sqlite3.Connection, change: Change, owner: str, sender: str | None
) -> Sequence[OutboxRow] | None:
    """What it sends, for `sender` to publish; None if its run stands already, or its key is held."""
    if change.started is None:
        _set_state(connection, change, owner)
    elif not _begin(connection, change, change.started, owner):
        return None
    connection.executemany(_SQL["add_record"], rows.record_values(change))
    for event in change.events:
        if event.expected is not None:
            rows.mind_the_version(event, connection.execute(_SQL["version"], (event.meta.subject,)).fetchone()[0])
    connection.executemany(_SQL["add_event"], [rows.event_values(event) for event in change.events])
    connection.executemany(_SQL["add_command"], [(command, change.run_id) for command in change.commands])
    connection.executemany(_SQL["add_wait"], rows.wait_values(change))
    if change.finished_at is not None:
        connection.execute(_SQL["forget_waits"], (change.run_id,))
    elif change.cancel_tokens:
        _cancel_if_it_came(connection, change.run_id)
    sqlite_gate.apply(connection, change)
    return [_send(connection, message, sender) for message in change.outgoing]


def _send(connection: sqlite3.Connection, message: Outgoing, sender: str | None) -> OutboxRow:
    position = connection.execute(_SQL["add_outgoing"], (*rows.outgoing_values(message), sender)).lastrowid
    assert position is not None
    return OutboxRow(position=position, outgoing=message)


def _begin(connection: sqlite3.Connection, change: Change, started: RunStarted, owner: str) -> bool:
    if started.key is not None:
        connection.execute(_SQL["free_key"], (started.handler, started.key, started.started_at))
    return connection.execute(_SQL["begin_run"], rows.run_values(change, started, owner)).rowcount == 1


def _set_state(connection: sqlite3.Connection, change: Change, owner: str) -> None:
    values = {
        "state": str(change.state),
        "due_at": change.due_at,
        "finished_at": change.finished_at,
        "error": rows.error_text(change.error),
        "holder": None if rows.is_parted_with(change) else owner,
        "suspect": change.suspect,
        "forgive": change.forgive,
        "limit": SUSPECT_CRASHES,
        "key_until": change.key_until,
        "asleep": change.asleep,
        "id": change.run_id,
        "owner": owner,
    }
    if change.key_until is not None and change.finished_at is None:
        connection.execute(_SQL["free_key_of"], (change.run_id, change.due_at))
    if connection.execute(_SQL["set_state"], values).rowcount == 0:
        raise OwnershipError.of(change.run_id)


def _cancel_if_it_came(connection: sqlite3.Connection, run_id: str) -> None:
    row = connection.execute(_SQL["run"], (run_id,)).fetchone()
    for came in connection.execute(_SQL["arrived_cancels"], (run_id,)).fetchall():
        arrival = rows.arrival(came)
        if rows.is_cancelled_by(arrival, trigger=row[5], started_at=row[8]):
            connection.execute(_SQL["request"], (*rows.cancel_values(arrival), run_id))


def _give(connection: sqlite3.Connection, answer: Answer) -> bool:
    row = connection.execute(_SQL["answer"], (rows.text(answer), answer.command_id)).fetchone()
    if row is not None:
        connection.execute(_SQL["wake"], row)
    return row is not None


def _find(connection: sqlite3.Connection, run_id: str) -> StoredRun | None:
    row = connection.execute(_SQL["run"], (run_id,)).fetchone()
    if row is None:
        near = connection.execute(_SQL["run_ids_like"], (run_id,)).fetchall()
        if len(near) > 1:
            raise NotFoundError(f'more than one run begins with "{run_id}"', hint="give more of its id")
        return _find(connection, near[0][0]) if near else None
    bodies = (body for (body,) in connection.execute(_SQL["records"], (row[0],)).fetchall())
    answers = (answer for (answer,) in connection.execute(_SQL["answers"], (row[0],)).fetchall())
    arrivals = connection.execute(_SQL["arrivals"], (row[0], row[8])).fetchall()
    return rows.stored_run(row, bodies, answers, arrivals)


def _readable(connection: sqlite3.Connection, run_id: str) -> StoredRun | None:
    """One run that cannot be read, e.g. a newer flowrun's, must not keep the others from being taken up."""
    try:
        return _find(connection, run_id)
    except (msgspec.MsgspecError, ValueError) as error:
        _log.error("run %s cannot be read by this version, and is left alone: %s", run_id, error)
        return None
