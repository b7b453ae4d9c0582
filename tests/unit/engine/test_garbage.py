"""A run that is over is freed at once: what only the collector can free makes it stop everybody, again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from bench import Bench

from runner.engine.run import Run
from runner.errors import TerminalError
from runner.handler import Context, handler

EVENTS = "flow: f\nevents: {e: {external: true}, done: {}}\nroutes: [{on: e, to: h}]\n"


@handler("act")
async def act(ctx: Context, *, fails: bool = False) -> dict[str, str]:
    """Fail, or not."""
    if fails:
        raise TerminalError("it cannot be done")
    return {"time": "now"}


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param("[{use: act}, {emit: done, with: {at: '{{ now() }}', id: '{{ uuid() }}'}}]", id="done"),
        pytest.param("[{use: act}, {set: {x: '{{ meta.time }}'}}, {use: act}, {use: act}]", id="three steps"),
        pytest.param("[{use: act, compensate: {use: act}}, {use: act, with: {fails: true}}]", id="undone"),
        pytest.param("[{use: act, with: {fails: true}, catch: [{do: [{use: act}]}]}]", id="caught"),
        pytest.param("[{parallel: {branches: {a: [{use: act}], b: [{use: act}]}}}]", id="in branches"),
        pytest.param("[{foreach: {in: '[1, 2]', do: [{use: act}]}}]", id="in rounds"),
    ],
)
async def test_a_run_that_is_over_leaves_nothing_to_the_collector(steps: str) -> None:
    bench = Bench(f"{EVENTS}handlers: {{h: {{steps: {steps}}}}}", [act])
    async with bench.working() as worker:
        await bench.send("1", "2", "3")
        await bench.until_idle(worker)
        assert worker.counts.finished == 3
        left = [each for each in gc.get_objects() if isinstance(each, Run)]
    assert left == []
