"""One process that consumes and runs: deliveries in, finished or parked runs out.

A delivery is acknowledged after its run's first commit, its dead letter's, or when no route wants it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from runner.engine import intake
from runner.engine.executor import Executor, NotOurs
from runner.engine.outbox import Outbox
from runner.engine.run import Run
from runner.errors import EnvelopeError, OwnershipError, StoreError, TransportError
from runner.message import Delivery, identity
from runner.plan import Plan, Program
from runner.ports import Clock, Store, StoreReader, Transport
from runner.records import SUSPECT_CRASHES, Change, Error, RunFailed, RunStarted, RunState, StoredRun
from runner.times import parse_time, rfc3339

POLL_S = 1.0
PUT_DOWN_S = 60.0
TAKE = 200
MAX_CRASHES = 8
"""Generous: who kills processes from outside, again and again, hits the suspect under test more than once."""
TIMER_S = 60.0
PAUSE_S = 1.0

_log = logging.getLogger("flowrun.worker")

Watch = Callable[[Run, Change | None], None]
"""Is told that a run begins (None), before its first step, and then every committed change: for logs."""


@dataclass(slots=True)
class Counts:
    """What a worker has done so far."""

    begun: int = 0
    finished: int = 0
    passed_over: int = 0
    duplicates: int = 0
    dead_letters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """`env` and `secrets` as flows see them; secrets are read anew whenever a run is taken up: for every attempt."""

    env: Callable[[tuple[str, ...]], Mapping[str, str]]
    secrets: Callable[[tuple[str, ...]], Mapping[str, str]]


@dataclass(slots=True)
class _Lane:
    """A handler's queue in this process."""

    program: Program
    slots: asyncio.Semaphore


