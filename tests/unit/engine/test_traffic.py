"""Gates and circuits of one worker: nobody waits for longer than what he waits for."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from bench import Bench

from runner.engine.breakers import MISSED_S, Breakers
from runner.errors import RetryableError
from runner.handler import Context, handler
from runner.outcome import Failed
from runner.plan import Use
from runner.records import Error, Intervention, RunState, RunSummary
from runner.testing import FakeClock
from runner.times import rfc3339

SOON_S = 5.0


async def ended(bench: Bench, number: int, name: str = "f.h") -> list[RunSummary]:
    """The runs of a handler, once so many of them are over; soon."""
    async with asyncio.timeout(SOON_S):
        while True:
            runs = [run for run in await bench.store.runs(limit=500, handler=name) if run.state.is_final]
            if len(runs) >= number:
                return runs
            await asyncio.sleep(0.01)


async def test_a_throttle_that_is_shut_for_long_keeps_no_other_gate_shut() -> None:
    bench = Bench(
        """
flow: f
events: {e: {external: true}, other: {external: true}}
routes: [{on: e, to: h}, {on: other, to: slow}]
handlers:
  slow:
    throttle: {limit: 1, period: 1h}
    steps: []
  h:
    concurrency: {limit: 1, key: one}
    steps: [{wait: 100ms}]
""",
        [],
    )
    async with bench.working():
        await bench.send("a", "b", event="other")
        await ended(bench, 1, "f.slow")
        await bench.send("c")
        await ended(bench, 1)


CIRCUIT = """
flow: f
events: {e: {external: true}}
routes: [{on: e, to: h}]
handlers:
  h:
    CONTROLS
    steps:
      - {use: call, with: {n: "{{ event.n }}"}}
"""


class Partner(Bench):
    """A bench for CIRCUIT, whose partner answers as long as he `is_up`."""

    def __init__(self, controls: str, source: str = CIRCUIT) -> None:
        self.is_up = self.hangs = False
        self.calls: list[int] = []

        @handler("call")
        async def call(ctx: Context, *, n: int) -> None:
            self.calls.append(n)
            if self.hangs:
                await asyncio.sleep(60)
            if not self.is_up:
                raise RetryableError("down", "no answer")

        if "retry" not in controls:
            controls += "\n    retry: {max_attempts: unlimited, delay: 10ms, jitter: none}"
        super().__init__(source.replace("CONTROLS", controls), [call])

    async def called(self, number: int) -> None:
        """Return once he was called so often."""
        async with asyncio.timeout(SOON_S):
            while len(self.calls) < number:  # noqa: ASYNC110 a poll
                await asyncio.sleep(0.01)

    async def cancel(self) -> None:
        """Ask the youngest run to stop."""
        (run,) = await self.store.runs(limit=1)
        asked = Intervention(action="cancel", by="me@here", at=rfc3339(datetime.now(UTC)), was=run.state)
        assert await self.store.request(run.id, asked)

    async def opened(self) -> None:
        """Return once a circuit is open."""
        async with asyncio.timeout(SOON_S):
            while not await self.store.traffic.circuits():  # noqa: ASYNC110 a poll
                await asyncio.sleep(0.01)


async def test_while_a_circuit_is_open_a_runs_own_time_goes_on() -> None:
    bench = Partner("circuit_breaker: {failures: 2, pause: 1h}\n    timeout: 500ms")
    async with bench.working():
        await bench.send("a", payload={"n": 1})
        await bench.opened()
        (run,) = await ended(bench, 1)
    assert run.error is not None
    assert (run.state, run.error.type) == (RunState.FAILED, "timeout")
    assert bench.calls == [1, 1]


async def test_while_a_circuit_is_open_a_run_can_be_cancelled_that_waits_for_it() -> None:
    bench = Partner("circuit_breaker: {failures: 2, pause: 1h}")
    async with bench.working():
        await bench.send("a", payload={"n": 1})
        await bench.opened()
        await bench.cancel()
        assert [run.state for run in await ended(bench, 1)] == [RunState.CANCELLED]


ONCE = "circuit_breaker: {failures: 1, pause: 300ms}\n    retry: {max_attempts: 1}"


@pytest.mark.parametrize("wrong", [{}, {"what": 1}], ids=["no such field", "no object"])
async def test_an_attempt_that_cannot_be_made_is_no_probe(wrong: dict[str, int]) -> None:
    source = CIRCUIT.replace(
        'with: {n: "{{ event.n }}"}',
        'with: "{{ event.what }}"',
    )
    bench = Partner(ONCE, source)
    async with bench.working():
        await bench.send("a", payload={"what": {"n": 1}})
        await ended(bench, 1)
        bench.is_up = True
        await bench.send("b", payload=wrong)
        await ended(bench, 2)
        await bench.send("c", payload={"what": {"n": 2}})
        await ended(bench, 3)
    assert bench.calls == [1, 2]


async def test_a_probe_that_is_cancelled_is_followed_by_another() -> None:
    bench = Partner(ONCE)
    async with bench.working():
        await bench.send("a", payload={"n": 1})
        await ended(bench, 1)
        bench.hangs = True
        await bench.send("b", payload={"n": 2})
        await bench.called(2)
        bench.hangs, bench.is_up = False, True
        await bench.cancel()
        await bench.send("c", payload={"n": 3})
        runs = await ended(bench, 3)
    assert sorted(run.state for run in runs) == [RunState.CANCELLED, RunState.COMPLETED, RunState.FAILED]


async def test_a_circuit_that_nobody_tries_does_not_make_the_rest_go_one_by_one() -> None:
    bench = Partner("circuit_breaker: {failures: 1, pause: 30s, per: plugin}")
    program = bench.plan.programs["f.h"]
    assert program.breaker is not None
    clock = FakeClock()
    async with bench.store:
        breakers = Breakers(bench.store.traffic, clock, project="p")
        (step,) = program.every.values()
        assert isinstance(step, Use)
        down = Failed(Error(type="down", message="no answer", retryable=True))
        await breakers.note(program, step, down)
        assert breakers.state(program) == "open"
        clock.advance(30)
        assert breakers.state(program) == "half_open"
        clock.advance(MISSED_S)
        assert breakers.state(program) == "closed"
        assert await breakers.closed_until(program, step) is None  # as the one that is let through
        assert breakers.state(program) == "probed"
        assert await breakers.closed_until(program, step) is not None


@pytest.mark.parametrize("most", [1, 3, 40])
async def test_what_is_given_back_because_the_queue_is_full_stays_in_order(most: int) -> None:
    done: list[int] = []

    @handler("note")
    async def note(ctx: Context, *, n: int) -> None:
        done.append(n)

    bench = Bench(
        f"""
flow: f
events: {{e: {{external: true, schema: {{required: [n, key], properties: {{n: {{type: integer}}, key: {{}}}}}}}}}}
routes: [{{on: e, to: h}}]
handlers:
  h:
    partition_by: "{{{{ event.key }}}}"
    queue: {{max: {most}}}
    steps: [{{use: note, with: {{n: "{{{{ event.n }}}}"}}}}]
""",
        [note],
    )
    async with bench.working():
        for n in range(150):
            await bench.send(f"m-{n}", payload={"n": n, "key": "one"})
        await ended(bench, 150)
    assert done == list(range(150))
