"""How one process makes, commits and executes runs: patiently, and heeding what persons ask."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from runner.engine.executor import Executor
from runner.engine.results import NotOurs
from runner.engine.run import Run
from runner.errors import OwnershipError, StoreError, VersionConflictError
from runner.plan import Plan, Program
from runner.ports import Clock, RunControl, Store, StoreReader
from runner.records import Change, Error, RunStarted, StoredRun
from runner.times import rfc3339

PUT_DOWN_S = 60.0
PAUSE_S = 1.0

_log = logging.getLogger("flowrun.worker")

Watch = Callable[[Run, Change | None], None]
"""Is told that a run begins (None), before its first step, and then every committed change: for logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """`env` and `secrets` as flows see them; secrets are read anew whenever a run is taken up: for every attempt."""

    env: Callable[[tuple[str, ...]], Mapping[str, str]]
    secrets: Callable[[tuple[str, ...]], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """The present plan, and those of before that unfinished runs began with, by hash."""

    present: Plan
    load_older: Callable[[], Awaitable[Mapping[str, Plan]]]


class Runs:
    """The runs of this process. `on_commit` is told every change once it is durable."""

    def __init__(
        self,
        *,
        plans: Plans,
        store: Store,
        reader: StoreReader,
        control: RunControl,
        executor: Executor,
        environment: Environment,
        clock: Clock,
        on_commit: Watch,
    ) -> None:
        self._plans = plans
        self._older: Mapping[str, Plan] = {}
        self._store = store
        self._reader = reader
        self._control = control
        self._executor = executor
        self._environment = environment
        self._clock = clock
        self._on_commit = on_commit
        self._live: dict[str, Run] = {}

    def make(self, plan: Plan, program: Program, started: RunStarted) -> Run:
        """A run that begins."""
        return Run(
            plan=plan,
            program=program,
            started=started,
            commit=self.commit,
            on_commit=self._on_commit,
            reread=self._reread,
            env=self._environment.env(program.env),
            secrets=self._environment.secrets(program.secrets),
        )

    async def recall(self, stored: StoredRun) -> Run | None:
        """A run that goes on, by the plan that it began with; None, and it is put down, if there is no such plan."""
        started = stored.started
        plan = await self._plan_of(started)
        if plan is None:
            _log.error(
                "run %s began with other flow files, and those do not compile here: is a plugin or a flow gone?",
                started.run_id,
            )
            await self.put_down(stored, PUT_DOWN_S)
            return None
        run = self.make(plan, plan.programs[started.handler], started)
        run.recall(stored)
        run.let_in(self._clock.now())
        return run

    async def execute(self, run: Run) -> None:
        """To its end or its parking; whatever goes wrong in between, somebody will take the run up again."""
        self._live[run.id] = run
        try:
            await self._executor.execute(run)
        except OwnershipError as error:
            _log.warning("%s", error)
        except NotOurs:
            raise
        except Exception:
            if not run.owned:
                raise
            _log.exception("internal error, please report it; run %s is tried again in %g s", run.id, PUT_DOWN_S)
            due_at = rfc3339(self._clock.now() + timedelta(seconds=PUT_DOWN_S))
            gate = run.program.name
            await self.commit(
                Change(run_id=run.id, state=run.state, due_at=due_at, error=run.history.failure, gate=gate)
            )
        finally:
            del self._live[run.id]

    async def give_up(self, run: Run, error: Error) -> None:
        """End a run whose undoing cannot be gone on with."""
        await self._executor.give_up(run, error)

    async def put_down(self, stored: StoredRun, delay_s: float = 0.0) -> None:
        """Leave a run to whoever takes it after a while."""
        due_at = rfc3339(self._clock.now() + timedelta(seconds=delay_s))
        started = stored.started
        change = Change(
            run_id=started.run_id, state=stored.state, due_at=due_at, error=stored.error, gate=started.handler
        )
        try:
            await self.commit(change)
        except OwnershipError as error:
            _log.debug("%s", error)  # somebody else has it by now

    async def heed(self) -> None:
        """Pass on what persons ask of the runs that are going on here, or did to them. Raises StoreError."""
        owned = [run.id for run in self._live.values() if run.owned and not run.is_lost]
        for run_id in await self._control.lost(owned) if owned else ():
            if (lost := self._live.get(run_id)) is not None:
                lost.abandon()
        listening = [run.id for run in self._live.values() if run.owned and not run.is_lost and run.listening]
        for run_id in await self._control.woken(listening) if listening else ():
            if (told := self._live.get(run_id)) is not None:
                await told.refresh()
        for run_id, request in (await self._control.requests()).items():
            run = self._live.get(run_id)
            if run is None or run.cancel is not None:
                continue
            run.interrupt(request)
            if not run.is_to_be_cancelled:
                _log.warning("run %s is not cancelled: it is being undone, or it has passed its pivot", run_id)

    async def commit(self, change: Change) -> bool:
        """Commit, however long the store is away: the result in hand must not be thrown away, or its effect would
        happen again. Raises OwnershipError if the run is somebody else's by now."""
        unknown = False
        while True:
            try:
                if unknown and await self._is_applied(change):
                    return True
                return await self._store.commit(change)
            except (OwnershipError, VersionConflictError):
                raise
            except StoreError as error:
                unknown = True  # the answer may have been lost after the commit
                _log.error("%s; trying again", error)
                await asyncio.sleep(PAUSE_S)

    async def _reread(self, run_id: str) -> StoredRun | None:
        """However long the store is away: the run goes on meanwhile."""
        while True:
            try:
                return await self._reader.run(run_id)
            except StoreError as error:
                _log.error("%s; trying again", error)
                await asyncio.sleep(PAUSE_S)

    async def _is_applied(self, change: Change) -> bool:
        stored = await self._reader.run(change.run_id)
        if stored is None:
            return False
        if change.started is not None:
            return stored.started == change.started
        return bool(change.records) and len(stored.records) >= change.first + len(change.records)

    async def plans(self) -> list[Plan]:
        """The present plan, and those of before that unfinished runs began with."""
        self._older = {**self._older, **await self._plans.load_older()}
        return [self._plans.present, *self._older.values()]

    async def _plan_of(self, started: RunStarted) -> Plan | None:
        present = self._plans.present
        program = present.programs.get(started.handler)
        if program is not None and program.plan_hash == started.plan_hash:
            return present
        if started.plan_hash not in self._older:
            self._older = {**self._older, **await self._plans.load_older()}
        return self._older.get(started.plan_hash)
