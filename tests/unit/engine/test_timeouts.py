"""LANGUAGE §4 and §3: the timeout of an attempt, and that of a run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from acting import Service, flow, run, since

from runner.errors import RetryableError, TerminalError
from runner.handler import Context, handler
from runner.records import RunState, StepState
from runner.testing import FakeClock, FlowKit
from runner.times import parse_time

SHORT = "timeout: 20ms, retry: {max_attempts: 1}"


async def run_with(body: str, *handlers: Callable[..., Any]) -> Any:
    async with FlowKit(flow(body), handlers) as kit:
        begun = await kit.send("go", {})
        assert begun is not None
        return await kit.finish(begun.stored.started.run_id)


# --- of an attempt


async def test_an_async_handler_that_takes_too_long_fails_with_timeout() -> None:
    cancelled = []

    @handler("hang")
    async def hang(ctx: Context) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(ctx.attempt)
            raise

    done = await run_with(f"steps: [{{id: a, use: hang, {SHORT}}}]", hang)
    assert done.state is RunState.FAILED
    assert (done.stored.error.type, done.stored.error.retryable, done.stored.error.step) == ("timeout", True, "a")
    assert cancelled == [1]


@pytest.mark.parametrize("late", ["a result", TerminalError("late"), ValueError("late")])
async def test_what_a_handler_says_after_its_timeout_is_ignored(late: Any) -> None:
    @handler("stubborn")
    async def stubborn(ctx: Context) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if isinstance(late, Exception):
                raise late from None
        return late

    done = await run_with(f"steps: [{{id: a, use: stubborn, {SHORT}}}]", stubborn)
    assert done.steps["a"].state is StepState.FAILED
    assert done.steps["a"].output is None
    assert done.stored.error.type == "timeout"


async def test_a_handler_in_a_thread_is_left_behind_and_its_late_result_ignored() -> None:
    release, ended = threading.Event(), threading.Event()

    @handler("hang")
    def hang(ctx: Context) -> str:
        release.wait(10)
        try:
            return "late"
        finally:
            ended.set()

    async with FlowKit(flow(f"steps: [{{id: a, use: hang, {SHORT}, catch: [{{do: []}}]}}]"), [hang]) as kit:
        done = await kit.send("go", {})
        release.set()
        await asyncio.to_thread(ended.wait, 10)
        await asyncio.sleep(0)
        assert done is not None
        again = await kit.look(done.stored.started.run_id)
    assert again == done
    assert again.state is RunState.COMPLETED
    assert again.steps["a"].error is not None
    assert again.steps["a"].error.type == "timeout"


async def test_a_timeout_is_retried_and_each_attempt_has_the_whole_time() -> None:
    attempts = []

    @handler("hang")
    async def hang(ctx: Context) -> int:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            await asyncio.Event().wait()
        return ctx.attempt

    done = await run_with("steps: [{id: a, use: hang, timeout: 20ms}]", hang)
    assert (done.state, done.steps["a"].output, attempts) == (RunState.COMPLETED, 3, [1, 2, 3])


@pytest.mark.parametrize(("length", "is_kept"), [("10m", False), ("11m", True)])
async def test_a_first_step_that_may_outlast_the_brokers_patience_begins_once_the_run_is_kept(
    length: str, is_kept: bool
) -> None:
    kept = []

    @handler("look")
    async def look(ctx: Context) -> None:
        kept.append(await kit.store.known(ctx.run_id))

    async with FlowKit(flow(f"steps: [{{use: look, timeout: {length}}}]"), [look]) as kit:
        done = await kit.send("go", {})
    assert done is not None
    assert done.state is RunState.COMPLETED
    assert kept == [is_kept]


async def test_a_handlers_own_timeout_error_is_its_own_fault() -> None:
    service = Service({"a": [TimeoutError("of a socket")]})
    done = await run("steps: [{use: act, with: {what: a}, retry: {max_attempts: 1}}]", None, service)
    assert done.stored.error is not None
    assert (done.stored.error.type, done.stored.error.retryable) == ("internal", True)


async def test_the_handler_is_told_when_its_attempt_ends() -> None:
    told: list[Any] = []

    @handler("ask")
    async def ask(ctx: Context) -> None:
        told.append(ctx.deadline)

    async with FlowKit(flow("{timeout: 2m, steps: [{use: ask, timeout: 30s}, {use: ask}]}"), [ask]) as kit:
        start = kit.clock.now()
        await kit.send("go", {})
    assert told == [start + timedelta(seconds=30), start + timedelta(minutes=2)]


async def test_an_attempt_has_five_minutes_by_default() -> None:
    told: list[Any] = []

    @handler("ask")
    async def ask(ctx: Context) -> None:
        told.append(ctx.deadline)

    async with FlowKit(flow("steps: [{use: ask}]"), [ask]) as kit:
        await kit.send("go", {})
        assert told == [kit.clock.now() + timedelta(minutes=5)]


async def test_a_compensation_that_hangs_times_out_and_is_tried_again() -> None:
    attempts = []

    @handler("undo")
    async def undo(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            await asyncio.Event().wait()

    body = """
        steps:
          - {use: act, with: {what: a}, compensate: {use: undo, timeout: 20ms}}
          - {fail: {type: no, message: no}}
        """
    done = await run_with(body, undo, *Service().handlers())
    assert (done.state, attempts) == (RunState.COMPENSATED, [1, 2])


# --- of a run


def slow(clock: FakeClock, seconds: float, answer: Any = None) -> Callable[[], Any]:
    """A handler's answer that takes its (virtual) time."""

    def take() -> Any:
        clock.advance(seconds)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return take


