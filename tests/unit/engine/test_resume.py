"""ARCHITECTURE, What is promised: a crash at every commit, before it and after it, forward and in compensation."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pytest
from acting import Crash, CrashingStore, flow

from runner.engine.run import run_id
from runner.errors import RetryableError, TerminalError
from runner.handler import Context, handler
from runner.message import decode_json
from runner.ports import Store
from runner.records import AttemptFailed, RunState, StepFinished, UndoFinished
from runner.testing import FakeClock, FlowKit, KitRun

RUN = run_id("f.h", "/amqp", "m-1")

FORWARD = """
    steps:
      - id: a
        use: act
        with: {what: a, id: "{{ uuid() }}", at: "{{ now() }}", began: "{{ run.started_at }}", sent: "{{ meta.time }}"}
        compensate: {use: act, with: {what: undo_a, serial: "{{ output.serial }}", id: "{{ uuid() }}",
             at: "{{ now() }}"}}
      - set: {at: "{{ now() }}", id: "{{ uuid() }}"}
      - id: choose
        switch:
          - when: now() >= run.started_at and event.n == 1
            do:
              - {id: b, use: act, with: {what: b, at: "{{ now() }}", of: "{{ steps.a.output.serial }}",
                   vars: "{{ vars }}"},
                 compensate: [{use: act, with: {what: undo_b1}}, {use: act, with: {what: undo_b2,
                      e: "{{ error.type }}"}}]}
              - {id: t, emit: told, with: {id: "{{ uuid() }}", at: "{{ now() }}"}, compensate: {emit: told,
                   with: {undo: true}}}
          - {when: "true", do: [{use: act, with: {what: wrong}}]}
      - id: c
        use: act
        with: {what: c}
        catch: [{do: [{id: d, use: act, with: {what: d, e: "{{ error.type }}"}, compensate: {use: act,
             with: {what: undo_d}}}]}]
      - {set: {z: "{{ now() }}"}}
      - {id: e, use: act, with: {what: e, z: "{{ vars.z }}", at: "{{ now() }}", id: "{{ uuid() }}",
           told: "{{ steps.t.output.id }}",
         d: "{{ steps.c.output.serial }}"}}
"""
DONE = FORWARD + "      - {emit: counted, with: {n: 1}}\n"
UNDONE = (
    FORWARD
    + """
      - {fail: {type: no_luck, message: "at {{ now() }}"}}
    on_failure:
      - {use: act, with: {what: report, at: "{{ now() }}", e: "{{ error }}"}}
      - {emit: counted, with: {n: 2}}
      - {use: act, with: {what: bye}}
