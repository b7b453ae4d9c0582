"""The PostgreSQL store: many runners, on many machines, on one database.

One writer task a process commits whatever is queued as one transaction, in one call.
Runners own their runs by a lease and a lock: one heartbeat a process, not a run. A runner that was thought dead writes
nothing more under its old name, because every update asks whether the run is still its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from types import TracebackType
from typing import Any, TypeVar

import asyncpg
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
    RunSummary,
    StoredRun,
    StoreFacts,
)
from runner.sql import load_queries
from runner.stores import rows
from runner.stores.postgres_gate import PostgresGate
from runner.stores.postgres_presence import COME_BACK_S, CONNECT_TIMEOUT_S, FAULTS, Presence
from runner.stores.postgres_projections import PostgresProjections
from runner.stores.postgres_traffic import PostgresTraffic
from runner.stores.postgres_writer import PostgresWriter
from runner.stores.questions import Questions
from runner.times import parse_time, rfc3339

LEASE_S = 15.0
COMMAND_TIMEOUT_S = 60.0
"""A connection into the void must not hold the writer: its answer is unknown then, and asked for."""
SCRIPTS = ("postgres_schema.sql", *(f"postgres_schema_{number}.sql" for number in range(2, 8)))

_SQL = load_queries("runner.stores", "postgres_queries.sql")
_log = logging.getLogger("flowrun.postgres")
T = TypeVar("T")


class PostgresStore:
    """Every port of a store, in a PostgreSQL database, in the schema `schema`."""

    def __init__(self, url: str, schema: str, *, lease_s: float = LEASE_S) -> None:
        self._url = url
        self._schema = schema
        self._lease_s = lease_s
        self._owner = ""
        self._session = {"search_path": f'"{schema}"', "application_name": "flowrun"}
        self._presence = Presence(url, self._session, bell=f"flowrun {schema}", lease_s=lease_s)
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._held: set[str] = set()
        """The runs in our hands."""
        self._lost_track = False
        """We may own runs that we know nothing of."""
        self.projections = PostgresProjections(self._with, schema=schema)
        self.gate = PostgresGate(self._with, commit=self._bring, own=self._let_in, hold=self._hold, schema=schema)
        self._writer = PostgresWriter(
            self._with, gate=self.gate, schema=schema, owner=lambda: self._owner, ring=self._presence.ring
        )
        self.traffic = PostgresTraffic(self._with, self._writer.publish, schema=schema)
        self._known = Questions(self._which_stand)
        self._tokens = Questions(self._take_tokens)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> PostgresStore:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=1,
                    max_size=4,
                    server_settings=self._session,
                    reset=_leave_as_it_is,
                    command_timeout=COMMAND_TIMEOUT_S,
                )
        except (*FAULTS, ValueError) as error:
            raise _connect_fault(self._url, error) from error
        try:
            await self._with(self._migrate)
            await self._appear()
        except BaseException:
            await self._presence.end()
            await self._pool.close()
            raise
        self._tasks = [asyncio.create_task(self._writer.run()), asyncio.create_task(self._presence.keep())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert self._pool is not None
        try:
            await self._with(self._leave)
        except StoreError as fault:  # what is not put down now is, once the lease has run out
            _log.warning("%s", fault)
        await self._presence.end()
        await self._pool.close()

    # --- Store

    async def commit(self, change: Change) -> bool:
        """See `Store.commit`."""
        is_new = change.run_id not in self._held
        self._held.add(change.run_id)
        try:
            applied = await self._writer.add(change)
        except OwnershipError:
            self._held.discard(change.run_id)
            raise
        if rows.is_parted_with(change) or (is_new and not applied):
            self._held.discard(change.run_id)
        return applied

    async def bury(self, letter: DeadLetter) -> None:
        """See `Store.bury`."""
        await self._with(lambda c: c.execute(_SQL["bury"], *rows.letter_values(letter)))

    async def take(
        self, now: datetime, limit: int, *, handlers: Collection[str] | None = None, suspects: bool = False
    ) -> Sequence[StoredRun]:
        """See `Store.take`."""
        wanted = None if handlers is None else list(handlers)

        async def take(connection: _Connection) -> list[StoredRun]:
            async with connection.transaction():
                # Ours first: after an outage longer than the lease, what we run would look like a dead runner's to us.
                await connection.execute(_SQL["take_lease"], self._owner, self._lease_s)
                await connection.execute(_SQL["forget_dead_runners"], self._presence.silent_by, COME_BACK_S)
                if self._lost_track:
                    await self.gate.park_all(connection, self._owner, self._held)
                    await connection.execute(_SQL["put_back"], self._owner, rfc3339(now), list(self._held))
                which = (wanted, SUSPECT_CRASHES, suspects)
                taken = await connection.fetch(_SQL["take_due"], self._owner, rfc3339(now), limit, *which)
                if left := limit - len(taken):
                    await connection.execute(_SQL["let_go"])
                    taken += await connection.fetch(_SQL["take_orphans"], self._owner, left, *which)
                await self.gate.go_on(connection, [row["id"] for row in taken])
                return await _whole(connection, [row["id"] for row in taken])

        try:
            taken = await self._with(take)
        except StoreError:
            self._hold(None)  # it may have been done, and its answer lost
            raise
        self._lost_track = False
        self._hold(taken)
        return taken

    def _hold(self, runs: Sequence[StoredRun] | None) -> None:
        """These are in our hands; None: there may be some that are ours and that we know nothing of."""
        if runs is None:
            self._lost_track = True
        else:
            self._held.update(run.started.run_id for run in runs)

    async def _bring(self, connection: _Connection, changes: Sequence[Change]) -> Sequence[bool | StoreError]:
        """Commit changes that bring runs to gates, and send nothing."""
        outcomes, _ = await self._writer.apply(connection, changes)
        return outcomes

    async def _let_in(self, connection: _Connection, run_ids: Sequence[str]) -> list[StoredRun]:
        """Own runs that pass a gate; one that a person has seized meanwhile is left out, and so is a suspect."""
        which = (self._owner, run_ids, SUSPECT_CRASHES)
        found = await connection.fetch(_SQL["own_let_in"], *which) if run_ids else []
        owned = {row["id"] for row in found}
        return await _whole(connection, [run_id for run_id in run_ids if run_id in owned])

    async def outbox(self, limit: int, *, refused: bool = False) -> Sequence[OutboxRow]:
        """See `Store.outbox`."""

        async def take(connection: _Connection) -> list[OutboxRow]:
            async with connection.transaction():
                await connection.execute(_SQL["free_outbox"])
                return [
                    rows.outbox_row(row)
                    for row in await connection.fetch(_SQL["take_outbox"], self._owner, refused, limit)
                ]

        return sorted(await self._with(take), key=lambda row: row.position)

    async def sent(self, results: Mapping[int, str | None], answers: Sequence[Answer] = ()) -> None:
        """See `Store.sent`."""
        confirmed = [position for position, reason in results.items() if reason is None]
        refused = [(position, reason) for position, reason in results.items() if reason is not None]

        async def note(connection: _Connection) -> None:
            if not (refused or answers):
                await connection.execute(_SQL["outbox_confirmed"], confirmed)
                return
            async with connection.transaction():
                await connection.execute(_SQL["outbox_confirmed"], confirmed)
                if refused:
                    await connection.execute(_SQL["outbox_refused"], *rows.columns(refused))
                for answer in answers:
                    await _give(connection, answer)

        await self._with(note)

    # --- StoreReader

    async def runs(
        self, *, limit: int, state: str | None = None, handler: str | None = None, error: str | None = None
    ) -> Sequence[RunSummary]:
        """See `StoreReader.runs`."""
        begins = None if error is None else rows.error_beginning(error)
        found = await self._with(lambda c: c.fetch(_SQL["runs"], state, handler, limit, begins))
        return [rows.run_summary(row) for row in found]

    async def run(self, run_id: str) -> StoredRun | None:
        """See `StoreReader.run`. Raises NotFoundError if the beginning fits several."""

        async def find(connection: _Connection) -> StoredRun | None:
            found = await _whole(connection, [rows.storable(run_id)])
            if not found:
                near = await connection.fetch(_SQL["run_ids_like"], rows.storable(run_id))
                if len(near) > 1:
                    raise NotFoundError(f'more than one run begins with "{run_id}"', hint="give more of its id")
                found = await _whole(connection, [row["id"] for row in near])
            return found[0] if found else None

        return await self._with(find)

    async def known(self, run_id: str) -> bool:
        """See `StoreReader.known`. Every message asks, so that a query each would cost a fifth of the process."""
        return await self._known.put(run_id)

    async def _which_stand(self, run_ids: Sequence[str]) -> Sequence[bool]:
        there = {row["id"] for row in await self._with(lambda c: c.fetch(_SQL["known"], run_ids))}
        return [run_id in there for run_id in run_ids]

    async def holder(self, handler: str, key: str, now: datetime) -> str | None:
        """See `StoreReader.holder`."""
        values = (handler, rows.storable(key), rfc3339(now))
        found: str | None = await self._with(lambda c: c.fetchval(_SQL["holder"], *values))
        return found

    async def backlog(self, *, handlers: Collection[str] | None = None) -> Backlog:
        """See `StoreReader.backlog`."""
        wanted = None if handlers is None else list(handlers)
        row = await self._with(lambda c: c.fetchrow(_SQL["backlog"], wanted, SUSPECT_CRASHES))
        assert row is not None
        runs, suspects, outbox, refused, dead = row
        return Backlog(runs=runs, suspects=suspects, outbox=outbox, refused=refused, dead_letters=dead)

    async def figures(self, since: datetime) -> Mapping[str, Figures]:
        """See `StoreReader.figures`."""

        async def ask(connection: _Connection) -> Mapping[str, Figures]:
            recent = await connection.fetch(_SQL["recent"], rfc3339(since))
            return rows.figures(await connection.fetch(_SQL["unfinished"]), recent)

        return await self._with(ask)

    # --- RunControl, Mailbox and Doorbell

    @property
    def owner(self) -> str:
        """See `RunControl.owner`."""
        return self._owner

    async def seize(self, run_id: str) -> StoredRun | None:
        """See `RunControl.seize`."""

        async def seize(connection: _Connection) -> StoredRun | None:
            async with connection.transaction():
                await connection.execute(_SQL["seize"], self._owner, run_id)
                found = await _whole(connection, [run_id])
            return found[0] if found else None

        return await self._with(seize)

    async def request(self, run_id: str, request: Intervention) -> bool:
        """See `RunControl.request`."""
        values = (rows.storable(rows.text(request)), request.at, run_id)

        async def ask(connection: _Connection) -> bool:
            async with connection.transaction():
                asked = await connection.fetchval(_SQL["request"], *values) is not None
                await self._writer.ring(connection)
            return asked

        return await self._with(ask)

    async def requests(self) -> Mapping[str, Intervention]:
        """See `RunControl.requests`."""
        found = await self._with(lambda c: c.fetch(_SQL["requests"], self._owner))
        return {row["id"]: rows.intervention(row["request"]) for row in found}

    async def lost(self, run_ids: Collection[str]) -> Collection[str]:
        """See `RunControl.lost`."""
        found = await self._with(lambda c: c.fetch(_SQL["lost"], list(run_ids), self._owner))
        return [row["id"] for row in found]

    async def woken(self, run_ids: Collection[str]) -> Collection[str]:
        """See `RunControl.woken`."""
        found = await self._with(lambda c: c.fetch(_SQL["woken"], list(run_ids)))
        return [row["id"] for row in found]

    async def answer(self, answer: Answer) -> bool:
        """See `Mailbox.answer`."""

        async def give(connection: _Connection) -> bool:
            async with connection.transaction():
                return await _give(connection, answer)

        return await self._with(give)

    async def arrive(self, arrivals: Sequence[Arrival]) -> None:
        """See `Mailbox.arrive`."""
        columns = rows.columns([rows.arrival_values(arrival) for arrival in arrivals])
        by_token = {arrival.token: arrival for arrival in arrivals}

        async def keep(connection: _Connection) -> None:
            await connection.execute(_SQL["arrive"], *columns)
            async with connection.transaction():
                waiting = await connection.fetch(_SQL["waiting"], list(by_token))
                awake = [row["run_id"] for row in waiting if not row["cancels"]]
                await connection.execute(_SQL["wake_all"], awake)
                for row in waiting:
                    arrival = by_token[row["token"]]
                    if row["cancels"] and rows.is_cancelled_by(arrival, row["trigger"], row["started_at"]):
                        await connection.execute(_SQL["request"], *rows.cancel_values(arrival), row["run_id"])

        if arrivals:
            await self._with(keep)

    async def forget_arrivals(self, before: datetime) -> None:
        """See `Mailbox.forget_arrivals`."""
        await self._with(lambda c: c.execute(_SQL["forget_arrivals"], rfc3339(before)))

    async def keep_patterns(self, patterns: Patterns) -> None:
        """See `Mailbox.keep_patterns`."""
        if values := rows.pattern_values(patterns):
            await self._with(lambda c: c.execute(_SQL["keep_patterns"], *rows.columns(values)))

    async def patterns(self) -> Patterns:
        """See `Mailbox.patterns`."""
        return rows.patterns(await self._with(lambda c: c.fetch(_SQL["patterns"])))

    async def add_caller(self, run_id: str, caller: Caller) -> None:
        """See `Mailbox.add_caller`."""
        values = tuple(map(rows.storable, (*rows.caller_values(run_id, caller), rows.text(caller))))
        await self._with(lambda c: c.execute(_SQL["add_caller"], *values))

    async def served_callers(self, limit: int) -> Sequence[tuple[str, Caller]]:
        """See `Mailbox.served_callers`."""
        found = await self._with(lambda c: c.fetch(_SQL["served_callers"], limit))
        return [(row["run_id"], rows.caller(row["caller"])) for row in found]

    async def drop_caller(self, run_id: str, caller: Caller) -> None:
        """See `Mailbox.drop_caller`."""
        values = tuple(map(rows.storable, rows.caller_values(run_id, caller)))
        await self._with(lambda c: c.execute(_SQL["drop_caller"], *values))

    async def begin_schedule(self, name: str, now: datetime) -> datetime:
        """See `ScheduleStore.begin_schedule`."""

        async def begin(connection: _Connection) -> str:
            await connection.execute(_SQL["begin_schedule"], name, rfc3339(now))
            return str(await connection.fetchval(_SQL["last_slot"], name))

        return parse_time(await self._with(begin))

    async def take_slot(
        self, name: str, slot: datetime, event: EventRecord | None = None, outgoing: Outgoing | None = None
    ) -> bool:
        """See `ScheduleStore.take_slot`."""

        async def take(connection: _Connection) -> bool:
            async with connection.transaction():
                if await connection.fetchval(_SQL["take_slot"], name, rfc3339(slot)) is None:
                    return False
                await self._writer.publish(connection, event, outgoing)
            return True

        return await self._with(take)

    async def take_token(
        self, name: str, key: str, *, limit: int, period_s: float, burst: int, now: datetime
    ) -> float | None:
        """See `RateLimits.take_token`. Every message may ask, so that a commit each would cost more than its run."""
        return await self._tokens.put((name, rows.storable(key), rows.Bucket(limit, period_s, burst, now)))

    async def _take_tokens(self, asked: Sequence[tuple[str, str, rows.Bucket]]) -> Sequence[float | None]:
        """For each, in order: None if it got a token, else the seconds until there is one."""
        names, keys = rows.columns([(name, key) for name, key, _ in asked])

        async def take(connection: _Connection) -> Sequence[float | None]:
            async with connection.transaction():
                for name in sorted(set(names)):
                    await connection.execute(_SQL["lock_buckets"], f"flowrun buckets {self._schema} {name}")
                await connection.execute(_SQL["forget_full_buckets"], min(bucket.now_ns for *_, bucket in asked))
                found = await connection.fetch(_SQL["buckets"], names, keys)
                full_at = {(row["name"], row["key"]): row["full_at"] for row in found}
                waits: list[float | None] = []
                taken: dict[tuple[str, str], int] = {}
                for name, key, bucket in asked:
                    known = taken.get((name, key), full_at.get((name, key), 0))
                    before = bucket.bounded(known)
                    if before != known:
                        taken[name, key] = before
                    after = bucket.take(before, early=True)
                    waits.append(None if after is not None else bucket.wait_s(before))
                    if after is not None:
                        taken[name, key] = after
                if taken:
                    values = [(*which, at) for which, at in taken.items()]
                    await connection.execute(_SQL["keep_buckets"], *rows.columns(values))
                return waits

        return await self._with(take)

    async def forget_dead(self, owners: Collection[str]) -> None:
        """See `RunControl.forget_dead`."""
        await self._with(lambda c: c.execute(_SQL["forget_runners"], list(owners)))

    def on_ring(self, wake: Callable[[], None]) -> None:
        """See `Doorbell.on_ring`: by LISTEN and NOTIFY."""
        self._presence.on_ring(wake)

    def on_outgoing(self, hand_over: Callable[[Sequence[OutboxRow]], None]) -> None:
        """See `Doorbell.on_outgoing`."""
        self._writer.hand_over = hand_over

    # --- DeadLetterStore

    async def dead_letters(
        self, *, limit: int, reason: str | None = None, handler: str | None = None
    ) -> Sequence[DeadLetter]:
        """See `DeadLetterStore.dead_letters`."""
        found = await self._with(lambda c: c.fetch(_SQL["dead_letters"], reason, handler, limit))
        return [rows.dead_letter(row) for row in found]

    async def dead_letter(self, ident: str) -> DeadLetter | None:
        """See `DeadLetterStore.dead_letter`."""
        found = await self._with(lambda c: c.fetch(_SQL["dead_letters_like"], rows.storable(ident)))
        return rows.the_letter(found, ident)

    async def drop(self, letters: Sequence[DeadLetter]) -> None:
        """See `DeadLetterStore.drop`."""
        ids, times = [letter.id for letter in letters], [letter.received_at for letter in letters]
        await self._with(lambda c: c.execute(_SQL["drop_letters"], ids, times))

    async def refused(self, limit: int) -> Sequence[OutboxRow]:
        """See `DeadLetterStore.refused`."""
        return [rows.outbox_row(row) for row in await self._with(lambda c: c.fetch(_SQL["refused"], limit))]

    # --- EventLog

    async def append(self, events: Sequence[EventRecord]) -> int:
        """See `EventLog.append`. Most are there already: those wait for nobody."""

        async def add(connection: _Connection) -> int:
            ids, sources = rows.columns([(event.meta.id, event.meta.source) for event in events])
            known = {tuple(row) for row in await connection.fetch(_SQL["known_events"], ids, sources)}
            new = [e for e in events if (rows.storable(e.meta.id), rows.storable(e.meta.source)) not in known]
            if not new:
                return 0
            async with connection.transaction():
                return await self._writer.log(connection, new)

        return await self._with(add) if events else 0

    async def events(
        self, wanted: EventFilter, *, limit: int, after: int = 0, newest: bool = False
    ) -> Sequence[LoggedEvent]:
        """See `EventLog.events`."""
        order = "newest" if newest else "first"
        if wanted.types is not None and wanted.id_begins is wanted.subject is wanted.correlation_id is None:
            query = _SQL[f"events_of_types_{order}"]
            given = (list(wanted.types), wanted.source, wanted.since, wanted.until, wanted.up_to_version)
        else:
            query = f"{_SQL['events']}\n{_SQL[f'events_{order}']}"
            types = None if wanted.types is None else list(wanted.types)
            given = tuple({**msgspec.structs.asdict(wanted), "types": types}.values())
        values = [rows.storable(value) for value in given]
        found = await self._with(lambda c: c.fetch(query, after, limit, *values))
        return [rows.logged_event(row) for row in sorted(found, key=lambda row: row["position"])]

    async def head(self) -> int:
        """See `EventLog.head`."""
        return int(await self._with(lambda c: c.fetchval(_SQL["head"])))

    async def old(self, before: datetime, *, but: Collection[str], after: int, up_to: int) -> Sequence[LoggedEvent]:
        """See `EventLog.old`."""
        values = (after, up_to, rfc3339(before), list(but))
        return [rows.logged_event(row) for row in await self._with(lambda c: c.fetch(_SQL["old"], *values))]

    async def forget(self, positions: Collection[int]) -> None:
        """See `EventLog.forget`."""
        await self._with(lambda c: c.execute(_SQL["forget"], list(positions)))

    async def types(self) -> Sequence[str]:
        """See `EventLog.types`."""
        return [row["type"] for row in await self._with(lambda c: c.fetch(_SQL["event_types"]))]

    async def subjects_near(self, subject: str, limit: int) -> Sequence[str]:
        """See `EventLog.subjects_near`."""
        found = await self._with(lambda c: c.fetch(_SQL["subjects_near"], rows.storable(subject), limit))
        return [row["subject"] for row in found]

    async def begun_by(self, event: Meta) -> Sequence[RunSummary]:
        """See `EventLog.begun_by`."""
        found = await self._with(lambda c: c.fetch(_SQL["begun_by"], rows.trigger_beginning(event)))
        return [run for run in map(rows.run_summary, found) if run.trigger["source"] == event.source]

    # --- PlanStore

    async def keep_plan(self, plan_hash: str, sources: Mapping[str, str]) -> None:
        """See `PlanStore.keep_plan`."""
        await self._with(lambda c: c.execute(_SQL["keep_plan"], plan_hash, rows.text(dict(sources))))

    async def unfinished_plans(self) -> Mapping[str, Mapping[str, str]]:
        """See `PlanStore.unfinished_plans`."""
        found = await self._with(lambda c: c.fetch(_SQL["unfinished_plans"]))
        return {row["hash"]: msgspec.json.decode(row["sources"], type=dict[str, str]) for row in found}

    async def keep_declared(self, topology: Topology) -> None:
        """See `PlanStore.keep_declared`."""
        columns = rows.columns(rows.declared_values(topology))
        await self._with(lambda c: c.execute(_SQL["keep_declared"], *columns))

    async def declared(self) -> Topology:
        """See `PlanStore.declared`."""
        return rows.declared_topology(await self._with(lambda c: c.fetch(_SQL["declared"])))

    async def facts(self) -> StoreFacts:
        """See `PlanStore.facts`."""

        async def ask(connection: _Connection) -> StoreFacts:
            before = datetime.now(UTC)
            theirs = await connection.fetchval("SELECT clock_timestamp()")
            ours = before + (datetime.now(UTC) - before) / 2
            return StoreFacts(
                product="PostgreSQL",
                version=await connection.fetchval("SHOW server_version"),
                schema_version=len(SCRIPTS),
                clock_skew_s=(theirs - ours).total_seconds(),
            )

        return await self._with(ask)

    # --- leases and migrations

    async def _appear(self) -> None:
        try:
            await self._presence.begin()
        except FAULTS as error:
            raise _connect_fault(self._url, error) from error
        self._owner = self._presence.owner

    async def _leave(self, connection: _Connection) -> None:
        async with connection.transaction():
            await self.gate.park_all(connection, self._owner)
            await connection.execute(_SQL["put_down"], self._owner)
            await connection.execute(_SQL["give_up_lease"], self._owner)
            await connection.execute(_SQL["free_outbox"])
            await self._writer.ring(connection)

    async def _migrate(self, connection: _Connection) -> None:
        """Numbered scripts, each once, known by their checksum; an advisory lock keeps two runners apart."""
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", f"flowrun {self._schema}")
            await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{self._schema}"')
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS migrations (number integer PRIMARY KEY, checksum text NOT NULL)"
            )
            done = dict(await connection.fetch("SELECT number, checksum FROM migrations"))
            if len(done) > len(SCRIPTS):
                raise StoreError(
                    f'the store\'s schema "{self._schema}" was written by a newer flowrun '
                    f"(version {len(done)}, this one knows {len(SCRIPTS)})",
                    hint="run that version, or name another store with --store",
                )
            for number, name in enumerate(SCRIPTS, 1):
                script = files("runner.stores").joinpath(name).read_text()
                checksum = hashlib.sha256(script.encode()).hexdigest()
                if number not in done:
                    await connection.execute(script)
                    await connection.execute("INSERT INTO migrations VALUES ($1, $2)", number, checksum)
                elif done[number] != checksum:
                    raise StoreError(f"migration {number} of the store was another one: {name} has been changed since")

    async def _with(self, work: Callable[[_Connection], Awaitable[T]]) -> T:
        """Run on a connection of the pool. Raises StoreError for whatever the database says."""
        assert self._pool is not None
        try:
            async with self._pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                return await work(connection)
        except FAULTS as error:
            raise StoreError(f"the store said: {error or type(error).__name__}") from error


async def _leave_as_it_is(connection: object) -> None:
    """A connection that goes back to the pool needs no reset: nothing here changes its session's state."""


