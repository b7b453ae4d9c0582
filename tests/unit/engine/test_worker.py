"""A worker whose store or broker fails now and then: nothing is lost, no effect is repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from acting import until
from bench import Bench, Failing

from runner.engine import outbox as outbox_module
from runner.engine import refusals as refusals_module
from runner.engine import runs as runs_module
from runner.engine import worker as worker_module
from runner.errors import StoreError, TransportError
from runner.handler import Context, handler
from runner.message import Delivery
from runner.records import Change
from runner.stores.sqlite import SqliteStore

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


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "PAUSE_S", 0)
    monkeypatch.setattr(refusals_module, "PAUSE_S", 0)
    monkeypatch.setattr(runs_module, "PAUSE_S", 0)
    monkeypatch.setattr(runs_module, "PUT_DOWN_S", 0)
    monkeypatch.setattr(outbox_module, "PAUSE_S", 0)


class Counting(Bench):
    """A bench for FLOW, with the calls of `count`."""

    def __init__(self) -> None:
        self.calls: list[str] = []

        @handler("count")
        async def count(ctx: Context, *, name: str) -> None:
            self.calls.append(f"{ctx.run_id} {name}")

        super().__init__(FLOW, [count])


@pytest.mark.parametrize("accept_fails", [1, 3])
async def test_a_message_that_could_not_be_acknowledged_is_so_later_and_the_next_is_served(accept_fails: int) -> None:
    bench = Counting()
    flaky = Failing(bench.transport, "settle", TransportError("locked"), times=accept_fails)
    async with bench.working(transport=lambda _: flaky) as worker:
        await bench.send("a", "b", "c")
        await bench.until_all_done(worker, 3)
    assert flaky.left == 0
    assert len(bench.calls) == len(set(bench.calls)) == 6


async def test_messages_whose_runs_begin_in_one_commit_are_acknowledged_together() -> None:
    async def nothing(ctx: Context, *, name: str) -> None:
        pass

    bench = Bench(FLOW.replace("concurrency: 1", "concurrency: 50"), [handler("count")(nothing)])
    settled: list[int] = []

    class Noting:
        def __getattr__(self, name: str) -> Any:
            return getattr(bench.transport, name)

        async def settle(self, deliveries: Sequence[Delivery], *, accept: bool = True) -> None:
            if deliveries[0].queue == "p.f.h":
                settled.append(len(deliveries))
            await bench.transport.settle(deliveries, accept=accept)

    async with bench.working(transport=lambda _: Noting()) as worker:
        await bench.send(*(f"m{number}" for number in range(50)))
        await bench.until_all_done(worker, 50)
    assert sum(settled) == 50
    assert max(settled) > 10


@pytest.mark.parametrize("after", [False, True], ids=["not committed", "committed, but the answer is lost"])
@pytest.mark.parametrize("times", [1, 3])
async def test_a_store_that_is_away_repeats_no_effect_and_loses_no_run(after: bool, times: int) -> None:
    bench = Counting()
    flaky = Failing(bench.store, "commit", StoreError("away"), times=times, after=after)
    async with bench.working(store=lambda _: flaky) as worker:
        await bench.send("a", "b")
        await bench.until_all_done(worker, 2)
    assert flaky.left == 0
    assert len(bench.calls) == len(set(bench.calls)) == 4


async def test_a_run_that_met_an_internal_error_is_tried_again() -> None:
    bench = Counting()
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
    bench = Counting()
    away = Failing(bench.store, "bury", StoreError("away"))
    async with bench.working(store=lambda _: away) as worker:
        worker._reception._reader = Failing(bench.store, "known", ZeroDivisionError())
        await bench.send("a", "b")
        await bench.until_all_done(worker, 2)
    assert away.left == 0
    assert len(bench.calls) == len(set(bench.calls)) == 4


async def test_why_a_message_is_a_dead_letter_is_told_without_secrets() -> None:
    bench = Counting()
    bench.mask.learn(["s3cret"])
    async with bench.working() as worker:
        worker._reception._reader = Failing(bench.store, "known", ZeroDivisionError("a s3cret"))
        await bench.send("a")
        await until(lambda: worker.counts.dead_letters)
        [letter] = await bench.store.dead_letters(limit=2)
    assert letter.error.message == "ZeroDivisionError: a ***"


LANES = """
flow: f
events: {slow: {external: true}, quick: {external: true}}
routes: [{on: slow, to: slow}, {on: quick, to: quick}]
handlers:
  slow: {concurrency: 1, steps: [{wait: 10ms}, {use: hold}]}
  quick: {steps: [{wait: 10ms}, {use: pass_by}]}
"""


async def test_a_handler_with_more_due_runs_than_are_taken_at_once_keeps_no_other_from_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "TAKE", 2)
    gate, passed = asyncio.Event(), asyncio.Event()

    @handler("hold")
    async def hold(ctx: Context) -> None:
        await gate.wait()

    @handler("pass_by")
    async def pass_by(ctx: Context) -> None:
        passed.set()

    bench = Bench(LANES, [hold, pass_by])
    async with bench.working() as worker:
        await bench.send(*"abcde", event="slow")
        async with asyncio.timeout(20):
            while sum(worker._resuming.values()) < 2:  # noqa: ASYNC110 a poll
                await asyncio.sleep(0)
        await bench.send("q", event="quick")
        async with asyncio.timeout(20):
            await passed.wait()
        gate.set()
        await bench.until_all_done(worker, 6)


BRANCHES = """
flow: f
events: {e: {external: true}, answered: {external: true}}
routes: [{on: e, to: h}]
handlers:
  h:
    steps:
      - {wait: 1ms}
      - parallel:
          branches:
            long: [{use: hold}]
            short: [{wait_for: {event: answered}}, {use: pass_by}]
"""


async def test_a_branch_hears_what_it_waits_for_while_another_goes_on() -> None:
    gate, held, passed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @handler("hold")
    async def hold(ctx: Context) -> None:
        held.set()
        await gate.wait()

    @handler("pass_by")
    async def pass_by(ctx: Context) -> None:
        passed.set()

    bench = Bench(BRANCHES, [hold, pass_by])
    async with bench.working() as worker:
        await bench.send("a")
        async with asyncio.timeout(20):
            await held.wait()
            await bench.send("b", event="answered")
            await passed.wait()
        gate.set()
        await bench.until_all_done(worker, 1)


async def test_a_run_that_ends_while_it_is_asked_after_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate, asked = asyncio.Event(), asyncio.Event()

    @handler("hold")
    async def hold(ctx: Context) -> None:
        await gate.wait()

    bench = Bench("flow: f\nevents: {e: {external: true}}\nroutes: [{on: e, to: h}]\n"
                  "handlers: {h: {steps: [{wait: 1ms}, {use: hold}]}}", [hold])  # fmt: skip
    lost = bench.store.lost

    async def slowly(run_ids: Collection[str]) -> Collection[str]:
        gate.set()
        await until(lambda: worker.counts.finished == 1)
        asked.set()
        return await lost(run_ids)

    monkeypatch.setattr(bench.store, "lost", slowly)
    async with bench.working() as worker:
        await bench.send("a")
        async with asyncio.timeout(20):
            await asked.wait()
        await bench.until_all_done(worker, 1)
    assert "internal error" not in caplog.text