async def test_a_run_that_passes_its_timeout_fails_with_timeout_before_its_next_step() -> None:
    clock = FakeClock()
    service = Service({"a": [slow(clock, 61)]})
    done = await run(
        "{timeout: 1m, steps: [{use: act, with: {what: a}}, {id: b, use: act, with: {what: b}}]}",
        None, service, clock=clock,
    )  # fmt: skip
    assert (done.state, service.done) == (RunState.FAILED, ["a"])
    assert done.stored.error is not None
    assert (done.stored.error.type, done.stored.error.step) == ("timeout", "b")
    assert done.steps["b"].attempts == 0


async def test_a_run_within_its_timeout_completes() -> None:
    clock = FakeClock()
    service = Service({"a": [slow(clock, 59)]})
    done = await run(
        "{timeout: 1m, steps: [{use: act, with: {what: a}}, {use: act, with: {what: b}}]}", None, service, clock=clock
    )
    assert done.state is RunState.COMPLETED


async def test_no_catch_takes_the_runs_timeout() -> None:
    clock = FakeClock()
    service = Service({"a": [slow(clock, 61, RetryableError("busy"))]})
    done = await run(
        """
        timeout: 1m
        steps:
          - switch:
              - when: "true"
                do: [{id: a, use: act, with: {what: a}, catch: [{on: [timeout], do: []}, {do: []}]}]
            catch: [{do: [{use: act, with: {what: never}}]}]
        """,
        None, service, clock=clock,
    )  # fmt: skip
    assert (done.state, service.done) == (RunState.FAILED, ["a"])
    assert done.stored.error is not None
    assert done.stored.error.type == "timeout"
    assert done.steps["a"].attempts == 1


async def test_a_steps_own_timeout_is_caught_within_the_runs() -> None:
    @handler("hang")
    async def hang(ctx: Context) -> None:
        await asyncio.Event().wait()

    done = await run_with(f"{{timeout: 1m, steps: [{{use: hang, {SHORT}, catch: [{{on: [timeout], do: []}}]}}]}}", hang)
    assert done.state is RunState.COMPLETED


async def test_what_was_done_is_undone_after_the_runs_timeout_however_long_it_takes() -> None:
    clock = FakeClock()
    service = Service({
        "a": [slow(clock, 30)],
        "b": [slow(clock, 31)],
        "undo_a": [slow(clock, 600, RetryableError("busy")), RetryableError("busy"), None],
        "report": [slow(clock, 600)],
    })  # fmt: skip
    done = await run(
        """
        timeout: 1m
        steps:
          - {use: act, with: {what: a}, compensate: {use: act, with: {what: undo_a}}}
          - {use: act, with: {what: b}, compensate: {use: act, with: {what: undo_b}}}
          - {use: act, with: {what: c}}
        on_failure: [{use: act, with: {what: report}}, {emit: told, with: {e: "{{ error.type }}"}}]
        """,
        None, service, clock=clock,
    )  # fmt: skip
    assert done.state is RunState.COMPENSATED
    assert service.done == ["a", "b", "undo_b", "undo_a", "undo_a", "undo_a", "report"]
    assert done.emitted == (("told", {"e": "timeout"}),)


async def test_retries_never_park_beyond_the_runs_timeout() -> None:
    clock = FakeClock()
    service = Service({"a": [RetryableError("busy")]})
    body = """
        timeout: 1m
        steps: [{id: a, use: act, with: {what: a}, retry: {max_attempts: unlimited, delay: 50s, jitter: none}}]
        """
    start = clock.now()
    async with service.kit(body, clock=clock) as kit:
        first = await kit.send("go", {})
        assert first is not None
        assert since(clock, first) == 50
        await clock.sleep_until(parse_time(str(first.stored.due_at)))
        second = await kit.resume(first.stored.started.run_id)
        assert since(clock, second) == 10, "the run's own end, not the retry's delay"
        done = await kit.finish(first.stored.started.run_id)
    assert (clock.now() - start).total_seconds() == 60
    assert (done.state, service.done) == (RunState.FAILED, ["a", "a"])
    assert done.stored.error is not None
    assert done.stored.error.type == "timeout"
    assert done.steps["a"].attempts == 2, "as often as it was tried"


async def test_a_step_that_waited_in_a_block_is_the_one_that_timed_out() -> None:
    service = Service({"a": [RetryableError("busy")]})
    done = await run(
        """
        timeout: 1m
        steps:
          - id: block
            switch:
              - when: "true"
                do: [{id: a, use: act, with: {what: a}, retry: {max_attempts: unlimited, delay: 50s, jitter: none}}]
        on_failure: [{use: act, with: {what: report, a: "{{ steps.a.state }}", at: "{{ error.step }}"}}]
        """,
        None, service,
    )  # fmt: skip
    assert service.calls[-1].fields == {"a": "failed", "at": "a"}
    assert list(done.steps)[:2] == ["a", "block"]


async def test_an_attempt_ends_with_its_run() -> None:
    @handler("hang")
    async def hang(ctx: Context) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            clock.advance(0.03)  # as the real clock would have
            raise

    clock = FakeClock()
    async with FlowKit(flow("{timeout: 20ms, steps: [{use: hang, catch: [{do: []}]}]}"), [hang], clock=clock) as kit:
        done = await kit.send("go", {})
    assert done is not None
    assert done.state is RunState.FAILED
    assert done.stored.error is not None
    assert done.stored.error.type == "timeout"
