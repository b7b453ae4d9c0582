"""LANGUAGE §4, pivot: past the point of no return nothing is undone, and what failed waits for `runs retry`."""

from __future__ import annotations

from typing import Any

import pytest
from acting import Crash, CrashingStore, Service, run, undoable

from runner.engine.run import run_id
from runner.errors import RefusedError, RetryableError, TerminalError
from runner.ports import Store
from runner.records import RunState, StepState

RUN = run_id("f.h", "/amqp", "m-1")
USE = undoable("p", "pivot: true")
EMIT = "{id: p, emit: told, with: {}, pivot: true, compensate: {use: act, with: {what: undo_p}}}"


def shipping(pivot: str = USE) -> str:
    """a, then the pivot, then b."""
    return f"""
        steps: [{undoable("a")}, {pivot}, {undoable("b")}]
        on_failure: [{{use: act, with: {{what: report}}}}]
        """


@pytest.mark.parametrize("pivot", [USE, EMIT], ids=["use", "emit"])
async def test_past_the_pivot_a_failure_undoes_nothing_and_calls_no_on_failure(pivot: str) -> None:
    service = Service()
    service.fails("b", "no_van")
    done = await run(shipping(pivot), None, service)
    assert done.state is RunState.FAILED
    assert service.done == (["a", "p", "b"] if pivot is USE else ["a", "b"])
    assert done.undone == []
    assert done.stored.error is not None
    assert (done.stored.error.type, done.stored.error.step) == ("no_van", "b")
    assert done.steps["p"].pivot


async def test_a_pivot_that_fails_is_not_passed_and_all_is_undone_as_usual() -> None:
    service = Service()
    service.fails("p")
    done = await run(shipping(), None, service)
    assert (done.state, service.done) == (RunState.COMPENSATED, ["a", "p", "undo_a", "report"])


async def test_a_pivot_whose_error_is_caught_has_not_completed_and_is_not_passed() -> None:
    service = Service()
    service.fails("p")
    service.fails("b")
    done = await run(shipping(undoable("p", "pivot: true, catch: [{do: []}]")), None, service)
    assert (done.state, service.done) == (RunState.COMPENSATED, ["a", "p", "b", "undo_a", "report"])


async def test_a_pivot_that_is_skipped_is_not_passed() -> None:
    service = Service()
    service.fails("b")
    done = await run(shipping(undoable("p", 'pivot: true, when: "false"')), None, service)
    assert done.steps["p"].state is StepState.SKIPPED
    assert (done.state, service.done) == (RunState.COMPENSATED, ["a", "b", "undo_a", "report"])


async def test_a_run_that_gets_through_after_its_pivot_is_completed_like_any_other() -> None:
    service = Service()
    assert (await run(shipping(), None, service)).state is RunState.COMPLETED
    assert service.done == ["a", "p", "b"]


async def test_the_runs_timeout_past_the_pivot_fails_it_and_undoes_nothing() -> None:
    service = Service({"b": [RetryableError("busy", retry_after_s=60)]})
    done = await run("timeout: 10s\n" + shipping().replace("\n        ", "\n"), None, service)
    assert done.stored.error is not None
    assert (done.state, done.stored.error.type) == (RunState.FAILED, "timeout")
    assert service.done == ["a", "p", "b"]


async def test_before_the_pivot_a_run_can_be_cancelled_and_after_it_no_more() -> None:
    service = Service({"a": [RetryableError("busy"), None], "b": [RetryableError("busy"), None]})
    async with service.kit(shipping()) as kit:
        early = await kit.send("go", {})
        assert early is not None
        assert (await kit.cancel(early.stored.started.run_id)).state is RunState.CANCELLED
        service.answers["a"] = []
        late = await kit.send("go", {})
        assert late is not None
        with pytest.raises(RefusedError, match="has passed its pivot: it cannot be undone") as caught:
            await kit.cancel(late.stored.started.run_id)
        assert caught.value.hint == "flowrun runs kill ends it as it stands"
        assert (await kit.finish(late.stored.started.run_id)).state is RunState.COMPLETED


async def test_a_request_to_cancel_that_comes_while_the_pivot_completes_is_too_late() -> None:
    """The person asked before the pivot; whoever runs it heard of it after."""
    service = Service({"a": [RetryableError("busy"), None]})
    async with service.kit(shipping()) as kit:
        parked = await kit.send("go", {}, ident="m-1")
        assert parked is not None
        service.answers["p"] = [lambda: kit._hand().cancel(parked.stored)]
        assert (await kit.finish(RUN)).state is RunState.COMPLETED
        assert (await kit.look(RUN)).stored.request is None
    assert service.done == ["a", "a", "p", "b"]


async def test_retry_goes_on_at_the_failed_step_as_often_as_it_takes() -> None:
    service = Service({"b": [TerminalError("no_van"), TerminalError("no_driver"), None]})
    async with service.kit(shipping()) as kit:
        await kit.send("go", {}, ident="m-1")
        again = await kit.retry(RUN)
        assert again.stored.error is not None
        assert (again.state, again.stored.error.type) == (RunState.FAILED, "no_driver")
        assert (await kit.retry(RUN)).state is RunState.COMPLETED
    assert service.done == ["a", "p", "b", "b", "b"]
    assert {call.key for call in service.calls if call.what == "b"} == {f"{RUN}/b"}


async def test_a_retry_from_before_the_pivot_has_it_to_pass_again() -> None:
    service = Service({"b": [TerminalError("no_van")], "p": [None, TerminalError("no_more")]})
    async with service.kit(shipping()) as kit:
        await kit.send("go", {}, ident="m-1")
        again = await kit.retry(RUN, "p")
    assert (again.state, service.done) == (RunState.COMPENSATED, ["a", "p", "b", "p", "undo_a", "report"])


@pytest.mark.parametrize("crash", [(n, moment) for n in range(1, 4) for moment in ("before", "after")])
async def test_a_crash_around_the_pivot_leaves_it_passed_once_its_result_is_stored(crash: tuple[int, str]) -> None:
    service = Service()
    service.fails("b")

    def crashing(store: Store) -> Any:
        return CrashingStore(store, {crash})

    async with service.kit(shipping(), store=crashing) as kit:
        with pytest.raises(Crash):
            await kit.send("go", {}, ident="m-1")
        if not await kit.store.known(RUN):
            await kit.send("go", {}, ident="m-1")
        done = await kit.finish(RUN)
    assert (done.state, done.undone) == (RunState.FAILED, [])
    assert "report" not in service.done
    assert done.steps["p"].pivot