@dataclass(slots=True)
class _Beginning:
    """A message whose run is not durable yet."""

    delivery: Delivery
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Worker:
    """Runs the programs of a plan. `load_older` gives the plans of before that unfinished runs
    began with, by hash.

    With `only_these`, runs of other handlers are left to other processes.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        load_older: Callable[[], Awaitable[Mapping[str, Plan]]],
        programs: tuple[Program, ...],
        only_these: bool,
        transport: Transport,
        store: Store,
        reader: StoreReader,
        executor: Callable[[Callable[[], bool]], Executor],
        environment: Environment,
        clock: Clock,
        watch: Watch,
    ) -> None:
        self.counts = Counts()
        self._plan = plan
        self._load_older = load_older
        self._older: Mapping[str, Plan] = {}
        self._resuming = 0
        self._suspects = asyncio.Lock()
        self._transport = transport
        self._store = store
        self._reader = reader
        self._environment = environment
        self._clock = clock
        self._watch = watch
        self._draining = False
        self._executor = executor(lambda: self._draining)
        self._outbox = Outbox(store, transport)
        self._handlers = [program.name for program in programs] if only_these else None
        self._nameless: set[str] = set()
        self._lanes = {p.name: _Lane(p, asyncio.Semaphore(p.concurrency)) for p in programs}
        self._tasks: set[asyncio.Task[None]] = set()
        self._beginning: dict[str, _Beginning] = {}
        self._cancels: list[Callable[[], Awaitable[None]]] = []
        self._due = asyncio.Event()

    async def start(self) -> tuple[asyncio.Task[None], ...]:
        """Begin to consume; returns the tasks that go on until `drain`. Raises TransportError."""
        for lane in self._lanes.values():
            if lane.program.routes:
                self._cancels.append(await self._consume(lane))
        return (asyncio.create_task(self._outbox.run()), asyncio.create_task(self._take_runs()))

    async def is_idle(self) -> bool:
        """Nothing is being done, and nothing waits to be done."""
        queues = [lane.program.queue for lane in self._lanes.values() if lane.program.routes]
        try:
            if self._tasks or await self._transport.depth(queues):
                return False
            backlog = await self._reader.backlog(handlers=self._handlers)
        except (StoreError, TransportError):
            return False  # nobody can tell
        return not (self._tasks or backlog.runs or backlog.outbox)

    async def drain(self, grace_s: float) -> bool:
        """Take nothing new, put runs down at their next step, publish what is committed.

        False if some handler did not end within `grace_s`; its run is taken up again later.
        """
        self._draining = True
        for cancel in self._cancels:
            await cancel()
        try:
            async with asyncio.timeout(grace_s):
                while self._tasks:
                    await asyncio.wait(set(self._tasks))
                await self._outbox.flush()
        except TimeoutError:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(set(self._tasks), timeout=PAUSE_S)  # one that will not be cancelled is left
            return False
        return True

    # --- messages

    async def _consume(self, lane: _Lane) -> Callable[[], Awaitable[None]]:
        def deliver(delivery: Delivery) -> None:
            self._spawn(self._serve(lane, delivery))

        return await self._transport.consume(lane.program.queue, lane.program.concurrency, deliver)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("internal error, please report it", exc_info=task.exception())

    async def _serve(self, lane: _Lane, delivery: Delivery) -> None:
        async with lane.slots:
            if self._draining:
                await self._settle(delivery, accept=False)
                return
            try:
                await self._serve_or_bury(lane.program, delivery)
            except StoreError as error:
                _log.error("%s; the message goes back to its queue", error)
                await asyncio.sleep(PAUSE_S)
                await self._settle(delivery, accept=False)

    async def _serve_or_bury(self, program: Program, delivery: Delivery) -> None:
        try:
            await self._serve_one(program, delivery)
        except StoreError:
            raise
        except Exception as error:
            _log.exception("internal error, please report it; the message is a dead letter")
            await self._bury(program, delivery, EnvelopeError("internal", f"{type(error).__name__}: {error}"))

    async def _serve_one(self, program: Program, delivery: Delivery) -> None:
        now = self._clock.now()
        try:
            started = intake.read(self._plan, program, delivery, now, self._environment.env(program.env))
        except EnvelopeError as fault:
            await self._bury(program, delivery, fault)
            return
        if started is None:
            self.counts.passed_over += 1
            await self._settle(delivery)
        else:
            await self._begin_once(program, delivery, started)

    async def _bury(self, program: Program, delivery: Delivery, fault: EnvelopeError) -> None:
        letter = intake.dead_letter(program, delivery, fault, self._clock.now())
        await self._store.bury(letter)
        self.counts.dead_letters += 1
        name = f"{program.name}: {letter.routing_key} {letter.message_id or '(no id)'}"
        _log.warning("%s is a dead letter, %s: %s", name, fault.reason, fault)
        await self._settle(delivery)

    async def _begin_once(self, program: Program, delivery: Delivery, started: RunStarted) -> None:
        """Begin the run, unless it stands already; while another delivery of the message begins it, wait."""
        while (other := self._beginning.get(started.run_id)) is not None:
            await other.over.wait()
        beginning = self._beginning[started.run_id] = _Beginning(delivery)
        try:
            if await self._reader.known(started.run_id):
                raise NotOurs
            self._mind_the_id(program, delivery)
            await self._begin(program, delivery, started)
        except NotOurs:
            self.counts.duplicates += 1
            await self._settle(delivery)
        finally:
            beginning.over.set()
            if self._beginning.get(started.run_id) is beginning:
                del self._beginning[started.run_id]

    def _mind_the_id(self, program: Program, delivery: Delivery) -> None:
        if program.name not in self._nameless and identity(delivery)[0] is None:
            self._nameless.add(program.name)
            _log.warning(
                "%s gets messages without an id: such a one may run twice after a crash; let producers set message_id",
                program.name,
            )

    async def _begin(self, program: Program, delivery: Delivery, started: RunStarted) -> None:
        run = self._make(self._plan, program, started)
        self._watch(run, None)
        # A redelivered message may have crashed a process: own it first, so that the next crash is counted.
        if delivery.redelivered and not await run.commit():
            raise NotOurs
        await self._execute(run)

    async def _settle(self, delivery: Delivery, *, accept: bool = True) -> None:
        """Until it is done: a delivery that stays unsettled would keep its place in the prefetch for ever."""
        while True:
            try:
                await self._transport.settle([delivery], accept=accept)
            except (TransportError, StoreError) as error:
                _log.warning("a message could not be settled: %s; trying again", error)
                await asyncio.sleep(PAUSE_S)
            else:
                return

    # --- runs

    def _make(self, plan: Plan, program: Program, started: RunStarted) -> Run:
        run: Run

        def committed(change: Change) -> None:
            self._committed(run, change)

        run = Run(
            plan=plan,
            program=program,
            started=started,
            commit=self._commit,
            on_commit=committed,
            env=self._environment.env(program.env),
            secrets=self._environment.secrets(program.secrets),
        )
        return run

    def _committed(self, run: Run, change: Change) -> None:
        if change.started is not None:
            self.counts.begun += 1
            beginning = self._beginning.pop(run.id)
            beginning.over.set()
            self._spawn(self._settle(beginning.delivery))
        if change.finished_at is not None:
            self.counts.finished += 1
        if change.outgoing:
            self._outbox.poke()
        if change.due_at is not None and not self._draining:
            self._wake_at(parse_time(change.due_at))
        self._watch(run, change)

    async def _commit(self, change: Change) -> bool:
        """Commit, however long the store is away: the result in hand must not be thrown away, or its effect would
        happen again. Raises OwnershipError if the run is another runner's by now."""
        unknown = False
        while True:
            try:
                if unknown and await self._is_applied(change):
                    return True
                return await self._store.commit(change)
            except OwnershipError:
                raise
            except StoreError as error:
                unknown = True  # the answer may have been lost after the commit
                _log.error("%s; trying again", error)
                await asyncio.sleep(PAUSE_S)

    async def _is_applied(self, change: Change) -> bool:
        stored = await self._reader.run(change.run_id)
        if stored is None:
            return False
        if change.started is not None:
            return stored.started == change.started
        return bool(change.records) and len(stored.records) >= change.first + len(change.records)

    async def _execute(self, run: Run) -> None:
        """To its end or its parking; whatever goes wrong in between, somebody will take the run up again."""
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
            await self._put_down(run.id, run.state)

    async def _put_down(self, run_id: str, state: RunState) -> None:
        """Leave a run to whoever takes it after a while."""
        due_at = self._clock.now() + timedelta(seconds=PUT_DOWN_S)
        await self._commit(Change(run_id=run_id, state=state, due_at=rfc3339(due_at)))

    async def _take_runs(self) -> None:
        """Take up what is due, and what dead runners left, until the worker drains."""
        while not self._draining:
            try:
                await self._take_some()
            except StoreError as error:
                _log.error("%s", error)
            except Exception:  # whatever it is, later runs must be taken up
                _log.exception("internal error, please report it")
            try:
                async with asyncio.timeout(POLL_S):
                    await self._due.wait()
            except TimeoutError:
                continue
            self._due.clear()

    async def _take_some(self) -> None:
        """As many as are not yet too many in memory; the rest is there for other processes, or for later."""
        while not self._draining and (room := TAKE - self._resuming) > 0:
            taken = await self._store.take(self._clock.now(), room, handlers=self._handlers)
            for stored in taken:
                self._resuming += 1
                self._spawn(self._resume_in_lane(stored))
            if len(taken) < room:
                return

    def _wake_at(self, due_at: datetime) -> None:
        delay_s = max(0.0, (due_at - self._clock.now()).total_seconds())
        if delay_s < TIMER_S:
            asyncio.get_running_loop().call_later(delay_s + 0.001, self._due.set)

    async def _resume_in_lane(self, stored: StoredRun) -> None:
        lane = self._lanes.get(stored.started.handler)
        slots = lane.slots if lane is not None else asyncio.Semaphore(1)
        try:
            async with slots:
                await self._resume(stored)
        finally:
            self._resuming -= 1
            self._due.set()

    async def _resume(self, stored: StoredRun) -> None:
        started = stored.started
        plan = await self._plan_of(started)
        if plan is None:
            _log.error(
                "run %s began with other flow files, and those do not compile here: is a plugin or a flow gone?",
                started.run_id,
            )
            await self._put_down(started.run_id, stored.state)
            return
        run = self._make(plan, plan.programs[started.handler], started)
        run.recall(stored)
        if stored.crashes < SUSPECT_CRASHES:
            await self._execute(run)
        else:
            await self._execute_suspect(run, stored.crashes)

    async def _execute_suspect(self, run: Run, crashes: int) -> None:
        """Processes died with this run: run it alone among such, so that only the culprit's crashes go on counting,
        and end it once it has had its chances."""
        async with self._suspects:
            if crashes >= MAX_CRASHES and run.history.failure is not None:
                now = rfc3339(self._clock.now())
                error = _crashed(crashes)
                state = RunState.COMPENSATION_FAILED
                await self._commit(Change(run_id=run.id, state=state, finished_at=now, error=error))
                _log.error("run %s is %s: %s", run.id, state, error.message)
                return
            if crashes >= MAX_CRASHES:
                run.note(RunFailed(error=_crashed(crashes), failed_at=rfc3339(self._clock.now())))
                run.state = RunState.COMPENSATING
                await run.commit()
            else:
                await self._commit(Change(run_id=run.id, state=run.state, suspect=True))
            await self._execute(run)

    async def _plan_of(self, started: RunStarted) -> Plan | None:
        program = self._plan.programs.get(started.handler)
        if program is not None and program.plan_hash == started.plan_hash:
            return self._plan
        if started.plan_hash not in self._older:
            self._older = {**self._older, **await self._load_older()}
        return self._older.get(started.plan_hash)


def _crashed(crashes: int) -> Error:
    return Error(type="crashed", message=f"{crashes} processes died while they ran it", retryable=False)
