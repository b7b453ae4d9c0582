"""Run a flow in a test: real compiler, real engine, real store (SQLite in memory), virtual time, no broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from runner.diagnostics import Diagnostic
from runner.engine import intake
from runner.engine.control import Hand
from runner.engine.executor import Executor, NotOurs
from runner.engine.run import Run
from runner.lang.compile import compile_project
from runner.lang.load import Sources
from runner.message import Delivery, Properties, decode_json, encode_json, new_id
from runner.plan import Plan
from runner.ports import Store
from runner.records import Change, RunStarted, RunState, StepFinished, StoredRun, UndoFinished
from runner.registry import bind
from runner.sqlite_file import SqliteFile
from runner.stores.sqlite import SqliteStore
from runner.testing.clock import FakeClock
from runner.times import parse_time


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


class FlowKit:
    """A compiled flow with its handlers, ready to get events. Enter it; `send` runs one handler a call.

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
        self.store = SqliteStore(SqliteFile(":memory:"))
        self._wrapped = store(self.store)
        self._env, self._secrets = dict(env or {}), dict(secrets or {})
        self._emitted: dict[str, list[tuple[str, Any]]] = {}
        self._going_on: dict[str, tuple[Run, asyncio.Event]] = {}
        self._executor = Executor(
            handlers=registry.handlers,
            clock=self.clock,
            random=random,
            mask=self._mask,
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
        name = handler or next(iter(self.plan.programs))
        program = self.plan.programs[name]
        delivery = Delivery(
            queue=program.queue,
            exchange="test.events",
            routing_key=event,
            body=payload if isinstance(payload, bytes) else encode_json(payload),
            properties=properties or Properties(message_id=ident or new_id()),
            redelivered=False,
            receipt=None,
        )
        started = intake.read(self.plan, program, delivery, self.clock.now(), self._env)
        if started is None or await self.store.known(started.run_id):
            return None
        try:
            await self._execute(self._run(started))
        except NotOurs:
            return None
        return await self.look(started.run_id)

    async def finish(self, run_id: str, *, limit: int = 100) -> KitRun:
        """Let time go on, from one due moment to the next, until the run is final (or `limit` is reached)."""
        for _ in range(limit):
            run = await self.look(run_id)
            if run.state.is_final:
                return run
            if run.stored.due_at is not None:
                await self.clock.sleep_until(parse_time(run.stored.due_at))
            await self.resume(run_id)
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
            on_commit=self._committed,
            env=self._env,
            secrets=self._secrets,
        )

    def _committed(self, change: Change) -> None:
        events = [(event.meta.type, decode_json(event.data)) for event in change.events]
        self._emitted.setdefault(change.run_id, []).extend(events)

    def _mask(self, text: str) -> str:
        for value in self._secrets.values():
            text = text.replace(value, "***")
        return text


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
