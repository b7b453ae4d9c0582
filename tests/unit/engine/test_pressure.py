"""Feedback that cannot be told: said once, and no other work suffers."""

from __future__ import annotations

import asyncio

import pytest
from bench import Bench

from runner.handler import Context, handler

FLOW = """
flow: f
events:
  e: {external: true}
  pressure: {schema: {type: object, properties: {lag: {type: integer, multipleOf: 10000}}}}
routes: [{on: e, to: h}]
handlers:
  h:
    concurrency: 1
    feedback: {event: pressure, above: {lag: 3}, below: {lag: 1}}
    steps: [{use: wait}]
"""


async def test_a_payload_that_does_not_fit_is_said_once_and_not_each_second(caplog: pytest.LogCaptureFixture) -> None:
    may_go_on = asyncio.Event()

    @handler("wait")
    async def wait(ctx: Context) -> None:
        await may_go_on.wait()

    bench = Bench(FLOW, [wait])
    async with bench.working() as worker:
        await bench.send(*(str(number) for number in range(8)))
        for _ in range(3):
            await worker.pressure.look()
        may_go_on.set()
        await bench.until_all_done(worker, 8)
    told = [record.getMessage() for record in caplog.records if record.name == "flowrun.pressure"]
    assert len(told) == 1
    assert told[0].startswith("pressure cannot be published for f.h:")
