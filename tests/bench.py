"""A worker as `flowrun start` has it, in the test's own process: one in-memory file, and parts that may fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from runner.clock import SystemClock
from runner.engine.breakers import Breakers
from runner.engine.executor import Executor
from runner.engine.projector import Projector
from runner.engine.read_models import ReadModels
from runner.engine.runs import Environment, Plans, Runs, Watch
from runner.engine.worker import Worker
from runner.lang.compile import compile_project
from runner.lang.load import Sources
from runner.lang.projections import compile_projection
from runner.masking import Mask
from runner.message import Outgoing, Properties, encode_json
from runner.registry import bind
from runner.sqlite_file import SqliteFile
from runner.stores.sqlite import SqliteStore
from runner.transports.embedded import EmbeddedTransport


class Failing:
    """What it wraps, but the first `times` calls of one method fail, `after` having done their work or before."""

    def __init__(self, inner: Any, method: str, error: Exception, *, times: int = 1, after: bool = False) -> None:
        self._inner, self._method, self._error = inner, method, error
        self._after = after
        self.left = times

    def __getattr__(self, name: str) -> Any:
        return self._fail if name == self._method else getattr(self._inner, name)

    async def _fail(self, *args: Any, **named: Any) -> Any:
        work: Callable[..., Awaitable[Any]] = getattr(self._inner, self._method)
        if self.left <= 0:
            return await work(*args, **named)
        self.left -= 1
        if self._after:
            await work(*args, **named)
        raise self._error


class Bench:
    """A worker on one in-memory file, with what `store` and `transport` make of the parts."""

    def __init__(self, source: str, handlers: Iterable[Callable[..., Any]]) -> None:
        self.mask = Mask()
        self.file = SqliteFile(":memory:")
        self.store = SqliteStore(self.file)
        self.transport = EmbeddedTransport(self.file)
        self.registry = bind(handlers)
        compilation = compile_project(
            Sources(None, {"flows/f.yaml": source}), project="p", signatures=self.registry.signatures
        )
        assert compilation.plan is not None, compilation.diagnostics
        self.plan = compilation.plan

    @asynccontextmanager
    async def working(
        self, store: Callable[[Any], Any] = lambda s: s, transport: Callable[[Any], Any] = lambda t: t
    ) -> AsyncIterator[Worker]:
        async with self.store, self.transport:
            await self.transport.declare(self.plan.topology)
            environment = Environment(env=lambda _: {}, secrets=lambda _: {})
            broken_store = store(self.store)
            breakers = Breakers(self.store.traffic, SystemClock(), project="p")

            def runs(draining: Callable[[], bool], on_commit: Watch) -> Runs:
                return Runs(
                    plans=Plans(present=self.plan, load_older=self._nothing_older),
                    store=broken_store,
                    reader=self.store,
                    control=self.store,
                    executor=self._executor(draining, breakers),
                    environment=environment,
                    clock=SystemClock(),
                    on_commit=on_commit,
                )

            worker = Worker(
                plan=self.plan,
                programs=tuple(self.plan.programs.values()),
                only_these=False,
                transport=transport(self.transport),
                store=broken_store,
                reader=self.store,
                doorbell=self.store,
                runs=runs,
                environment=environment,
                mask=self.mask,
                clock=SystemClock(),
                watch=lambda run, change: None,
                on_suspects=lambda: None,
                mailbox=self.store,
                event_log=broken_store,
                schedules=self.store,
                gate=self.store.gate,
                limits=self.store,
                breakers=breakers,
                traffic=self.store.traffic,
                projector=Projector(
                    projections=self.plan.projections.values(),
                    log=self.store,
                    store=self.store.projections,
                    owner=self.store.owner,
                    clock=SystemClock(),
                    load=compile_projection,
                ),
            )
            tasks = await worker.start()
            yield worker
            assert await worker.drain(10)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _nothing_older(self) -> dict[str, Any]:
        return {}

    def _executor(self, draining: Callable[[], bool], breakers: Breakers) -> Executor:
        return Executor(
            handlers=self.registry.handlers,
            breakers=breakers,
            clock=SystemClock(),
            random=lambda: 0.0,
            mask=self.mask,
            projections=ReadModels(
                self.plan.projections, log=self.store, store=self.store.projections, load=compile_projection
            ),
            draining=draining,
        )

    async def send(self, *ids: str, event: str = "e", payload: object = {}) -> None:
        """Publish a message a given id."""
        messages = [
            Outgoing(
                exchange="p.events",
                routing_key=event,
                body=encode_json(payload),
                properties=Properties(message_id=ident),
            )
            for ident in ids
        ]
        assert set(await self.transport.publish(messages)) == {None}

    async def until_idle(self, worker: Worker) -> None:
        """Return once nothing is left to do, as --until-idle does."""
        async with asyncio.timeout(20):
            while not await worker.is_idle():  # noqa: ASYNC110 a poll
                await asyncio.sleep(0)

    async def until_all_done(self, worker: Worker, runs: int) -> None:
        """Return once so many runs are completed, and nothing is left to do."""
        async with asyncio.timeout(20):
            while not (  # noqa: ASYNC110 a poll
                await worker.is_idle() and len(await self.store.runs(limit=100, state="completed")) == runs
            ):
                await asyncio.sleep(0)
