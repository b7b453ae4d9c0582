"""A worker whose store or broker fails now and then: nothing is lost, no effect is repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runner.clock import SystemClock
from runner.engine import outbox as outbox_module
from runner.engine import runs as runs_module
from runner.engine import worker as worker_module
from runner.engine.executor import Executor
from runner.engine.runs import Environment, Plans, Runs, Watch
from runner.engine.worker import Worker
from runner.errors import StoreError, TransportError
from runner.handler import Context, handler
from runner.lang.compile import compile_project
from runner.lang.load import Sources
from runner.message import Outgoing, Properties
from runner.records import Change
from runner.registry import bind
from runner.sqlite_file import SqliteFile
from runner.stores.sqlite import SqliteStore
from runner.transports.embedded import EmbeddedTransport

FLOW = """
flow: f
events: {e: {external: true}, done: {}}
routes: [{on: e, to: h}]
handlers:
  h:
    concurrency: 1
    steps:
      - {id: one, use: count, with: {name: one}}
      - {id: two, use: count, with: {name: two}}
      - {emit: done, with: {}}
"""


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


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "PAUSE_S", 0)
    monkeypatch.setattr(runs_module, "PAUSE_S", 0)
    monkeypatch.setattr(runs_module, "PUT_DOWN_S", 0)
    monkeypatch.setattr(outbox_module, "PAUSE_S", 0)


class Bench:
    """A worker on one in-memory file, with what `store` and `transport` make of the parts."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.file = SqliteFile(":memory:")
        self.store = SqliteStore(self.file)
        self.transport = EmbeddedTransport(self.file)

        @handler("count")
        async def count(ctx: Context, *, name: str) -> None:
            self.calls.append(f"{ctx.run_id} {name}")

        self.registry = bind([count])
        compilation = compile_project(
            Sources(None, {"flows/f.yaml": FLOW}), project="p", signatures=self.registry.signatures
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

            def runs(draining: Callable[[], bool], on_commit: Watch) -> Runs:
                return Runs(
                    plans=Plans(present=self.plan, load_older=self._nothing_older),
                    store=broken_store,
                    reader=self.store,
                    control=self.store,
                    executor=self._executor(draining),
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
                clock=SystemClock(),
                watch=lambda run, change: None,
                on_suspects=lambda: None,
            )
            tasks = await worker.start()
            yield worker
            assert await worker.drain(10)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _nothing_older(self) -> dict[str, Any]:
        return {}

    def _executor(self, draining: Callable[[], bool]) -> Executor:
        return Executor(
            handlers=self.registry.handlers,
            clock=SystemClock(),
            random=lambda: 0.0,
            mask=lambda text: text,
            draining=draining,
        )

    async def send(self, *ids: str) -> None:
        messages = [
            Outgoing(exchange="p.events", routing_key="e", body=b"{}", properties=Properties(message_id=ident))
            for ident in ids
        ]
        assert set(await self.transport.publish(messages)) == {None}

    async def until_all_done(self, worker: Worker, runs: int) -> None:
        async with asyncio.timeout(20):
            while not (  # noqa: ASYNC110 a poll, as --until-idle does
                await worker.is_idle() and len(await self.store.runs(limit=100, state="completed")) == runs
            ):
                await asyncio.sleep(0)


@pytest.mark.parametrize("accept_fails", [1, 3])
async def test_a_message_that_could_not_be_acknowledged_is_so_later_and_the_next_is_served(accept_fails: int) -> None:
    bench = Bench()
    flaky = Failing(bench.transport, "settle", TransportError("locked"), times=accept_fails)
    async with bench.working(transport=lambda _: flaky) as worker:
        await bench.send("a", "b", "c")
        await bench.until_all_done(worker, 3)
    assert flaky.left == 0
    assert len(bench.calls) == len(set(bench.calls)) == 6


@pytest.mark.parametrize("after", [False, True], ids=["not committed", "committed, but the answer is lost"])
@pytest.mark.parametrize("times", [1, 3])
async def test_a_store_that_is_away_repeats_no_effect_and_loses_no_run(after: bool, times: int) -> None:
    bench = Bench()
    flaky = Failing(bench.store, "commit", StoreError("away"), times=times, after=after)
    async with bench.working(store=lambda _: flaky) as worker:
        await bench.send("a", "b")
        await bench.until_all_done(worker, 2)
    assert flaky.left == 0
    assert len(bench.calls) == len(set(bench.calls)) == 4


async def test_a_run_that_met_an_internal_error_is_tried_again() -> None:
    bench = Bench()
    broken = BreaksOnce(bench.store)
    async with bench.working(store=lambda _: broken) as worker:
        await bench.send("a")
        await bench.until_all_done(worker, 1)
    assert broken.broke


class BreaksOnce:
    """A store with a bug: its second commit raises what no store should."""

    def __init__(self, inner: SqliteStore) -> None:
        self._inner = inner
        self._commits = 0
        self.broke = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(self, change: Change) -> bool:
        self._commits += 1
        if self._commits == 2:
            self.broke = True
            raise ZeroDivisionError
        return await self._inner.commit(change)


async def test_a_message_that_meets_an_internal_error_while_the_store_is_away_is_not_forgotten() -> None:
    bench = Bench()
    away = Failing(bench.store, "bury", StoreError("away"))
    async with bench.working(store=lambda _: away) as worker:
        worker._reader = Failing(bench.store, "known", ZeroDivisionError())
        await bench.send("a", "b")
        await bench.until_all_done(worker, 2)
    assert away.left == 0
    assert len(bench.calls) == len(set(bench.calls)) == 4
