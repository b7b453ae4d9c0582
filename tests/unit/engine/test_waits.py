"""LANGUAGE §3 and §4: `wait`, `wait_for`, `cancel_on`: what waits holds nothing, and misses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from acting import Crash, CrashingStore, Gate, Service, run, since

from runner.engine.run import run_id
from runner.errors import TerminalError
from runner.records import RunState, StepState
from runner.testing import FlowKit, KitRun
from runner.times import rfc3339

RUN = run_id("f.h", "/amqp", "m-1")
FOR_ANSWER = """
steps:
  - {use: act, with: {what: ask}}
  - {id: answer, wait_for: {event: answer, match: {order.id: "{{ event.id }}"}, timeout: 10m}}
  - {use: act, with: {what: "{{ steps.answer.output.says }}", id: "{{ steps.answer.event.id }}"}}
"""


def says(text: str, order: Any = 7) -> dict[str, Any]:
    return {"order": {"id": order}, "says": text}


async def begin(kit: FlowKit, payload: Any = None) -> KitRun:
    begun = await kit.send("go", {"id": 7} if payload is None else payload, ident="m-1")
    assert begun is not None
    return begun


async def asleep(kit: FlowKit) -> KitRun:
    """The run, begun, and waiting for its event."""
    await begin(kit)
    return await kit.resume(RUN)


# --- wait


async def test_a_wait_parks_the_run_until_its_time() -> None:
    service = Service()
    async with service.kit("steps: [{use: act, with: {what: a}}, {wait: 24h}, {use: act, with: {what: b}}]") as kit:
        parked = await begin(kit)
        assert parked.state is RunState.WAITING
        assert since(kit.clock, parked) == 24 * 3600
        assert service.done == ["a"]
        await kit.clock.sleep_until(kit.clock.now() + timedelta(hours=23))
        assert (await kit.resume(RUN)).state is RunState.WAITING
        assert (await kit.finish(RUN)).state is RunState.COMPLETED
    assert service.done == ["a", "b"]


@pytest.mark.parametrize(
    ("until", "seconds"),
    [("run.started_at | plus('2h')", 7200), ("event.at", 3600), ("event.past", 0), ("event.zone", 1800)],
)
async def test_a_wait_until_a_time(until: str, seconds: float) -> None:
    async with Service().kit(f'steps: [{{wait: {{until: "{until}"}}}}]') as kit:
        now = kit.clock.now()
        payload = {
            "at": rfc3339(now + timedelta(hours=1)),
            "past": rfc3339(now - timedelta(days=1)),
            "zone": (now + timedelta(minutes=30)).isoformat().replace("+00:00", "+00:00"),
        }
        parked = await begin(kit, payload)
        if seconds:
            assert since(kit.clock, parked) == seconds
        assert (await kit.finish(RUN)).state is RunState.COMPLETED


@pytest.mark.parametrize("value", ["soon", 7, None])
async def test_a_time_that_is_none_fails_the_step(value: Any) -> None:
    done = await run("steps: [{id: w, wait: {until: event.at}}]", {"at": value})
    assert done.steps["w"].error is not None
    assert done.steps["w"].error.type == "expression"


async def test_what_sleeps_by_its_own_wish_is_not_left_to_do() -> None:
    async with Service().kit(FOR_ANSWER) as kit:
        await asleep(kit)
        assert (await kit.store.backlog()).runs == 0
        await kit.arrive("answer", says("yes"))
        await kit.resume(RUN)
        assert (await kit.look(RUN)).state is RunState.COMPLETED


# --- wait_for


async def test_an_event_that_matches_is_the_output_and_its_meta_stands_beside_it() -> None:
    service = Service()
    async with service.kit(FOR_ANSWER) as kit:
        waiting = await asleep(kit)
        assert waiting.state is RunState.WAITING
        await kit.arrive("answer", says("no", 8))
        await kit.arrive("answer", {"says": "what?"})
        assert (await kit.resume(RUN)).state is RunState.WAITING
        await kit.arrive("answer", says("yes", 7.0), ident="a-1")
        due = await kit.look(RUN)
        assert due.stored.due_at is not None
        assert due.stored.due_at <= rfc3339(kit.clock.now()), "its event makes it due at once"
        assert (await kit.resume(RUN)).state is RunState.COMPLETED
    assert service.done == ["ask", "yes"]
    assert service.calls[1].fields == {"id": "a-1"}


async def test_what_came_since_the_run_began_counts_and_what_came_before_does_not() -> None:
    service = Service()
    async with service.kit(FOR_ANSWER) as kit:
        await kit.arrive("answer", says("too early"))
        await kit.clock.sleep_until(kit.clock.now() + timedelta(seconds=1))
        service.answers["ask"] = [lambda: None]
        await begin(kit)
        await kit.arrive("answer", says("before the wait was looked at"))
        await kit.finish(RUN)
    assert service.done == ["ask", "before the wait was looked at"]


async def test_the_earliest_counts_first_and_each_once_in_a_run() -> None:
    service = Service()
    wait = "{id: %s, wait_for: {event: answer}}"
    told = "{use: act, with: {what: '{{ steps.%s.output.says }}'}}"
    body = f"steps: [{wait % 'one'}, {told % 'one'}, {wait % 'two'}, {told % 'two'}]"
    async with service.kit(body) as kit:
        await begin(kit)
        for text in ("first", "second", "third"):
            await kit.arrive("answer", says(text), ident=text)
            await kit.arrive("answer", says(text), ident=text)  # it is published twice
        await kit.finish(RUN)
    assert service.done == ["first", "second"]


async def test_so_many_events_are_lists() -> None:
    async with Service().kit("steps: [{id: all, wait_for: {event: answer, count: 2}}]") as kit:
        await begin(kit)
        await kit.arrive("answer", says("a"), ident="1")
        assert (await kit.resume(RUN)).state is RunState.WAITING
        await kit.arrive("answer", says("b"), ident="2")
        done = (await kit.finish(RUN)).steps["all"]
    assert [each["says"] for each in done.output] == ["a", "b"]
    assert [each["id"] for each in done.event] == ["1", "2"]


async def test_the_first_of_several_events_ends_the_wait() -> None:
    body = "steps: [{id: any, wait_for: {event: [answer, withdrawal], match: {id: '{{ event.id }}'}}}]"
    async with Service().kit(body) as kit:
        await begin(kit)
        await kit.arrive("withdrawal", {"id": 7})
        done = await kit.finish(RUN)
    assert done.steps["any"].event["type"] == "withdrawal"


async def test_a_wait_that_is_over_in_vain_fails_with_timeout_and_is_never_retried() -> None:
    service = Service()
    body = FOR_ANSWER.replace("timeout: 10m}}", "timeout: 10m}, catch: [{on: [timeout], do: [{stop: true}]}]}")
    async with service.kit("retry: {max_attempts: 5}\n" + body) as kit:
        parked = await asleep(kit)
        assert since(kit.clock, parked) == 600
        done = await kit.finish(RUN)
        assert done.state is RunState.COMPLETED
        assert done.steps["answer"].state is StepState.FAILED
        assert done.steps["answer"].error is not None
        assert done.steps["answer"].error.type == "timeout"
        await kit.arrive("answer", says("late"))
        assert (await kit.look(RUN)).state is RunState.COMPLETED
    assert service.done == ["ask"]


async def test_a_wait_without_an_end_ends_with_the_run() -> None:
    body = "timeout: 1h\nsteps: [{id: answer, wait_for: {event: answer}}]"
    done = await run(body)
    assert done.state is RunState.FAILED
    assert done.stored.error is not None
    assert done.stored.error.type == "timeout"


async def test_what_is_matched_is_taken_when_the_wait_begins() -> None:
    body = """
    steps:
      - set: {id: 7}
      - {id: answer, wait_for: {event: answer, match: {order.id: "{{ vars.id }}", at: "{{ run.id }}"}}}
    """
    async with Service().kit(body) as kit:
        begun = await begin(kit)
        await kit.arrive("answer", {**says("yes"), "at": begun.stored.started.run_id})
        assert (await kit.finish(RUN)).state is RunState.COMPLETED


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("commit", [1, 2, 3])
async def test_a_crash_at_any_commit_misses_no_event(moment: str, commit: int) -> None:
    service = Service()
    wrapped: list[CrashingStore] = []

    def crashing(store: Any) -> Any:
        wrapped.append(CrashingStore(store, {(commit, moment)}))
        return wrapped[0]

    async with service.kit(FOR_ANSWER, store=crashing) as kit:
        await survived(lambda: begin(kit))
        if await kit.store.run(RUN) is None:
            await begin(kit)
        await kit.arrive("answer", says("yes"))
        for _ in range(4):
            if await survived(lambda: kit.finish(RUN)):
                break
        done = await kit.look(RUN)
    assert done.state is RunState.COMPLETED
    assert set(service.done) == {"ask", "yes"}


async def survived(work: Callable[[], Any]) -> bool:
    try:
        await work()
    except Crash:
        return False
    return True


async def test_events_that_nobody_can_wait_for_any_more_are_forgotten() -> None:
    async with Service().kit(FOR_ANSWER) as kit:
        await kit.arrive("answer", says("old"))
        await kit.clock.sleep_until(kit.clock.now() + timedelta(seconds=1))
        await begin(kit)
        await kit.arrive("answer", says("yes"))
        await kit.store.forget_arrivals(kit.clock.now())
        assert (await kit.finish(RUN)).state is RunState.COMPLETED


# --- cancel_on


CANCELLED = """
cancel_on: [{event: withdrawal, match: {id: "{{ event.id }}"}}]
steps:
  - {use: act, with: {what: a}, compensate: {use: act, with: {what: undo_a}}}
  - {id: nap, wait: 1h}
  - {use: act, with: {what: b}, pivot: true}
  - {wait: 1h}
