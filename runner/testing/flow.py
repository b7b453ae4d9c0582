"""Run a flow in a test: real compiler, real engine, real store (SQLite in memory), virtual time, no broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any

from runner.diagnostics import Diagnostic
from runner.engine import intake
from runner.engine.breakers import Breakers
from runner.engine.control import Hand
from runner.engine.executor import Executor
from runner.engine.matching import patterns_of
from runner.engine.read_models import ReadModels
from runner.engine.replies import reply_to
from runner.engine.results import NotOurs
from runner.engine.run import Run
from runner.errors import EnvelopeError
from runner.lang.compile import compile_project
from runner.lang.load import Sources
from runner.lang.projections import compile_projection
from runner.masking import Mask
from runner.message import Delivery, Outgoing, Properties, decode_json, encode_json, new_id
from runner.plan import Plan, Program
from runner.ports import Store
from runner.records import (
    Answer,
    Change,
    Error,
    ReplySent,
    RunStarted,
    RunState,
    StepFinished,
    StoredRun,
    UndoFinished,
)
from runner.registry import bind
from runner.sqlite_file import SqliteFile
from runner.stores.sqlite import SqliteStore
from runner.testing.clock import FakeClock
from runner.times import parse_time, rfc3339

EXPIRY = "ce-expirytime"


class FlowError(AssertionError):
    """The flow under test does not compile; `diagnostics` say why."""

    def __init__(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        super().__init__("\n".join(f"{d.span}: {d.code} {d.summary}" for d in diagnostics))
        self.diagnostics = diagnostics


@dataclass(frozen=True, slots=True)
class KitRun:
    """A run as it stands, and the events that it published: (name, payload)."""

    stored: StoredRun
    emitted: tuple[tuple[str, Any], ...]

    @property
    def state(self) -> RunState:
        """The run's state."""
        return self.stored.state

    @property
    def steps(self) -> dict[str, StepFinished]:
        """The finished steps by id, in the order in which they ended."""
        return {r.step_id: r for r in self.stored.records if isinstance(r, StepFinished)}

    @property
    def undone(self) -> list[UndoFinished]:
        """The compensations, in the order in which they were done."""
        return [r for r in self.stored.records if isinstance(r, UndoFinished)]

    @property
    def reply(self) -> ReplySent | None:
        """What a command's handler answers: its `result`, or its `error`; None as long as it is not over."""
        return next((r for r in reversed(self.stored.records) if isinstance(r, ReplySent)), None)


@dataclass(frozen=True, slots=True)
class SentCommand:
    """A command as it went out; one that is sent again, after a timeout, has its `id` again and a new `deadline`."""

    command: str
    payload: Any
    id: str
    deadline: datetime


class _Store(SqliteStore):
    """A store that tells what it has committed, also if who committed it does not live to hear of it."""

    def __init__(self, told: Callable[[Change], None]) -> None:
        super().__init__(SqliteFile(":memory:"))
        self._told = told

    async def commit(self, change: Change) -> bool:
        """See `Store.commit`."""
        is_done = await super().commit(change)
        if is_done:
            self._told(change)
        return is_done


