"""LANGUAGE §4, `if: attempted`: what was tried, and nobody knows with what result, is undone as well."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from acting import Crash, CrashingStore, Gate, Service, flow, run, undoable

from runner.engine.run import run_id
from runner.errors import RetryableError, TerminalError
from runner.handler import Context, handler
from runner.records import AttemptBegun, Change, Error, RunFailed, RunState
from runner.testing import FlowKit
from runner.times import rfc3339

RUN = run_id("f.h", "/amqp", "m-1")
ATTEMPTED = "if: attempted"
FAIL = "{id: end, fail: {type: no_luck, message: sorry}}"
FOR_EVER = Gate
"""An answer that never comes."""


def tried(name: str, more: str = "retry: {max_attempts: 1}", undo: str = ATTEMPTED) -> str:
    return undoable(name, more, undo)


# --- when nobody knows


@pytest.mark.parametrize(
    ("answer", "more", "error"),
    [
        pytest.param(FOR_EVER(), "timeout: 20ms, retry: {max_attempts: 1}", "timeout", id="a timeout"),
        pytest.param(ValueError("a bug"), "retry: {max_attempts: 1}", "internal", id="an exception of no known kind"),
        pytest.param(asyncio.CancelledError(), "retry: {max_attempts: 1}", "internal", id="its own cancellation"),
        pytest.param(SystemExit(1), "retry: {max_attempts: 1}", "internal", id="sys.exit"),
    ],
)
async def test_a_step_whose_result_nobody_knows_is_undone(answer: Any, more: str, error: str) -> None:
    service = Service({"b": [answer]})
    done = await run(f"steps: [{undoable('a')}, {tried('b', more)}]", None, service)
    assert done.stored.error is not None
    assert (done.state, done.stored.error.type) == (RunState.COMPENSATED, error)
    assert service.done == ["a", "b", "undo_b", "undo_a"]


async def test_without_if_attempted_it_is_not() -> None:
    service = Service({"b": [ValueError("a bug")]})
    await run(f"steps: [{undoable('a')}, {undoable('b', 'retry: {max_attempts: 1}')}]", None, service)
    assert service.done == ["a", "b", "undo_a"]


@pytest.mark.parametrize("answer", [TerminalError("declined"), RetryableError("busy")], ids=["terminal", "retryable"])
async def test_a_step_that_said_how_it_failed_is_not_undone(answer: Exception) -> None:
    service = Service({"b": [answer]})
    await run(f"steps: [{undoable('a')}, {tried('b')}]", None, service)
    assert service.done == ["a", "b", "undo_a"]


async def test_inputs_that_do_not_fit_never_reached_the_step() -> None:
    body = '{id: b, use: act, with: "{{ event.n }}", compensate: {use: act, with: {what: undo_b}, if: attempted}}'
    service = Service()
    done = await run(f"steps: [{undoable('a')}, {body}]", {"n": 1}, service)
    assert done.stored.error is not None
    assert done.stored.error.type == "invalid_input"
    assert service.done == ["a", "undo_a"]


async def test_a_step_that_was_skipped_or_never_reached_was_not_attempted() -> None:
    service = Service()
    skipped = tried("b", 'when: "false"')
    await run(f"steps: [{undoable('a')}, {skipped}, {FAIL}, {tried('c')}]", None, service)
    assert service.done == ["a", "undo_a"]


async def test_a_step_that_completed_after_a_timed_out_attempt_is_undone_once() -> None:
    service = Service({"b": [FOR_EVER(), {"id": 7}]})
    body = f"steps: [{undoable('a')}, {tried('b', 'timeout: 20ms')}, {FAIL}]"
    done = await run(body, None, service)
    assert service.done == ["a", "b", "b", "undo_b", "undo_a"]
    assert done.state is RunState.COMPENSATED


async def test_an_unknown_attempt_stays_unknown_whatever_a_later_one_says() -> None:
    """The first may have had its effect; that the second was declined does not take it back."""
    service = Service({"b": [FOR_EVER(), TerminalError("declined")]})
    await run(f"steps: [{tried('b', 'timeout: 20ms')}]", None, service)
    assert service.done == ["b", "b", "undo_b"]


async def test_a_run_that_passes_its_timeout_in_mid_attempt_undoes_that_attempt() -> None:
    service = Service()
    body = f"timeout: 10s\nsteps: [{undoable('a')}, {tried('b')}, {tried('c')}]"
    async with service.kit(body) as kit:

        def too_long() -> Any:
            kit.clock.advance(11)
            raise ValueError("interrupted")

        service.answers["b"] = [too_long]
        await kit.send("go", {}, ident="m-1")
        done = await kit.finish(RUN)
    assert done.stored.error is not None
    assert done.stored.error.message == "the run took longer than 10 s"
    assert service.done == ["a", "b", "undo_b", "undo_a"], "c was never begun"


async def test_an_attempt_that_the_runs_timeout_cuts_short_is_undone() -> None:
    service = Service({"b": [FOR_EVER()]})
    done = await run(f"timeout: 50ms\nsteps: [{undoable('a')}, {tried('b')}]", None, service)
    assert done.stored.error is not None
    assert done.stored.error.type == "timeout"
    assert service.done[:2] == ["a", "b"]
    assert set(service.done[2:]) >= {"undo_b", "undo_a"}


async def test_a_step_that_is_cancelled_midway_is_undone() -> None:
    gate = Gate()
    service = Service({"b": [gate]})
    async with service.kit(f"steps: [{undoable('a')}, {tried('b')}]") as kit:
        going = asyncio.create_task(kit.send("go", {}, ident="m-1"))
        await gate.entered.wait()
        assert (await kit.cancel(RUN)).state is RunState.CANCELLED
        await going
    assert service.done == ["a", "b", "undo_b", "undo_a"]


async def test_a_step_in_a_thread_that_is_cancelled_midway_is_undone_and_its_late_result_ignored() -> None:
    entered, opened = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    done: list[str] = []

    @handler("slow")
    def slow(ctx: Context) -> str:
        loop.call_soon_threadsafe(entered.set)
        opened.wait(10)
        return "late"

    @handler("note")
    async def note(ctx: Context, *, what: str) -> None:
        done.append(what)

    body = """
        steps:
          - {use: note, with: {what: a}}
          - {id: b, use: slow, compensate: {use: note, when: output is undefined, with: {what: undo_b}, if: attempted}}
        """
    async with FlowKit(flow(body), [slow, note]) as kit:
        going = asyncio.create_task(kit.send("go", {}, ident="m-1"))
        await entered.wait()
        cancelled = await kit.cancel(RUN)
        opened.set()
        await going
    assert (cancelled.state, done) == (RunState.CANCELLED, ["a", "undo_b"])


# --- in which order, and with what


async def test_the_unknown_and_the_completed_are_undone_in_one_order_the_last_first() -> None:
    service = Service({"b": [ValueError("?")], "c": [FOR_EVER(), {}]})
    body = f"""
        steps:
          - {undoable("a")}
          - {tried("b", "retry: {max_attempts: 1}, catch: [{do: [" + undoable("in") + "]}]")}
          - {tried("c", "timeout: 20ms")}
          - {undoable("d")}
          - {FAIL}
        """
    await run(body, None, service)
    assert service.done == ["a", "b", "in", "c", "c", "d", "undo_d", "undo_c", "undo_in", "undo_b", "undo_a"]


@pytest.mark.parametrize(
    ("answers", "fields"),
    [
        pytest.param([{"id": 7}], {"known": True, "id": 7}, id="completed"),
        pytest.param([ValueError("?")], {"known": False, "id": "none"}, id="unknown"),
        pytest.param([RetryableError("busy"), {"id": 8}], {"known": True, "id": 8}, id="completed later"),
    ],
)
async def test_output_is_defined_where_the_step_completed_and_else_it_is_not(
    answers: list[Any], fields: dict[str, Any]
) -> None:
    service = Service({"b": answers})
    attempts = 1 if isinstance(answers[0], ValueError) else 2
    body = f"""
        steps:
          - id: b
            use: act
            with: {{what: b}}
            retry: {{max_attempts: {attempts}}}
            compensate:
              use: act
              with: {{what: undo, known: "{{{{ output is defined }}}}", id: "{{{{ output.id | default('none') }}}}"}}
              if: attempted
          - {FAIL}
        """
    await run(body, None, service)
    assert service.calls[-1].fields == fields


async def test_a_list_of_compensations_may_say_it_one_by_one() -> None:
    service = Service({"b": [ValueError("?")]})
    body = """
        steps:
          - id: b
            use: act
            with: {what: b}
            retry: {max_attempts: 1}
            compensate:
              - {use: act, with: {what: refund}}
              - {use: act, with: {what: look_up}, if: attempted}
              - {use: act, when: output is defined, with: {what: tell}, if: attempted}
              - {emit: told, with: {}, if: attempted}
        """
    done = await run(body, None, service)
    assert service.done == ["b", "look_up"]
    assert [name for name, _ in done.emitted] == ["told"]


@pytest.mark.parametrize(("answer", "undone"), [(ValueError("?"), ["undo_b"]), (TerminalError("declined"), [])])
async def test_a_step_whose_error_was_caught_is_undone_if_its_result_is_unknown(
    answer: Exception, undone: list[str]
) -> None:
    service = Service({"b": [answer]})
    caught = tried("b", "retry: {max_attempts: 1}, catch: [{do: []}]")
    done = await run(f"steps: [{caught}, {FAIL}]", None, service)
    assert service.done == ["b", *undone]
    assert done.steps["b"].state == "failed"


async def test_a_caught_step_of_unknown_result_is_left_if_the_run_gets_through() -> None:
    service = Service({"b": [ValueError("?")]})
    done = await run(f"steps: [{tried('b', 'retry: {max_attempts: 1}, catch: [{do: []}]')}]", None, service)
    assert (done.state, service.done) == (RunState.COMPLETED, ["b"])


async def test_an_undo_of_unknown_result_is_tried_again_and_then_fails_like_any_other() -> None:
    service = Service({"b": [ValueError("?")], "undo_b": [ValueError("?")]})
    done = await run(f"steps: [{tried('b', undo='if: attempted, retry: {max_attempts: 2}')}]", None, service)
    assert (done.state, service.done) == (RunState.COMPENSATION_FAILED, ["b", "undo_b", "undo_b"])


async def test_a_step_that_completes_when_the_run_is_retried_is_known_again() -> None:
    service = Service({"b": [ValueError("?"), {"id": 7}], "c": [TerminalError("no")]})
    body = f"""
        steps:
          - {undoable("b", "retry: {max_attempts: 1}", "when: output is defined, if: attempted")}
          - {undoable("c")}
        """
    async with service.kit(body) as kit:
        failed = await kit.send("go", {}, ident="m-1")
        assert failed is not None
        assert (failed.state, service.done) == (RunState.FAILED, ["b"])
        assert (await kit.retry(RUN)).state is RunState.COMPENSATED
    assert service.done == ["b", "b", "c", "undo_b"]


# --- crashes


async def crash(kit: FlowKit, service: Service, begun: Callable[[], Any]) -> None:
    """A process that takes up the run dies in the middle of an attempt at b."""
    gate = Gate()
    service.answers["b"] = [gate]
    process = asyncio.create_task(begun())
    await gate.entered.wait()
    process.cancel()
    await asyncio.gather(process, return_exceptions=True)


async def crashed_once(kit: FlowKit, service: Service) -> None:
    await crash(kit, service, lambda: kit.send("go", {}, ident="m-1"))
    await kit.store.seize(RUN)
    await kit.store.commit(Change(run_id=RUN, state=RunState.RUNNING, suspect=True))  # as who finds it dead counts it


async def crashed_twice(kit: FlowKit, service: Service) -> None:
    await crashed_once(kit, service)
    await crash(kit, service, lambda: kit.resume(RUN))


async def ended_as_crashed(kit: FlowKit) -> None:
    """As the process that runs suspects ends the culprit."""
    stored = await kit.store.seize(RUN)
    assert stored is not None
    error = Error(type="crashed", message="3 processes died while they ran it", retryable=False)
    failed = RunFailed(error=error, failed_at=rfc3339(kit.clock.now()))
    records = (failed,)
    await kit.store.commit(
        Change(run_id=RUN, state=RunState.COMPENSATING, first=len(stored.records), records=records, error=error)
    )


@pytest.mark.parametrize(("undo", "undone"), [(ATTEMPTED, ["undo_b", "undo_a"]), ("", ["undo_a"])])
async def test_an_attempt_that_a_crash_cut_short_is_undone_when_the_run_is_ended_as_crashed(
    undo: str, undone: list[str]
) -> None:
    service = Service()
    async with service.kit(f"steps: [{undoable('a')}, {tried('b', undo=undo)}]") as kit:
        await crashed_twice(kit, service)
        begun = [r for r in (await kit.look(RUN)).stored.records if isinstance(r, AttemptBegun)]
        assert [(record.step_id, record.attempt) for record in begun] == [("b", 1)]
        await ended_as_crashed(kit)
        done = await kit.finish(RUN)
    assert done.state is RunState.COMPENSATED
    assert service.done == ["a", "b", "b", *undone]


async def test_a_step_that_completes_after_all_its_crashes_is_undone_once() -> None:
    service = Service()
    async with service.kit(f"steps: [{undoable('a')}, {tried('b')}, {undoable('c')}, {FAIL}]") as kit:
        await crashed_twice(kit, service)
        service.answers["b"] = []
        assert (await kit.finish(RUN)).state is RunState.COMPENSATED
    assert service.done == ["a", "b", "b", "b", "c", "undo_c", "undo_b", "undo_a"]


@pytest.mark.parametrize("crashes", [crashed_once, crashed_twice])
async def test_an_attempt_of_unknown_end_that_is_repeated_and_declined_stays_of_unknown_result(
    crashes: Callable[[FlowKit, Service], Awaitable[None]],
) -> None:
    """A process died in the middle of the first; the second was told "no", perhaps because the first was done."""
    service = Service()
    async with service.kit(f"steps: [{undoable('a')}, {tried('b')}, {tried('c')}]") as kit:
        await crashes(kit, service)
        service.answers["b"] = [TerminalError("there_already")]
        assert (await kit.finish(RUN)).state is RunState.COMPENSATED
    assert service.done[-3:] == ["b", "undo_b", "undo_a"]


async def test_a_step_that_no_crash_cut_short_tells_its_result_for_good() -> None:
    service = Service()
    async with service.kit(f"steps: [{undoable('a')}, {tried('b')}, {tried('c')}]") as kit:
        await crashed_once(kit, service)
        service.answers["b"] = []
        service.fails("c")
        assert (await kit.finish(RUN)).state is RunState.COMPENSATED
    assert service.done[-4:] == ["b", "c", "undo_b", "undo_a"]


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_crash_while_it_is_undone_repeats_no_undo_that_is_stored(moment: str) -> None:
    service = Service({"b": [ValueError("?")]})
    stores: list[CrashingStore] = []

    def crashing(store: Any) -> Any:
        stores.append(CrashingStore(store, {(3, moment)}))
        return stores[0]

    async with service.kit(f"steps: [{undoable('a')}, {tried('b')}]", store=crashing) as kit:
        with pytest.raises(Crash):
            await kit.send("go", {}, ident="m-1")
        assert (await kit.finish(RUN)).state is RunState.COMPENSATED
    assert service.done.count("undo_b") == (2 if moment == "before" else 1)
    assert service.done.count("undo_a") == 1


async def test_an_attempt_that_a_crash_cut_short_is_undone_when_the_run_is_cancelled_before_it_is_repeated() -> None:
    service = Service()
    async with service.kit(f"steps: [{undoable('a')}, {tried('b')}, {tried('c')}]") as kit:
        await crashed_once(kit, service)
        assert (await kit.cancel(RUN)).state is RunState.CANCELLED
    assert service.done == ["a", "b", "undo_b", "undo_a"], "c was never begun"


async def test_an_attempt_that_a_crash_cut_short_is_undone_when_the_run_is_too_late_to_repeat_it() -> None:
    service = Service()
    async with service.kit(f"timeout: 10s\nsteps: [{undoable('a')}, {tried('b')}, {tried('c')}]") as kit:
        await crashed_once(kit, service)
        kit.clock.advance(11)
        assert (await kit.finish(RUN)).state is RunState.COMPENSATED
    assert service.done == ["a", "b", "undo_b", "undo_a"]


async def test_an_attempt_that_a_crash_cut_short_while_it_was_retried_stays_of_unknown_result() -> None:
    """A run that waits for its next attempt dies in it, and the one after is declined."""
    service = Service({"b": [RetryableError("busy")]})
    body = f"retry: {{max_attempts: 4, delay: 5s, jitter: none}}\nsteps: [{undoable('a')}, {tried('b', '')}]"
    async with service.kit(body) as kit:
        assert await kit.send("go", {}, ident="m-1") is not None
        kit.clock.advance(6)
        await crash(kit, service, lambda: kit.resume(RUN))
        await kit.store.seize(RUN)
        await kit.store.commit(Change(run_id=RUN, state=RunState.WAITING, suspect=True))
        service.answers["b"] = [TerminalError("there_already")]
        assert (await kit.finish(RUN)).state is RunState.COMPENSATED
    assert service.done == ["a", "b", "b", "b", "undo_b", "undo_a"]
