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
from runner.engine.breakers import Breakers
from runner.engine.gatekeeper import Gatekeeper
from runner.engine.intake import Coming
from runner.engine.journal import BATCH, Batches, Journal, Logged
from runner.engine.matching import patterns_of
from runner.engine.outbox import Outbox
from runner.engine.pressure import Pressure
from runner.engine.projector import Projector
from runner.engine.replies import reply_to
from runner.engine.results import NotOurs
from runner.engine.retention import Retention
from runner.engine.run import Run
from runner.engine.runs import Environment, Runs, Watch
from runner.engine.scheduler import Scheduler
from runner.errors import EnvelopeError, StoreError, TransportError
from runner.masking import Mask
from runner.message import Delivery, identity
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
    Caller,
    Change,
    DeadLetter,
    EventRecord,
    ReplySent,
    RunStarted,
    RunState,
    StoredRun,
)
from runner.times import format_duration, parse_time, rfc3339

POLL_S = 1.0
TAKE = 200
OWN_PREFETCH = 100
JOURNAL = "journal"
FORGET_EVERY = 600
LONGEST_FIRST_STEP_S = 86400.0
"""A run in its first step is not in the store yet, and what came since it began counts for its waits."""
TIMER_S = 60.0
PAUSE_S = 1.0

_log = logging.getLogger("flowrun.worker")