_Connection = Any  # asyncpg's pool hands out proxies that its stubs type apart from connections


async def _whole(connection: _Connection, ids: list[str]) -> list[StoredRun]:
    if not ids:
        return []
    bodies: dict[str, list[str]] = {run_id: [] for run_id in ids}
    for row in await connection.fetch(_SQL["records"], ids):
        bodies[row["run_id"]].append(row["body"])
    answers: dict[str, list[str]] = {}
    for row in await connection.fetch(_SQL["answers"], ids):
        answers.setdefault(row["run_id"], []).append(row["answer"])
    arrivals: dict[str, list[Sequence[Any]]] = {}
    for row in await connection.fetch(_SQL["arrivals"], ids):
        arrivals.setdefault(row["run_id"], []).append((row["arrival"], row["data"]))
    found = {row["id"]: row for row in await connection.fetch(_SQL["runs_whole"], ids)}
    runs = []
    for run_id in ids:
        try:
            if run_id in found:
                came = (answers.get(run_id, ()), arrivals.get(run_id, ()))
                runs.append(rows.stored_run(found[run_id], bodies[run_id], *came))
        except (msgspec.MsgspecError, ValueError) as error:
            _log.error("run %s cannot be read by this version, and is left alone: %s", run_id, error)
    return runs


async def _give(connection: _Connection, answer: Answer) -> bool:
    run_id = await connection.fetchval(
        _SQL["answer"], rows.storable(rows.text(answer)), rows.storable(answer.command_id)
    )
    if run_id is not None:
        await connection.execute(_SQL["wake"], run_id)
    return run_id is not None


def _connect_fault(url: str, error: BaseException) -> StoreError:
    where = re.sub(r"^.*?//(?:[^@/]*@)?", "", url) or "PostgreSQL"
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        return StoreError(f"PostgreSQL at {where} refused the user or the password")
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return StoreError(f"PostgreSQL has no database for {where}", hint="create it: createdb NAME")
    reason = str(error).lower() or f"no answer within {CONNECT_TIMEOUT_S:g} s"
    hint = "is it started? flowrun start --wait 60s waits for it"
    return StoreError(f"no PostgreSQL can be reached at {where}: {reason}", hint=hint)