"""


async def test_an_event_cancels_a_run_that_it_matches() -> None:
    service = Service()
    async with service.kit(CANCELLED) as kit:
        await begin(kit)
        await kit.arrive("withdrawal", {"id": 8})
        assert (await kit.resume(RUN)).state is RunState.WAITING
        await kit.arrive("withdrawal", {"id": 7})
        done = await kit.finish(RUN)
    assert done.state is RunState.CANCELLED
    assert done.stored.error is not None
    assert "event withdrawal" in done.stored.error.message
    assert service.done == ["a", "undo_a"]


async def test_an_event_cancels_nothing_that_has_passed_its_pivot() -> None:
    service = Service()
    async with service.kit(CANCELLED) as kit:
        begun = await begin(kit)
        await kit.clock.sleep_until(kit.clock.now() + timedelta(seconds=since(kit.clock, begun)))
        await kit.resume(RUN)
        await kit.arrive("withdrawal", {"id": 7})
        done = await kit.finish(RUN)
    assert done.state is RunState.COMPLETED
    assert service.done == ["a", "b"]


async def test_what_cancels_must_be_there_to_be_read() -> None:
    body = "cancel_on: [{event: withdrawal, match: {id: '{{ event.nothing }}'}}]\nsteps: [{use: act, with: {what: a}}]"
    service = Service()
    done = await run(body, {"id": 7}, service)
    assert done.stored.error is not None
    assert done.stored.error.type == "expression"
    assert service.done == []


async def test_an_event_that_came_while_the_first_step_went_on_cancels_the_run() -> None:
    gate = Gate()
    service = Service({"a": [gate]})
    async with service.kit(CANCELLED) as kit:
        going = asyncio.create_task(begin(kit))
        await gate.entered.wait()
        await kit.arrive("withdrawal", {"id": 7})
        assert (await kit.look(RUN)).stored.request is not None, "the run stands in the store before its first effect"
        gate.opened.set()
        await going
        done = await kit.finish(RUN)
    assert done.state is RunState.CANCELLED
    assert service.done == ["a", "undo_a"]


@pytest.mark.parametrize("source", ["/amqp", "/somewhere/else"])
async def test_the_event_that_begins_a_run_neither_cancels_it_nor_ends_its_waits(source: str) -> None:
    body = """
    cancel_on: [{event: go}]
    steps: [{id: again, wait_for: {event: go, timeout: 10m}, catch: [{on: [timeout], do: [{stop: true}]}]}]
    """
    async with Service().kit(body) as kit:
        await begin(kit)
        await kit.arrive("go", {"id": 7}, ident="m-1" if source == "/amqp" else "m-2")
        done = await kit.finish(RUN)
    assert done.state is (RunState.COMPLETED if source == "/amqp" else RunState.CANCELLED)


async def test_a_run_that_is_retried_is_cancelled_by_its_events_again() -> None:
    service = Service()
    body = """
    cancel_on: [{event: withdrawal, match: {id: "{{ event.id }}"}}]
    steps: [{use: act, with: {what: a}}, {wait: 1h}]
    """
    async with service.kit(body) as kit:
        service.answers["a"] = [TerminalError("no"), lambda: kit.arrive("withdrawal", {"id": 7})]
        assert (await begin(kit)).state is RunState.FAILED
        assert (await kit.retry(RUN)).state is RunState.CANCELLED