@dataclass(slots=True)
class Counts:
    """What a worker has done so far."""

    begun: int = 0
    finished: int = 0
    passed_over: int = 0
    dropped: int = 0
    duplicates: int = 0
    dead_letters: int = 0


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
    coming: Batches | None = None
    """Messages on their way to its gate, if it has one."""
    room: int = 0
    """So many runs may come to its gate before those that wait there are counted again."""
    is_full: bool = False
    """More runs wait at its gate than may. Messages are given back until none is in hand: so they stay in order."""
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
        self._plan = plan
        self._resuming: Counter[str] = Counter()
        self._transport = transport
        self._store = store
        self._reader = reader
        self._doorbell = doorbell
        self._mailbox = mailbox
        self._event_log = event_log
        self._environment = environment
        self._mask = mask
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
        self._nameless: set[str] = set()
        self._lanes = {
            p.name: _Lane(p, asyncio.Semaphore(p.concurrency), Batches(lambda each: self._settle(*each), self._spawn))
            for p in programs
        }
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
        self._due = asyncio.Event()
        self._gate = gate
        self._limits = limits
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

    async def start(self) -> tuple[asyncio.Task[None], ...]:
        """Begin to consume; returns the tasks that go on until `drain`. Raises TransportError or StoreError."""
        self._cancels.append(await self._consume_one_by_one(self._plan.net, self._move))
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

        def come(batch: Sequence[Delivery]) -> Awaitable[None]:
            return self._in_hand(batch, lambda: self._come(lane, batch))

        if lane.program.gate is None:
            return deliver
        lane.coming = Batches(come, self._spawn)
        return lane.coming.deliver

    async def _regulate(self) -> None:
        """Consume as much as there is room for, and as circuits let through."""
        if any(program.breaker is not None for program in self._plan.programs.values()):
            await self.breakers.look()
        for lane in self._lanes.values():
            gate = lane.program.gate
            if lane.is_full and gate is not None and (lane.coming is None or lane.coming.is_idle):
                enough = gate.most - gate.most // 10
                lane.is_full = await self._gate.waiting(lane.program.name, enough) >= enough
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
        if (gate := lane.program.gate) is not None:
            return 0 if lane.is_full else min(lane.program.concurrency, max(1, gate.most // 10))
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
            await self._keep_letter(JOURNAL, delivery, fault)
        await self._settle(*batch)

    async def _pass_on(self, delivery: Delivery) -> None:
        """A reply goes to the run that waits for it, wherever that is; one that comes late is kept with it."""
        name = delivery.queue.removeprefix(f"{self._plan.project}.")  # as a handler's: dlq retry finds the queue by it
        try:
            answer = intake.read_answer(delivery)
            if not (intake.says_too_late(answer) or await self._mailbox.answer(answer)):
                raise EnvelopeError("unknown_reply", f"no run here sent a command {answer.command_id}")
        except EnvelopeError as fault:
            await self._bury(name, delivery, fault)
        else:
            self._due.set()
            await self._settle(delivery)

    async def _move(self, delivery: Delivery) -> None:
        """What the broker itself has dead-lettered belongs with our own dead letters."""
        letter = intake.fallen_letter(self._plan, delivery, self._clock.now())
        await self._store.bury(letter)
        self._say_dead(letter)
        await self._settle(delivery)

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
        await self._settle(*deliveries, accept=False)

    async def _serve_or_bury(self, program: Program, delivery: Delivery) -> None:
        try:
            await self._serve_one(program, delivery)
        except StoreError:
            raise
        except Exception as error:
            await self._bury_internal(program, delivery, error)

    async def _bury_internal(self, program: Program, delivery: Delivery, error: Exception) -> None:
        _log.exception("internal error, please report it; the message is a dead letter")
        await self._refuse(program, delivery, EnvelopeError("internal", f"{type(error).__name__}: {error}"))

    async def _serve_one(self, program: Program, delivery: Delivery) -> None:
        coming = await self._read(program, delivery)
        if coming is not None:
            await self._begin_once(program, delivery, coming)

    async def _read(self, program: Program, delivery: Delivery) -> Coming | None:
        """What is to begin; None if nothing is, and the message is dealt with."""
        env = self._environment.env(program.env)
        try:
            coming = intake.read(self._plan, program, delivery, self._clock.now(), env)
        except EnvelopeError as fault:
            await self._refuse(program, delivery, fault)
            return None
        if coming is None:
            self.counts.passed_over += 1
            self._log_only(delivery)
        return coming

    async def _is_let_through(self, program: Program, delivery: Delivery, coming: Coming) -> bool:
        """Whether the handler's rate limit takes the message; if not, it is dealt with."""
        limit = program.rate_limit
        if limit is None or coming.bucket is None:
            return True
        name = f"rate_limit {program.name}"
        wait_s = await self._limits.take_token(
            name, coming.bucket, limit=limit.limit, period_s=limit.period_s, burst=limit.burst, now=self._clock.now()
        )
        if wait_s is None:
            return True
        if program.drops and coming.started.caller is None:
            self.counts.dropped += 1
            self._log_only(delivery)
            return False
        told = f"no more than {limit.limit} in {format_duration(limit.period_s)}; the next in {format_duration(wait_s)}"
        await self._refuse(program, delivery, EnvelopeError("rate_limited", told))
        return False

    def _log_only(self, delivery: Delivery) -> None:
        """It begins no run that would log it."""
        assert self._for_the_log is not None
        self._for_the_log.deliver(delivery)

    # --- messages whose runs wait at a gate

    async def _come(self, lane: _Lane, batch: Sequence[Delivery]) -> None:
        """Bring the runs of a batch to the gate of their handler, in the order of the messages."""
        program = lane.program
        if lane.is_full:  # else these would overtake those that were given back
            await self._settle(*batch, accept=False)
            return
        # At once, so that the tokens which they need are asked for together.
        reads = await asyncio.gather(*(self._read_or_bury(program, each) for each in batch), return_exceptions=True)
        known: list[tuple[Delivery, Coming]] = []
        for delivery, coming in zip(batch, reads, strict=True):
            if isinstance(coming, BaseException):
                raise coming
            known += [] if coming is None else [(delivery, coming)]
        room = await self._room_at_gate(lane, len(known))
        changes = [_comes(each) for _, each in known[:room]]
        came: list[Delivery] = []
        for (delivery, each), is_new in zip(known, await self._gate.come(changes) if changes else (), strict=False):
            self._mind_the_id(program, delivery)
            if is_new:
                came.append(delivery)
            elif not await self._drop_duplicate(program, delivery, each.started):
                await self._come(lane, [delivery])  # the key that it bears was freed meanwhile
        self.counts.begun += len(came)
        await self._settle(*came)
        self._gatekeeper.poke()
        self._projector.poke()
        await self._turn_away(lane, [delivery for delivery, _ in known[room:]])

    async def _read_or_bury(self, program: Program, delivery: Delivery) -> Coming | None:
        try:
            coming = await self._read(program, delivery)
            if coming is None or program.rate_limit is None or await self._reader.known(coming.started.run_id):
                return coming
            return coming if await self._is_let_through(program, delivery, coming) else None
        except StoreError:
            raise
        except Exception as error:
            await self._bury_internal(program, delivery, error)
            return None

    async def _room_at_gate(self, lane: _Lane, wanted: int) -> int:
        """For how many of these there is room. Those that wait are counted for a tenth of `most` at a time."""
        gate = lane.program.gate
        assert gate is not None
        if lane.room < wanted:
            free = gate.most - await self._gate.waiting(lane.name, gate.most)
            lane.room = min(free, max(wanted, gate.most // 10))
        room = min(lane.room, wanted)
        lane.room -= room
        return room

    async def _turn_away(self, lane: _Lane, deliveries: Sequence[Delivery]) -> None:
        """Too many wait already: refuse these, or leave them to the broker, and take no more for now."""
        gate = lane.program.gate
        assert gate is not None
        if deliveries and gate.rejects:
            fault = EnvelopeError("queue_full", f"{gate.most} runs wait already")
            for delivery in deliveries:
                await self._refuse(lane.program, delivery, fault)
        elif deliveries:
            lane.is_full = True
            await self._consume(lane, 0)
            await self._settle(*deliveries, accept=False)

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

    # --- messages that go nowhere

    async def _refuse(self, program: Program, delivery: Delivery, fault: EnvelopeError) -> None:
        """A command that cannot begin is answered at once; anything else is a dead letter."""
        caller = intake.caller_of(program, delivery)
        if caller is None:
            await self._bury(program.name, delivery, fault)
            return
        fault = self._masked(fault)
        _log.warning("%s: a command is refused, %s: %s", program.name, fault.reason, fault)
        await self._reply(caller, ReplySent(at=rfc3339(self._clock.now()), error=intake.refusal(fault)))
        await self._settle(delivery)

    async def _reply(self, caller: Caller, reply: ReplySent) -> None:
        """However long the broker is away: nobody else would answer."""
        outgoing = reply_to(caller, reply, self._plan.project)
        while outgoing is not None:
            try:
                await self._transport.publish([outgoing])
            except TransportError as error:
                _log.warning("%s; the reply waits", error)
                await asyncio.sleep(PAUSE_S)
            else:
                return

    async def _bury(self, handler: str, delivery: Delivery, fault: EnvelopeError) -> None:
        await self._keep_letter(handler, delivery, fault)
        await self._settle(delivery)

    async def _keep_letter(self, handler: str, delivery: Delivery, fault: EnvelopeError) -> None:
        letter = intake.dead_letter(handler, delivery, self._masked(fault), self._clock.now())
        await self._store.bury(letter)
        self._say_dead(letter)

    def _masked(self, fault: EnvelopeError) -> EnvelopeError:
        """Why a message cannot begin a run, without secrets; what it holds itself is kept as it came."""
        return EnvelopeError(fault.reason, self._mask.text(str(fault)))

    def _say_dead(self, letter: DeadLetter) -> None:
        self.counts.dead_letters += 1
        name = f"{letter.handler}: {letter.routing_key} {letter.message_id or '(no id)'}"
        _log.warning("%s is a dead letter, %s: %s", name, letter.reason, letter.error.message)

    async def _begin_once(self, program: Program, delivery: Delivery, coming: Coming) -> None:
        """Begin the run, unless it stands already; while another delivery of the message begins it, wait."""
        started = coming.started
        while (other := self._beginning.get(started.run_id)) is not None:
            await other.over.wait()
        beginning = self._beginning[started.run_id] = _Beginning(delivery)
        key_was_freed = False
        try:
            if await self._reader.known(started.run_id):
                raise NotOurs
            self._mind_the_id(program, delivery)
            if await self._is_let_through(program, delivery, coming):
                await self._begin(program, delivery, started)
        except NotOurs:
            key_was_freed = not await self._drop_duplicate(program, delivery, started)
        finally:
            beginning.over.set()
            if self._beginning.get(started.run_id) is beginning:
                del self._beginning[started.run_id]
        if key_was_freed:
            await self._begin_once(program, delivery, coming)

    async def _drop_duplicate(self, program: Program, delivery: Delivery, started: RunStarted) -> bool:
        """Another run has the message, or its key; the handler says what becomes of the latter. False, and nothing
        done, if the one that had the key has set it free meanwhile."""
        idempotency, key = program.idempotency, started.key
        holder = None if key is None else await self._reader.holder(program.name, key, self._clock.now())
        if key is not None and holder is None and not await self._reader.known(started.run_id):
            return False
        other = holder if holder not in (None, started.run_id) else None
        if other is not None and idempotency is not None and idempotency.on_duplicate == "fail":
            fault = EnvelopeError("duplicate", f"run {other} has the idempotency key {key}")
            await self._refuse(program, delivery, fault)
            return True
        self.counts.duplicates += 1
        if other is not None:
            head = f"{started.run_id[:8]} {program.name}"
            _log.info("%s  is no run: %s has its idempotency key %s already", head, other[:8], key)
        if started.caller is not None and started.caller.reply_to is not None:
            await self._mailbox.add_caller(other or started.run_id, started.caller)
            self._due.set()
        await self._settle(delivery)
        return True

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
                await self._reply(caller, reply)
            await self._mailbox.drop_caller(run_id, caller)

    def _mind_the_id(self, program: Program, delivery: Delivery) -> None:
        if delivery.properties.message_id or program.name in self._nameless:
            return
        if identity(delivery)[0] is None:
            self._nameless.add(program.name)
            _log.warning(
                "%s gets messages without an id: such a one may run twice after a crash; let producers set message_id",
                program.name,
            )

    async def _begin(self, program: Program, delivery: Delivery, started: RunStarted) -> None:
        run = self._runs.make(self._plan, program, started)
        self._watch(run, None)
        # A redelivered message may have crashed a process: own it and count that before its code runs again.
        if delivery.redelivered:
            run.mind_crashes()
            if not await run.commit(suspect=True):
                raise NotOurs
        await self._runs.execute(run)

    async def _settle(self, *deliveries: Delivery, accept: bool = True) -> None:
        """Until it is done: a delivery that stays unsettled would keep its place in the prefetch for ever."""
        while True:
            try:
                await self._transport.settle(deliveries, accept=accept)
            except (TransportError, StoreError) as error:
                _log.warning("a message could not be settled: %s; trying again", error)
                await asyncio.sleep(PAUSE_S)
            else:
                return

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


def _comes(coming: Coming) -> Change:
    """The change that brings a run to its gate, with the event that begins it: before its effects, in the log."""
    started = coming.started
    events = (EventRecord(meta=started.trigger, data=started.data),) if started.caller is None else ()
    return Change(run_id=started.run_id, state=RunState.QUEUED, started=started, events=events, place=coming.place)
