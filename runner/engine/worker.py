"""One process that consumes and runs: deliveries in, finished or parked runs out.

A delivery is acknowledged after its run's first commit, its dead letter's, or when no route wants it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count

from runner.engine import intake
from runner.engine.approach import Approach
from runner.engine.breakers import Breakers
from runner.engine.counts import Counts
from runner.engine.gatekeeper import Gatekeeper
from runner.engine.intake import Coming
from runner.engine.journal import BATCH, Batches, Journal, Logged
from runner.engine.matching import patterns_of
from runner.engine.outbox import Outbox
from runner.engine.pressure import Pressure
from runner.engine.projector import Projector
from runner.engine.reception import Reception
from runner.engine.refusals import PAUSE_S, Refusals
from runner.engine.results import NotOurs
from runner.engine.retention import Retention
from runner.engine.run import Run
from runner.engine.runs import Environment, Runs, Watch
from runner.engine.scheduler import Scheduler
from runner.errors import EnvelopeError, StoreError, TransportError
from runner.masking import Mask
from runner.message import Delivery
from runner.plan import Plan, Program
from runner.ports import (
    Clock,
    Deliver,
    Doorbell,
    EventLog,
    GateStore,
    Mailbox,
    RateLimits,
    ScheduleStore,
    Store,
    StoreReader,
    TrafficStore,
    Transport,
)
from runner.records import (
    SUSPECT_CRASHES,
    Change,
    ReplySent,
    RunStarted,
    StoredRun,
)
from runner.times import parse_time

POLL_S = 1.0
TAKE = 200
OWN_PREFETCH = 100
JOURNAL = "journal"
FORGET_EVERY = 600
LONGEST_FIRST_STEP_S = 86400.0
"""A run in its first step is not in the store yet, and what came since it began counts for its waits."""
TIMER_S = 60.0

_log = logging.getLogger("flowrun.worker")


@dataclass(slots=True, eq=False)
class _Lane:
    """A handler's queue in this process."""

    program: Program
    slots: asyncio.Semaphore
    begun: Batches
    """Messages whose runs the store has: those of one commit are acknowledged together."""
    stop: Callable[[], Awaitable[None]] | None = None
    """Ends its consuming; None if it does not consume."""
    prefetch: int = 0
    """With which it consumes; 0 if it does not."""
    approach: Approach | None = None
    """The way to its gate, if it has one."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while its consuming begins or ends."""

    @property
    def name(self) -> str:
        """The handler's."""
        return self.program.name