"""
)
FLAKY = ("b", "undo_a", "report")
"""These fail at their first attempt."""


@dataclass
class Story:
    """What came of a run, and all that it did to the world on its way."""

    run: KitRun
    events: list[tuple[str, Any]]
    event_ids: list[str]
    commits: int
    calls: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    order: list[str] = field(default_factory=list)


async def story(body: str, *at: tuple[int, str]) -> Story:
    """Run it, dying at these commits; after each death a new process takes the run up, or the message again."""
    clock = FakeClock()
    calls: dict[str, list[dict[str, Any]]] = defaultdict(list)
    order: list[str] = []

    @handler("act")
    async def act(ctx: Context, *, what: str, **fields: Any) -> Any:
        await not_recorded(kit, ctx.step_id)
        clock.advance(1.7)
        calls[ctx.idempotency_key].append({"what": what, **fields})
        order.append(what)
        if what in FLAKY and ctx.attempt == 1:
            raise RetryableError("busy")
        if what == "c":
            raise TerminalError("no_way")
        return {"serial": len(order)}

    stores: list[CrashingStore] = []

    def crashing(store: Store) -> Store:
        stores.append(CrashingStore(store, set(at)))
        return stores[0]  # type: ignore[return-value]

    async with FlowKit(flow(body), [act], clock=clock, store=crashing) as kit:
        run = await to_its_end(kit, clock)
        rows = await kit.store.outbox(100)
    messages = [row.outgoing for row in rows]
    events = [(message.routing_key, decode_json(message.body)) for message in messages]
    ids = [str(message.properties.message_id) for message in messages]
    return Story(run, events, ids, stores[0].count, calls, order)


async def to_its_end(kit: FlowKit, clock: FakeClock) -> KitRun:
    for _ in range(20):
        clock.advance(11.3)  # a crash takes time
        try:
            if await kit.store.known(RUN):
                return await kit.finish(RUN)
            await kit.send("go", {"n": 1}, ident="m-1")
        except Crash:
            continue
    raise AssertionError("it never ends")


async def not_recorded(kit: FlowKit, step_id: str) -> None:
    """A recorded step is never called again."""
    if await kit.store.known(RUN):
        for record in (await kit.look(RUN)).stored.records:
            assert not (isinstance(record, StepFinished | UndoFinished) and record.step_id == step_id)


def check(crashed: Story, calm: Story) -> None:
    assert crashed.run.state is calm.run.state
    assert list(crashed.calls) == list(calm.calls), "the same effects, under the same keys, in the same order"
    for key, calls in crashed.calls.items():
        assert all(call == calls[0] for call in calls), f"{key} was called with different values"
    assert uuids(crashed) == uuids(calm)
    assert [name for name, _ in crashed.events] == [name for name, _ in calm.events], "each event once"
    assert len(set(crashed.event_ids)) == len(crashed.event_ids)
    assert states(crashed.run, StepFinished) == states(calm.run, StepFinished)
    assert states(crashed.run, UndoFinished) == states(calm.run, UndoFinished), "each undone once, in reverse"
    assert [type(record) for record in crashed.run.stored.records] == [type(r) for r in calm.run.stored.records]
    assert error_type(crashed.run) == error_type(calm.run)


def uuids(of: Story) -> list[Any]:
    steps = [calls[0].get("id") for calls in of.calls.values()]
    return [*steps, of.run.steps["2"].output["id"], *(payload.get("id") for _, payload in of.events)]


def states(run: KitRun, kind: type[StepFinished] | type[UndoFinished]) -> list[tuple[str, str, int]]:
    return [(r.step_id, str(r.state), r.attempts) for r in run.stored.records if isinstance(r, kind)]


def error_type(run: KitRun) -> str | None:
    return run.stored.error.type if run.stored.error is not None else None


@pytest.mark.parametrize(("body", "state"), [(DONE, RunState.COMPLETED), (UNDONE, RunState.COMPENSATED)])
async def test_the_story_is_told_as_it_should_be_without_a_crash(body: str, state: RunState) -> None:
    calm = await story(body)
    assert calm.run.state is state
    forward = ["a", "b", "b", "c", "d", "e"]
    backward = ["undo_d", "undo_b1", "undo_b2", "undo_a", "undo_a", "report", "report", "bye"]
    assert calm.order == forward + (backward if body is UNDONE else [])
    assert len([r for r in calm.run.stored.records if isinstance(r, AttemptFailed)]) == (3 if body is UNDONE else 1)
    told = ["told", "counted"] if body is DONE else ["told", "told", "counted"]
    assert [name for name, _ in calm.events] == told


@pytest.mark.parametrize("body", [DONE, UNDONE], ids=["forward", "compensation"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_crash_at_any_commit_changes_nothing_that_counts(body: str, moment: str) -> None:
    calm = await story(body)
    for n in range(1, calm.commits + 1):
        crashed = await story(body, (n, moment))
        assert crashed.commits > calm.commits - 1, "it did crash"
        check(crashed, calm)


@pytest.mark.parametrize("body", [DONE, UNDONE], ids=["forward", "compensation"])
async def test_nor_do_two_crashes(body: str) -> None:
    calm = await story(body)
    moments = [(n, moment) for n in range(1, calm.commits + 2) for moment in ("before", "after")]
    for first, second in combinations(moments, 2):
        if first[0] != second[0] and second[0] - first[0] < 4:
            check(await story(body, first, second), calm)


@pytest.mark.parametrize("body", [DONE, UNDONE], ids=["forward", "compensation"])
async def test_nor_does_a_process_that_dies_again_and_again(body: str) -> None:
    calm = await story(body)
    check(await story(body, *((n, "after") for n in range(1, 40, 2))), calm)
    check(await story(body, *((n, "before") for n in range(1, 40, 2))), calm)


@pytest.mark.parametrize("clock", ["now()", "run.started_at", "meta.time", "vars.at"])
async def test_a_time_that_the_first_effect_is_given_is_durable_before_it(clock: str) -> None:
    """Else the message that comes again would begin the run at another time, under the same key."""
    body = f"""
        steps:
          - {{set: {{at: "{{{{ run.started_at }}}}"}}}}
          - {{use: act, with: {{what: e, at: "{{{{ {clock} }}}}"}}}}
          - {{use: act, with: {{what: f}}}}
        """
    for n in range(1, 4):
        crashed = await story(body, (n, "before"))
        for calls in crashed.calls.values():
            assert all(call == calls[0] for call in calls)


@pytest.mark.parametrize("crash", [(3, "before"), (3, "after"), (4, "before")])
async def test_now_says_what_it_said_although_nothing_but_the_clock_was_to_be_committed(crash: tuple[int, str]) -> None:
    seen: dict[str, set[str]] = defaultdict(set)
    clock = FakeClock()

    @handler("act")
    async def act(ctx: Context, *, at: str) -> None:
        clock.advance(5)
        seen[ctx.idempotency_key].add(at)
        kit.draining = at == "first"

    def store(real: Store) -> Store:
        return CrashingStore(real, {crash})  # type: ignore[return-value]

    body = """
        steps:
          - {use: act, with: {at: zero}}
          - {use: act, with: {at: first}}
          - {set: {x: 1}}
          - {use: act, with: {at: "{{ now() }}"}}
        """
    async with FlowKit(flow(body), [act], clock=clock, store=store) as kit:
        put_down = await kit.send("go", {}, ident="m-1")
        assert put_down is not None
        kit.draining = False
        assert (await to_its_end(kit, clock)).state is RunState.COMPLETED
    assert [len(values) for values in seen.values()] == [1, 1, 1]


async def test_a_drained_run_is_put_down_at_its_next_step_and_taken_up_again() -> None:
    done: list[str] = []

    @handler("act")
    async def act(ctx: Context, *, what: str) -> None:
        done.append(what)
        if what == "b":
            kit.draining = True

    body = """
        steps:
          - {use: act, with: {what: a}}
          - switch: [{when: "true", do: [{use: act, with: {what: b}}, {use: act, with: {what: c}}]}]
        """
    async with FlowKit(flow(body), [act]) as kit:
        put_down = await kit.send("go", {}, ident="m-1")
        assert put_down is not None
        assert (put_down.state, done) == (RunState.RUNNING, ["a", "b"])
        assert put_down.stored.due_at is not None
        kit.draining = False
        assert (await kit.resume(RUN)).state is RunState.COMPLETED
    assert done == ["a", "b", "c"]


async def test_a_drained_compensation_is_put_down_too() -> None:
    done: list[str] = []

    @handler("act")
    async def act(ctx: Context, *, what: str) -> None:
        done.append(what)
        kit.draining = what == "undo_b"

    body = """
        steps:
          - {use: act, with: {what: a}, compensate: {use: act, with: {what: undo_a}}}
          - {use: act, with: {what: b}, compensate: {use: act, with: {what: undo_b}}}
          - {fail: {type: no, message: no}}
        """
    async with FlowKit(flow(body), [act]) as kit:
        put_down = await kit.send("go", {}, ident="m-1")
        assert put_down is not None
        assert (put_down.state, done) == (RunState.COMPENSATING, ["a", "b", "undo_b"])
        kit.draining = False
        assert (await kit.resume(RUN)).state is RunState.COMPENSATED
    assert done == ["a", "b", "undo_b", "undo_a"]


async def test_a_message_that_comes_again_begins_no_second_run() -> None:
    calls: list[int] = []

    @handler("act")
    async def act(ctx: Context) -> None:
        calls.append(1)

    async with FlowKit(flow("steps: [{use: act}]"), [act]) as kit:
        assert await kit.send("go", {}, ident="m-1") is not None
        assert await kit.send("go", {}, ident="m-1") is None
        assert await kit.send("go", {"other": 1}, ident="m-1") is None
        assert await kit.send("go", {}, ident="m-2") is not None
    assert calls == [1, 1]
