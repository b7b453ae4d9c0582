"""One run in memory: its records, what is not committed yet, and the names that its expressions see."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from runner.engine.history import History, base
from runner.engine.line import Cut, Frame, Line
from runner.engine.moments import Moments, Timed
from runner.errors import VersionConflictError
from runner.expressions import Scope
from runner.message import Outgoing, decode_json
from runner.plan import Plan, Program, Switch
from runner.records import (
    Answer,
    Arrival,
    BlockBegun,
    BranchTaken,
    Change,
    Error,
    EventRecord,
    Intervention,
    LetIn,
    Record,
    RunStarted,
    RunState,
    StepFinished,
    StepState,
    StoredRun,
)
from runner.times import parse_time, rfc3339

_RUN_IDS = uuid.UUID("6f1f0c9e-6d1a-5d43-9f0e-0d7b5c0a8a11")


_WITHOUT_EFFECT = frozenset({"set", "switch", "parallel", "foreach", "fail", "stop"})


def run_id(handler: str, source: str, message_id: str) -> str:
    """The id of the run that a message begins: the same message, the same run."""
    return str(uuid.uuid5(_RUN_IDS, f"{handler}\0{source}\0{message_id}"))


@dataclass(slots=True, eq=False)
class Attempt:
    """Something that goes on on a line, and may be interrupted."""

    line: Line
    task: asyncio.Task[Any]
    is_interrupted: bool = False

    def interrupt(self) -> None:
        """Cut it short."""
        self.is_interrupted = True
        self.task.cancel()


class Run:
    """A run as it goes: `note` records, `commit` makes durable what was noted.

    `on_commit` is told every change once it is durable. `reread` gives what the store has of the run.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        program: Program,
        started: RunStarted,
        commit: Callable[[Change], Awaitable[bool]],
        on_commit: Callable[[Run, Change], None],
        reread: Callable[[str], Awaitable[StoredRun | None]],
        env: Mapping[str, str],
        secrets: Mapping[str, str],
    ) -> None:
        self.plan = plan
        self.program = program
        self.started = started
        self.history = History(program)
        self.history.taken.add((started.trigger.source, started.trigger.id))
        self.owned = False
        """The store has the run: the message may be acknowledged."""
        self.state = RunState.RUNNING
        self.has_crashed = False
        """Processes have died with it: an attempt is recorded before it begins."""
        self.line = Line()
        """Its own steps, one after the other."""
        self.news = asyncio.Event()
        """Set when a line that waits should look again; another event then takes its place."""
        self.listening = 0
        """How many blocks have a line that waits, while others go on."""
        self.is_lost = False
        """It is somebody else's by now."""
        self.cancel: Intervention | None = None
        """A person wants it cancelled."""
        self.arrivals: tuple[Arrival, ...] = ()
        """What has come of what it waits for, the earliest first."""
        self.answers: Mapping[str, Answer] = {}
        """What has come back, by the command's id."""
        self._attempts: set[Attempt] = set()
        self._commit_change = commit
        self._committing = asyncio.Lock()
        self._broken: BaseException | None = None
        """Why a commit did not succeed: what follows it would have a gap before it."""
        self._on_commit = on_commit
        self._reread = reread
        self._committed = 0
        self._noted = self._taken = self._durable = 0
        """How much was noted, how much of it the latest commit took, and how much is durable."""
        self._records: list[Record] = []
        self._events: list[EventRecord] = []
        self._outgoing: list[Outgoing] = []
        self._commands: list[str] = []
        self._tokens: list[str] = []
        self._cancel_tokens: list[str] = []
        self._moments = Moments(started, self.history)
        trigger = started.trigger
        self._base: dict[str, Any] = {
            "event" if started.caller is None else "command": decode_json(started.data),
            "meta": Timed({name: getattr(trigger, name) for name in trigger.__slots__}, self._moments),
            "run": Timed({"id": started.run_id, "started_at": started.started_at}, self._moments),
            "steps": self.history.root.steps,
            "vars": self.history.root.variables,
            "env": dict(env),
            "secrets": dict(secrets),
            "now": self._moments.now,
            "uuid": self._moments.uuid,
        }

    @property
    def is_new(self) -> bool:
        """Nothing of what it did is recorded yet."""
        return self._committed == 0 and all(isinstance(record, LetIn) for record in self._records)

    @property
    def id(self) -> str:
        """The run's id."""
        return self.started.run_id

    @property
    def deadline(self) -> datetime | None:
        """When the run's own timeout passes; what undoes has none."""
        if self.history.failure is not None:
            return None
        limits = []
        if self.program.timeout_s is not None:
            began_at = self.history.revived_at or self.history.let_in_at or self.started.started_at
            limits.append(parse_time(began_at) + timedelta(seconds=self.program.timeout_s))
        caller = self.started.caller
        if caller is not None and caller.expires_at is not None and self.history.revived_at is None:
            limits.append(parse_time(caller.expires_at))
        return min(limits, default=None)

    @property
    def logger(self) -> logging.Logger:
        """Where the run's handlers log."""
        return logging.getLogger(f"flowrun.{self.program.name}")

    def recall(self, stored: StoredRun) -> None:
        """Take up what the store has of it."""
        for record in stored.records:
            self.history.add(record)
        self._base |= {"steps": self.history.root.steps, "vars": self.history.root.variables}
        self._committed = len(stored.records)
        self.owned = True
        self.state = RunState.COMPENSATING if self.history.failure is not None else RunState.RUNNING
        if stored.crashes > 0:
            self.mind_crashes()
        self.cancel = stored.request
        self._hear(stored)

    def let_in(self, now: datetime) -> None:
        """It passes the gate of its handler, if that has one and it has not passed before: its time begins."""
        if self.program.gate is not None and self.history.let_in_at is None:
            self.note(LetIn(at=rfc3339(now)))

    def mind_crashes(self) -> None:
        """A process has died with it, perhaps in the midst of an effect."""
        self.has_crashed = True
        self.line.cut = Cut(1)

    async def refresh(self) -> None:
        """Learn what has come for it since it was taken up, and let the lines that wait look."""
        stored = await self._reread(self.id)
        if stored is not None:
            self._hear(stored)
        self.wake()

    def wake(self) -> None:
        """Let every line that waits look again."""
        news, self.news = self.news, asyncio.Event()
        news.set()

    def _hear(self, stored: StoredRun) -> None:
        self.arrivals = stored.arrivals
        self.answers = {answer.command_id: answer for answer in stored.answers}

    # --- cancelling

    @property
    def is_to_be_cancelled(self) -> bool:
        """A person wants it, and it is still possible: nothing is being undone, and no pivot is passed."""
        return self.cancel is not None and self.history.failure is None and not self.history.pivoted

    def interrupt(self, cancel: Intervention) -> None:
        """Cancel it as soon as may be: in the middle of an attempt, else before the next step."""
        self.cancel = cancel
        if self.is_to_be_cancelled:
            self._interrupt(lambda line: not line.is_undoing)

    def end(self, line: Line, why: str) -> None:
        """A line goes no further, nor what is inside of it."""
        line.end(why)
        self._interrupt(lambda at: at.is_within(line))

    def abandon(self) -> None:
        """It is somebody else's by now: an attempt that is going on is of no use any more."""
        self.is_lost = True
        self._interrupt(lambda line: True)

    def _interrupt(self, which: Callable[[Line], bool]) -> None:
        for attempt in self._attempts:
            if which(attempt.line):
                attempt.interrupt()
        self.wake()

    @contextmanager
    def attempting(self, line: Line) -> Iterator[Attempt]:
        """The present task may be interrupted; elsewhere, as in a commit, it may not."""
        task = asyncio.current_task()
        assert task is not None
        attempt = Attempt(line, task)
        self._attempts.add(attempt)
        try:
            yield attempt
        finally:
            self._attempts.discard(attempt)
            if attempt.is_interrupted:
                task.uncancel()  # also where the handler did not heed it

    def scope(self, key: str, frame: Frame, **extra: Any) -> Scope:
        """What an expression of the step with this record id sees; to be used at once."""
        layer = self.history.layer(frame.home, frame.rounds)
        self._moments.turn_to(key, layer)
        if not (frame.home or frame.names or extra):
            return self._base
        seen = {"steps": layer.steps, "vars": layer.variables}
        return {**self._base, **seen, **frame.names, **extra}

    def note(self, record: Record) -> None:
        """Record something; durable with the next commit."""
        self._noted += 1
        self._records.append(record)
        self.history.add(record)

    def publish(self, event: EventRecord, outgoing: Outgoing) -> None:
        """Publish an event; it leaves with the next commit."""
        self._noted += 1
        self._events.append(event)
        self._outgoing.append(outgoing)

    def send(self, command_id: str, outgoing: Outgoing) -> None:
        """Send a command; it leaves with the next commit, and its answer will be this run's."""
        self._noted += 1
        self._commands.append(command_id)
        self._outgoing.append(outgoing)

    def await_events(self, tokens: Iterable[str], *, cancel: bool = False) -> None:
        """From the next commit on, an event that bears one of these makes the run due, or cancels it."""
        self._noted += 1
        (self._cancel_tokens if cancel else self._tokens).extend(tokens)

    def answer(self, outgoing: Outgoing) -> None:
        """Send the run's reply; it leaves with the next commit."""
        self._noted += 1
        self._outgoing.append(outgoing)

    @property
    def must_commit(self) -> bool:
        """Something has happened that a crash during the next effect must not undo, or the run's key is not its own
        yet."""
        if self._broken is not None or self._committing.locked() or (not self.owned and self.started.key is not None):
            return True
        if self._cancel_tokens:  # an event that cancels must find it also while the effect goes on
            return True
        if self._outgoing or (self._moments.clock_was_read and (self._records or not self.owned)):
            return True
        return any(not self._rides_along(record) for record in self._records)

    async def commit(
        self,
        state: RunState | None = None,
        *,
        due_at: datetime | None = None,
        finished_at: datetime | None = None,
        error: Error | None = None,
        key_until: datetime | None = None,
        suspect: bool = False,
        asleep: bool = False,
    ) -> bool:
        """Make durable what was noted; lines that ask at once share a commit. False if the run turned out to stand
        already: then it is not ours.

        Raises StoreError.
        """
        wanted = self._noted
        async with self._committing:
            if self._broken is not None:
                raise self._broken
            if state is None and not suspect and self.owned and self._durable >= wanted:
                return True  # another line's commit had it all
            return await self._commit(
                self._change(
                    state or self.state,
                    due_at=due_at,
                    finished_at=finished_at,
                    error=error,
                    key_until=key_until,
                    suspect=suspect,
                    asleep=asleep,
                )
            )

    async def commit_step(self, record: StepFinished, event: EventRecord, outgoing: Outgoing) -> bool:
        """Make a step's record durable together with its event, if the event's subject is at the version that it
        expects: all of it or nothing. False if the run turned out to stand already: then it is not ours.

        Raises VersionConflictError, StoreError.
        """
        if not await self.commit():
            return False
        async with self._committing:
            if self._broken is not None:
                raise self._broken
            change = Change(
                run_id=self.id,
                state=self.state,
                first=self._committed,
                records=(record,),
                events=(event,),
                outgoing=(outgoing,),
            )
            try:
                await self._commit_change(change)
            except VersionConflictError:
                raise  # nothing has happened, and the run goes on
            except BaseException as error:
                self._broken = error
                raise
            self._committed += 1
            self.history.add(record)
        self._on_commit(self, change)
        return True

    def _change(
        self,
        state: RunState,
        *,
        due_at: datetime | None,
        finished_at: datetime | None,
        error: Error | None,
        key_until: datetime | None,
        suspect: bool,
        asleep: bool,
    ) -> Change:
        """All that was noted so far. What is noted from now on is for the next one."""
        self.state = state
        change = Change(
            run_id=self.id,
            state=self.state,
            started=None if self.owned else self.started,
            first=self._committed,
            records=tuple(self._records),
            events=(*(() if self.owned else self._beginning()), *self._events),
            outgoing=tuple(self._outgoing),
            commands=tuple(self._commands),
            tokens=tuple(self._tokens),
            cancel_tokens=tuple(self._cancel_tokens),
            asleep=asleep,
            due_at=None if due_at is None else rfc3339(due_at),
            finished_at=None if finished_at is None else rfc3339(finished_at),
            error=error,
            key_until=None if key_until is None else rfc3339(key_until),
            suspect=suspect,
            gate=None if self.program.gate is None else self.program.name,
        )
        self._committed += len(self._records)
        self._taken = self._noted
        self._records, self._events, self._outgoing = [], [], []
        self._commands, self._tokens, self._cancel_tokens = [], [], []
        self._moments.clock_was_read = False
        return change

    def _beginning(self) -> Iterator[EventRecord]:
        """The event that began the run: it may be on its way through the journal still, and in the log a cause stands
        before its effects."""
        if self.started.caller is None:
            yield EventRecord(meta=self.started.trigger, data=self.started.data)

    async def _commit(self, change: Change) -> bool:
        try:
            if not await self._commit_change(change):
                return False
        except BaseException as error:
            self._broken = error
            raise
        self.owned = True
        self._durable = self._taken
        self._on_commit(self, change)
        if change.tokens and change.due_at is None:
            await self.refresh()  # a line begins to wait while others go on, and what came before counts as well
        return True

    def derived(self, name: str) -> str:
        """An id that is the same whenever it is asked for."""
        return str(uuid.uuid5(uuid.UUID(self.id), name))

    def _rides_along(self, record: Record) -> bool:
        """The same record would be made again after a crash, so that it need not be durable before an effect."""
        match record:
            case BranchTaken():  # which branch came first, or which rounds had begun, need not come out the same
                return isinstance(self.program.every[base(record.step_id)], Switch)
            case BlockBegun() | LetIn():
                return True
            case StepFinished():
                return record.action in _WITHOUT_EFFECT or record.state is StepState.SKIPPED
        return False