class FlowKit:
    """A compiled flow with its handlers, ready to get events and commands. Enter it; `send` and `call` run one
    handler a call.

    What a run sends to a handler of the same plan, `finish` takes there, and the reply back. For commands that are
    `external`, a test is the other program: `sent` says what went out, `answer` answers it.

    `source` is a flow file's text, or texts by file name (`flows/…`, `schemas/…`). `handlers` are functions
    marked with `@handler`. `random` is the retry jitter's draw: 1.0 makes every delay the longest.
    `store` may wrap the store, to inject faults.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        handlers: Iterable[Callable[..., Any]] = (),
        *,
        clock: FakeClock | None = None,
        random: Callable[[], float] = lambda: 1.0,
        store: Callable[[Store], Store] = lambda store: store,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        registry = bind(handlers)
        texts = {"flows/flow.yaml": source} if isinstance(source, str) else source
        compilation = compile_project(Sources(None, texts), project="test", signatures=registry.signatures)
        if compilation.plan is None:
            raise FlowError((*registry.diagnostics, *compilation.diagnostics))
        self.plan: Plan = compilation.plan
        self.clock = clock or FakeClock()
        self.draining = False
        self.store: SqliteStore = _Store(self._committed)
        self._wrapped = store(self.store)
        self._env, self._secrets = dict(env or {}), dict(secrets or {})
        self._emitted: dict[str, list[tuple[str, Any]]] = {}
        self._sent: list[SentCommand] = []
        self._mail: list[Outgoing] = []
        self._called: dict[str, None] = {}
        self._going_on: dict[str, tuple[Run, asyncio.Event]] = {}
        self.read_models = ReadModels(
            self.plan.projections, log=self.store, store=self.store.projections, load=compile_projection
        )
        self._executor = Executor(
            handlers=registry.handlers,
            clock=self.clock,
            random=random,
            mask=Mask(self._secrets.values()),
            projections=self.read_models,
            breakers=Breakers(self.store.traffic, self.clock, project="test"),
            draining=lambda: self.draining,
        )

    async def __aenter__(self) -> FlowKit:
        await self.store.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.store.__aexit__(kind, error, trace)

    async def send(
        self,
        event: str,
        payload: Any,
        *,
        handler: str | None = None,
        ident: str | None = None,
        properties: Properties | None = None,
    ) -> KitRun | None:
        """Deliver an event to a handler (the only one, unless named), and run it until it is final or parked.

        None if no route wants it, or if it has been delivered before. Raises EnvelopeError for a dead letter.
        """
        program = self.plan.programs[handler or next(iter(self.plan.programs))]
        body = payload if isinstance(payload, bytes) else encode_json(payload)
        return await self._begin(program, _delivery(program.queue, "test.events", event, body, properties, ident))

    async def call(
        self,
        command: str,
        payload: Any,
        *,
        ident: str | None = None,
        expires_at: datetime | None = None,
        reply_to: str | None = "test.caller",
    ) -> KitRun | None:
        """Deliver a command to its handler, and run that until it is final or parked; `KitRun.reply` is the answer.

        None if it has been delivered before, or if another run has its idempotency key. Raises EnvelopeError if it
        cannot begin.
        """
        handler = self.plan.commands[command].handler
        assert handler is not None, f"{command} is external: no flow does it"
        program = self.plan.programs[handler]
        ident = ident or new_id()
        properties = Properties(
            message_id=ident,
            correlation_id=ident,
            reply_to=reply_to,
            headers={} if expires_at is None else {EXPIRY: rfc3339(expires_at)},
        )
        body = payload if isinstance(payload, bytes) else encode_json(payload)
        return await self._begin(program, _delivery(program.queue, "test.commands", command, body, properties))

    @property
    def sent(self) -> tuple[SentCommand, ...]:
        """The commands that runs have sent, in order, whoever does them."""
        return tuple(self._sent)

    async def answer(self, command_id: str, result: Any = None, *, error: Error | None = None) -> bool:
        """Answer a command that went out; the run that waits for it goes on with `finish`, or at once if another of its
        branches is going on. False if there is none."""
        is_known = await self.store.answer(Answer(command_id=command_id, result=result, error=error))
        await self._tell()
        return is_known

    async def arrive(self, event: str, payload: Any, *, ident: str | None = None) -> None:
        """Let an event come that runs may wait for (`wait_for`, `cancel_on`); they go on with `finish`."""
        delivery = _delivery(self.plan.journal, "test.events", event, encode_json(payload), None, ident)
        patterns = patterns_of([self.plan])
        assert event in patterns, f"nothing in this plan waits for {event}"
        _, arrivals = intake.read_event(self.plan.events, patterns, delivery, self.clock.now())
        await self.store.arrive(arrivals)
        await self._tell()

    async def finish(self, run_id: str, *, limit: int = 100) -> KitRun:
        """Let time go on, from one due moment to the next, until the run is final (or `limit` is reached).

        The commands that it sends to handlers of this plan are done meanwhile.
        """
        for _ in range(limit):
            await self._deliver_mail()
            run = await self.look(run_id)
            if run.state.is_final:
                return run
            await self._resume_next(run, *[await self.look(called) for called in self._called])
        raise AssertionError(f"run {run_id} is not final after {limit} resumptions")

    async def resume(self, run_id: str) -> KitRun:
        """Take the run up from its records, as a new process would."""
        stored = await self.store.seize(run_id)
        assert stored is not None, f"there is no run {run_id}"
        run = self._run(stored.started)
        run.recall(stored)
        await self._execute(run)
        return await self.look(run_id)

    async def cancel(self, run_id: str, reason: str | None = None) -> KitRun:
        """Cancel it, as `flowrun runs cancel` does, and undo it until it is final. Raises RefusedError.

        One that another task has under way (in `send`, `resume` or `finish`) is interrupted there.
        """
        await self._hand(reason).cancel((await self.look(run_id)).stored)
        if run_id in self._going_on:
            run, over = self._going_on[run_id]
            run.interrupt((await self.store.requests())[run_id])
            await over.wait()
        return await self.finish(run_id)

    async def kill(self, run_id: str, reason: str | None = None) -> KitRun:
        """End it as it stands, as `flowrun runs kill` does. Raises RefusedError."""
        await self._hand(reason).kill((await self.look(run_id)).stored)
        return await self.look(run_id)

    async def retry(self, run_id: str, from_step: str | None = None) -> KitRun:
        """Let it go on, or begin anew, as `flowrun runs retry` does, until it is final. Raises RefusedError."""
        stored = (await self.look(run_id)).stored
        return await self.finish(await self._hand().retry(stored, self.plan, from_step))

    def _hand(self, reason: str | None = None) -> Hand:
        return Hand(self.store, project="test", by="tester@here", now=self.clock.now(), reason=reason)

    async def look(self, run_id: str) -> KitRun:
        """The run as the store has it."""
        stored = await self.store.run(run_id)
        assert stored is not None, f"there is no run {run_id}"
        return KitRun(stored, tuple(self._emitted.get(run_id, ())))

    async def _begin(self, program: Program, delivery: Delivery) -> KitRun | None:
        coming = intake.read(self.plan, program, delivery, self.clock.now(), self._env)
        if coming is None or await self.store.known(coming.started.run_id):
            return None
        try:
            await self._execute(self._run(coming.started))
        except NotOurs:
            return None
        return await self.look(coming.started.run_id)

    async def _resume_next(self, *runs: KitRun) -> None:
        """The run that is due first; one without a due moment was cut short, and goes on at once."""
        due = {run.stored.started.run_id: run.stored.due_at or "" for run in runs if not run.state.is_final}
        first = min(due, key=lambda run_id: due[run_id])
        if due[first]:
            await self.clock.sleep_until(parse_time(due[first]))
        await self.resume(first)

    async def _deliver_mail(self) -> None:
        """Commands to their handlers, replies to the runs that wait for them."""
        while self._mail:
            message = self._mail.pop(0)
            if message.exchange == "":
                await self.store.answer(intake.read_answer(_as_delivery(message, message.routing_key)))
            elif (handler := self.plan.commands[message.routing_key].handler) is not None:
                await self._deliver_command(self.plan.programs[handler], message)

    async def _tell(self) -> None:
        """Runs of which one branch waits while another goes on hear at once."""
        for run_id in await self.store.woken(list(self._going_on)):
            await self._going_on[run_id][0].refresh()

    async def _deliver_command(self, program: Program, message: Outgoing) -> None:
        delivery = _as_delivery(message, program.queue)
        try:
            called = await self._begin(program, delivery)
        except EnvelopeError as fault:
            caller = intake.caller_of(program, delivery)
            assert caller is not None, "a run's command has a reply_to"
            refused = ReplySent(at=rfc3339(self.clock.now()), error=intake.refusal(fault))
            self._post(reply_to(caller, refused, self.plan.project))
            return
        if called is not None:
            self._called[called.stored.started.run_id] = None

    async def _execute(self, run: Run) -> None:
        self._going_on[run.id] = run, asyncio.Event()
        try:
            await self._executor.execute(run)
        finally:
            self._going_on.pop(run.id)[1].set()

    def _run(self, started: RunStarted) -> Run:
        return Run(
            plan=self.plan,
            program=self.plan.programs[started.handler],
            started=started,
            commit=self._wrapped.commit,
            on_commit=lambda run, change: None,
            reread=self.store.run,
            env=self._env,
            secrets=self._secrets,
        )

    def _committed(self, change: Change) -> None:
        emitted = [event for event in change.events if event.run_id is not None]
        events = [(event.meta.type, decode_json(event.data)) for event in emitted]
        self._emitted.setdefault(change.run_id, []).extend(events)
        for message in change.outgoing:
            self._post(message)

    def _post(self, message: Outgoing | None) -> None:
        if message is None:
            return
        if message.routing_key in self.plan.commands and message.exchange:
            self._mail.append(message)
            self._sent.append(_sent(message))
        elif message.exchange == "" and message.routing_key == self.plan.replies:
            self._mail.append(message)


def _delivery(
    queue: str, exchange: str, key: str, body: bytes, properties: Properties | None, ident: str | None = None
) -> Delivery:
    return Delivery(
        queue=queue,
        exchange=exchange,
        routing_key=key,
        body=body,
        properties=properties or Properties(message_id=ident or new_id()),
        redelivered=False,
        receipt=None,
    )


def _as_delivery(message: Outgoing, queue: str) -> Delivery:
    return _delivery(queue, message.exchange, message.routing_key, message.body, message.properties)


def _sent(message: Outgoing) -> SentCommand:
    properties = message.properties
    assert properties.message_id is not None
    return SentCommand(
        command=message.routing_key,
        payload=decode_json(message.body),
        id=properties.message_id,
        deadline=parse_time(properties.headers[EXPIRY]),
    )


async def run_flow(
    source: str | Mapping[str, str],
    event: str,
    payload: Any,
    handlers: Iterable[Callable[..., Any]] = (),
    *,
    handler: str | None = None,
    random: Callable[[], float] = lambda: 1.0,
    env: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
) -> KitRun:
    """Deliver one event and run its handler to the end, in virtual time."""
    async with FlowKit(source, handlers, random=random, env=env, secrets=secrets) as kit:
        run = await kit.send(event, payload, handler=handler)
        assert run is not None, "no route of the handler wants this event"
        return await kit.finish(run.stored.started.run_id)