@dataclass(slots=True)
class _Beginning:
    """A message whose run is not durable yet."""

    delivery: Delivery
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Worker:
    """Runs the programs of a plan. `runs` makes the runs' executor, given how to ask whether the worker drains and
    whom to tell of commits. `on_suspects` is told that there are runs which must not run here.

    With `only_these`, runs of other handlers are left to other processes.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        programs: tuple[Program, ...],
        only_these: bool,
        transport: Transport,
        store: Store,
        reader: StoreReader,
        doorbell: Doorbell,
        mailbox: Mailbox,
        event_log: EventLog,
        schedules: ScheduleStore,
        projector: Projector,
        retention: Retention | None = None,
        gate: GateStore,
        limits: RateLimits,
        breakers: Breakers,
        traffic: TrafficStore,
        runs: Callable[[Callable[[], bool], Watch], Runs],
        environment: Environment,
        mask: Mask,
        clock: Clock,
        watch: Watch,
        on_suspects: Callable[[], None],
    ) -> None:
        self.counts = Counts()
        self._due = asyncio.Event()
        self._plan = plan
        self._resuming: Counter[str] = Counter()
        self._transport = transport
        self._store = store
        self._reader = reader
        self._doorbell = doorbell
        self._mailbox = mailbox
        self._event_log = event_log
        self._clock = clock
        self._watch = watch
        self._on_suspects = on_suspects
        self._draining = False
        self._trouble = ""
        self._waiting_queues: list[str] = []
        self._runs = runs(lambda: self._draining, self._committed)
        self._outbox = Outbox(store, transport)
        self._projector = projector
        self._retention = retention
        self._scheduler = Scheduler(
            plan=plan, store=schedules, clock=clock, env=environment.env, poke=self._outbox.poke
        )
        self._serves_commands = any(program.command is not None for program in programs)
        self._handlers = [program.name for program in programs] if only_these else None
        self._for_the_log: Batches | None = None
        self._logged = Logged()
        self._refusals = Refusals(
            plan=plan, store=store, transport=transport, clock=clock, mask=mask, counts=self.counts
        )
        self._reception = Reception(
            plan=plan,
            reader=reader,
            limits=limits,
            mailbox=mailbox,
            environment=environment,
            clock=clock,
            refusals=self._refusals,
            counts=self.counts,
            log_only=self._log_only,
            call_waits=self._due.set,
        )
        self._gate = gate
        self._lanes = {program.name: self._lane(program) for program in programs}
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving_callers = False
        self._beginning: dict[str, _Beginning] = {}
        self.pressure = Pressure(
            plan=plan,
            traffic=traffic,
            gate=gate,
            reader=reader,
            transport=transport,
            clock=clock,
            poke=self._outbox.poke,
        )
        self._cancels: list[Callable[[], Awaitable[None]]] = []
        self.breakers = breakers
        self._gatekeeper = Gatekeeper(
            programs=programs,
            only_these=only_these,
            gate=gate,
            clock=clock,
            room=self._room,
            is_shut=self._is_shut,
            take_up=self._take_up,
        )

    def _lane(self, program: Program) -> _Lane:
        begun = Batches(lambda each: self._refusals.settle(*each), self._spawn)
        lane = _Lane(program, asyncio.Semaphore(program.concurrency), begun)
        if program.gate is not None:
            lane.approach = Approach(
                program,
                program.gate,
                store=self._gate,
                reception=self._reception,
                refusals=self._refusals,
                counts=self.counts,
                in_hand=self._in_hand,
                spawn=self._spawn,
                on_came=self._came,
                pause=lambda: self._consume(lane, 0),
            )
        return lane

    async def start(self) -> tuple[asyncio.Task[None], ...]:
        """Begin to consume; returns the tasks that go on until `drain`. Raises TransportError or StoreError."""
        self._cancels.append(await self._consume_one_by_one(self._plan.net, self._refusals.take_over))
        await self._consume_replies_and_journal()
        self._doorbell.on_ring(self._ring)
        self._doorbell.on_outgoing(self._outbox.add)
        if (await self._reader.backlog(handlers=self._handlers)).suspects:
            self._on_suspects()
        for lane in self._lanes.values():
            if lane.program.is_served:
                await self._consume(lane, self._wanted_prefetch(lane))
        work = [self._outbox.run(), self._take_runs(), self._projector.run(), self._gatekeeper.run()]
        work += [self.pressure.run()] if any(p.feedback is not None for p in self._plan.programs.values()) else []
        work += [self._scheduler.run()] if self._plan.schedules else []
        work += [self._retention.run()] if self._retention is not None else []
        return tuple(asyncio.create_task(each) for each in work)

    async def _consume_replies_and_journal(self) -> None:
        """Replies also if only runs of older plans wait for them: then their queue stands from then, or nothing can
        come."""
        plans = await self._runs.plans()
        await self._mailbox.keep_patterns(patterns_of(plans))
        self._cancels.append(await self._consume_journal(plans))
        self._waiting_queues.append(self._plan.journal)
        for queue in {plan.replies for plan in plans} - {None}:
            try:
                self._cancels.append(await self._consume_one_by_one(str(queue), self._pass_on))
                self._waiting_queues.append(str(queue))
            except TransportError:
                if self._plan.replies is not None:
                    raise

    @property
    def is_consuming(self) -> bool:
        """It has begun to consume, and does not drain."""
        return bool(self._cancels) and not self._draining

    async def is_idle(self) -> bool:
        """Nothing is being done, and nothing waits to be done."""
        queues = [lane.program.queue for lane in self._lanes.values() if lane.program.is_served]
        queues += [self._plan.net, *self._waiting_queues]
        try:
            if self._tasks or not self._projector.is_idle or await self._transport.depth(queues):
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
        for lane in self._lanes.values():
            await self._consume(lane, 0)
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

    async def _consume(self, lane: _Lane, prefetch: int) -> None:
        """Consume with so many messages in hand at most, from now on; with 0, not at all."""
        async with lane.changing:
            prefetch = 0 if self._draining else prefetch
            stop, lane.stop, lane.prefetch = lane.stop, None, prefetch
            if stop is not None:
                await stop()
            if prefetch > 0:
                lane.stop = await self._transport.consume(lane.program.queue, prefetch, self._deliver_to(lane))

    def _deliver_to(self, lane: _Lane) -> Deliver:
        def deliver(delivery: Delivery) -> None:
            self._spawn(self._serve(lane, delivery))

        if lane.approach is None:
            return deliver
        return lane.approach.deliver

    async def _regulate(self) -> None:
        """Consume as much as there is room for, and as circuits let through."""
        if any(program.breaker is not None for program in self._plan.programs.values()):
            await self.breakers.look()
        for lane in self._lanes.values():
            if lane.approach is not None:
                await lane.approach.look()
            wanted = self._wanted_prefetch(lane)
            if lane.program.is_served and lane.prefetch != wanted and not self._draining:
                try:
                    await self._consume(lane, wanted)
                except TransportError as error:
                    lane.prefetch = 0
                    _log.warning("%s; trying again", error)

    def _wanted_prefetch(self, lane: _Lane) -> int:
        """What comes to a gate is accepted all the same while a circuit is open. No more is in hand there than there is
        room for when it is consumed again: what is given back too often, RabbitMQ takes for poison."""
        if lane.program.gate is not None and lane.approach is not None:
            return 0 if lane.approach.is_full else min(lane.program.concurrency, max(1, lane.program.gate.most // 10))
        return {"closed": lane.program.concurrency, "half_open": 1}.get(self.breakers.state(lane.program), 0)

    async def _consume_one_by_one(
        self, queue: str, work: Callable[[Delivery], Coroutine[None, None, None]]
    ) -> Callable[[], Awaitable[None]]:
        def deliver(delivery: Delivery) -> None:
            self._spawn(self._in_hand([delivery], lambda: work(delivery)))

        return await self._transport.consume(queue, OWN_PREFETCH, deliver)

    async def _consume_journal(self, plans: Sequence[Plan]) -> Callable[[], Awaitable[None]]:
        programs = self._plan.programs.values()
        journal = Journal(
            logged=self._logged,
            log=self._event_log,
            mailbox=self._mailbox,
            clock=self._clock,
            events={name: event for plan in reversed(plans) for name, event in plan.events.items()},
            handled={name for program in programs for route in program.routes for name in route.events},
        )
        self._for_the_log = Batches(lambda batch: self._in_hand(batch, lambda: self._note(journal, batch)), self._spawn)
        return await self._transport.consume(self._plan.journal, BATCH, self._for_the_log.deliver)

    async def _note(self, journal: Journal, batch: Sequence[Delivery]) -> None:
        may_be_awaited, dead = await journal.note(batch)
        self._projector.poke()
        if may_be_awaited:
            self._due.set()
        for delivery, fault in dead.items():
            await self._refusals.keep(JOURNAL, delivery, fault)
        await self._refusals.settle(*batch)

    async def _pass_on(self, delivery: Delivery) -> None:
        """A reply goes to the run that waits for it, wherever that is; one that comes late is kept with it."""
        name = delivery.queue.removeprefix(f"{self._plan.project}.")  # as a handler's: dlq retry finds the queue by it
        try:
            answer = intake.read_answer(delivery)
            if not (intake.says_too_late(answer) or await self._mailbox.answer(answer)):
                raise EnvelopeError("unknown_reply", f"no run here sent a command {answer.command_id}")
        except EnvelopeError as fault:
            await self._refusals.bury(name, delivery, fault)
        else:
            self._due.set()
            await self._refusals.settle(delivery)

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
            await self._in_hand([delivery], lambda: self._serve_or_bury(lane.program, delivery))

    async def _in_hand(self, deliveries: Sequence[Delivery], work: Callable[[], Awaitable[None]]) -> None:
        """While the store is away messages stay in hand: given back, it would come again at once. So consuming
        pauses. The same trouble is said once, not for each message."""
        while not self._draining:
            try:
                await work()
            except StoreError as error:
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    _log.error("%s; messages wait for it", error)
                await asyncio.sleep(PAUSE_S)
            else:
                self._trouble = ""
                return
        await self._refusals.settle(*deliveries, accept=False)

    async def _serve_or_bury(self, program: Program, delivery: Delivery) -> None:
        try:
            await self._serve_one(program, delivery)
        except StoreError:
            raise
        except Exception as error:
            await self._refusals.refuse_internal(program, delivery, error)

    async def _serve_one(self, program: Program, delivery: Delivery) -> None:
        coming = await self._reception.read(program, delivery)
        if coming is not None:
            await self._begin_once(program, delivery, coming)

    def _log_only(self, delivery: Delivery) -> None:
        """It begins no run that would log it."""
        assert self._for_the_log is not None
        self._for_the_log.deliver(delivery)

    # --- the gate

    def _came(self) -> None:
        self._gatekeeper.poke()
        self._projector.poke()

    def _room(self, handler: str) -> int:
        """How many runs of it may begin here."""
        lane = self._lanes.get(handler)
        if self._draining:
            return 0
        if lane is None:
            return TAKE - self._resuming[handler]
        most = {"probed": 0, "half_open": 1}.get(self.breakers.state(lane.program), lane.program.concurrency)
        return most - self._resuming[handler]

    def _is_shut(self, handler: str) -> bool:
        """None of its runs may begin, because a circuit is open; those that have begun may have other things to do."""
        lane = self._lanes.get(handler)
        return lane is not None and self.breakers.state(lane.program) == "open"

    def _take_up(self, stored: StoredRun) -> None:
        self._resuming[stored.started.handler] += 1
        self._spawn(self._resume_in_lane(stored))

    async def _begin_once(self, program: Program, delivery: Delivery, coming: Coming) -> None:
        """Begin the run, unless it stands already; while another delivery of the message begins it, wait."""
        started = coming.started
        while (other := self._beginning.get(started.run_id)) is not None:
            await other.over.wait()
        beginning = self._beginning[started.run_id] = _Beginning(delivery)
        key_was_freed = False
        try:
            if await self._reception.is_known(started):
                raise NotOurs
            self._reception.mind_the_id(program, delivery)
            if await self._reception.lets_through(program, delivery, coming):
                await self._begin(program, delivery, started)
        except NotOurs:
            key_was_freed = not await self._reception.drop_duplicate(program, delivery, started)
        finally:
            beginning.over.set()
            if self._beginning.get(started.run_id) is beginning:
                del self._beginning[started.run_id]
        if key_was_freed:
            await self._begin_once(program, delivery, coming)

    async def _serve_callers(self) -> None:
        """Those who sent a command that had been sent before get the reply of the run that did it."""
        try:
            await self._serve_some_callers()
        except StoreError as error:
            _log.error("%s", error)
        finally:
            self._serving_callers = False

    async def _serve_some_callers(self) -> None:
        for run_id, caller in await self._mailbox.served_callers(TAKE):
            stored = await self._reader.run(run_id)
            records = stored.records if stored is not None else ()
            reply = next((r for r in reversed(records) if isinstance(r, ReplySent)), None)
            if reply is not None:
                await self._refusals.reply(caller, reply)
            await self._mailbox.drop_caller(run_id, caller)

    async def _begin(self, program: Program, delivery: Delivery, started: RunStarted) -> None:
        run = self._runs.make(self._plan, program, started)
        self._watch(run, None)
        # A redelivered message may have crashed a process: own it and count that before its code runs again.
        if delivery.redelivered:
            run.mind_crashes()
            if not await run.commit(suspect=True):
                raise NotOurs
        await self._runs.execute(run)

    # --- runs

    def _committed(self, run: Run, change: Change | None) -> None:
        if change is not None:
            self._count(run, change)
        self._watch(run, change)

    def _count(self, run: Run, change: Change) -> None:
        if change.started is not None:
            self.counts.begun += 1
            beginning = self._beginning.pop(run.id)
            beginning.over.set()
            self._lanes[run.program.name].begun.deliver(beginning.delivery)
        if change.finished_at is not None:
            self.counts.finished += 1
        if change.gate is not None and (change.finished_at or change.due_at):
            self._gatekeeper.poke()
        if change.events:
            self._logged.add(change.events)
            self._projector.poke()
        if change.due_at is not None and not self._draining:
            self._wake_at(parse_time(change.due_at))

    def _ring(self) -> None:
        """Another process may have left something to do."""
        self._due.set()
        self._outbox.poke()

    async def _take_runs(self) -> None:
        """Take up what is due, and what dead runners left, until the worker drains; heed what persons ask, always."""
        for number in count(1):
            try:
                await self._runs.heed()
                await self._regulate()
                await self._take_some()
                if self._waiting_queues and number % FORGET_EVERY == 0:
                    await self._mailbox.forget_arrivals(self._clock.now() - timedelta(seconds=LONGEST_FIRST_STEP_S))
                if self._serves_commands and not (self._serving_callers or self._draining):
                    self._serving_callers = True
                    self._spawn(self._serve_callers())  # by itself: a broker that is away must not keep runs waiting
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
        """As many as are not yet too many in memory; the rest is there for other processes, or for later. A lane that
        has enough to do keeps no other from getting its own."""
        while not self._draining:
            taken = await self._store.take(self._clock.now(), TAKE, handlers=self._handlers_with_room())
            if any(stored.crashes for stored in taken):
                self._outbox.poke()  # a process has died, and may have left messages, too
            for stored in taken:
                if stored.crashes >= SUSPECT_CRASHES:
                    self._spawn(self._hand_over(stored))
                    continue
                self._take_up(stored)
            if len(taken) < TAKE:
                break
        for lane in self._lanes.values():
            if self.breakers.state(lane.program) == "half_open" and not (self._draining or self._resuming[lane.name]):
                for stored in await self._store.take(self._clock.now(), 1, handlers=[lane.name]):
                    self._take_up(stored)

    def _handlers_with_room(self) -> Collection[str] | None:
        """None is all, also those that the plan no longer has."""
        full = {name for name, number in self._resuming.items() if number >= TAKE}
        few = ("probed", "half_open")  # while a circuit is open, runs that wait for it are not due, but others are
        full |= {name for name, lane in self._lanes.items() if self.breakers.state(lane.program) in few}
        if not full:
            return self._handlers
        return [name for name in self._handlers or self._lanes if name not in full]

    async def _hand_over(self, suspect: StoredRun) -> None:
        """Processes died with it: it is to run alone."""
        await self._runs.put_down(suspect)
        self._on_suspects()

    def _wake_at(self, due_at: datetime) -> None:
        delay_s = max(0.0, (due_at - self._clock.now()).total_seconds())
        if delay_s < TIMER_S:
            asyncio.get_running_loop().call_later(delay_s + 0.001, self._something_is_due)

    def _something_is_due(self) -> None:
        self._due.set()
        self._gatekeeper.poke()

    async def _resume_in_lane(self, stored: StoredRun) -> None:
        lane = self._lanes.get(stored.started.handler)
        slots = lane.slots if lane is not None else asyncio.Semaphore(1)
        try:
            async with slots:
                run = await self._runs.recall(stored)
                if run is not None and run.is_new:
                    self._watch(run, None)
                if run is not None:
                    await self._runs.execute(run)
        finally:
            self._resuming[stored.started.handler] -= 1
            self._due.set()
            self._gatekeeper.poke()
