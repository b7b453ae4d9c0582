"""LANGUAGE §4, Errors: what a step's failure is called, and what must not kill a run or its process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest
from acting import Service, flow, run

from runner.errors import RetryableError, TerminalError
from runner.handler import Context, handler
from runner.records import AttemptFailed, Error, RunState
from runner.testing import FlowKit, KitRun

ONCE = "retry: {max_attempts: 1}"


async def failing(raises: Any, *, threaded: bool = False) -> Error:
    """The error of a run whose only step raises this, once."""

    def body() -> None:
        raise raises() if callable(raises) else raises

    @handler("bad")
    async def bad(ctx: Context) -> None:
        body()

    @handler("bad")
    def bad_thread(ctx: Context) -> None:
        body()

    return error_of(await run_with(f"steps: [{{id: a, use: bad, {ONCE}}}]", bad_thread if threaded else bad))


async def run_with(body: str, *handlers: Callable[..., Any], payload: Any = None) -> KitRun:
    async with FlowKit(flow(body), handlers, env={"REGION": "n"}, secrets={"TOKEN": "s3cret"}) as kit:
        begun = await kit.send("go", {} if payload is None else payload)
        assert begun is not None
        return await kit.finish(begun.stored.started.run_id)


def error_of(run: KitRun) -> Error:
    assert run.state is RunState.FAILED
    assert run.stored.error is not None
    return run.stored.error


both = pytest.mark.parametrize("threaded", [False, True], ids=["async", "thread"])


@both
async def test_a_terminal_error_is_recorded_as_raised(threaded: bool) -> None:
    error = await failing(TerminalError("card.declined", "no money", limit=[1, {"a": None}]), threaded=threaded)
    assert error == Error(
        type="card.declined", message="no money", retryable=False, details={"limit": [1, {"a": None}]}, step="a"
    )


@both
async def test_a_retryable_error_is_recorded_as_raised(threaded: bool) -> None:
    error = await failing(RetryableError("busy", "later", 3.0, queue=4), threaded=threaded)
    assert error == Error(type="busy", message="later", retryable=True, details={"queue": 4}, step="a")


class Panic(BaseException):
    """As some extension modules raise it (PyO3's PanicException is no Exception)."""


@both
@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ValueError("odd"), "ValueError: odd"),
        (KeyError("k"), "KeyError: 'k'"),
        (SystemExit(1), "SystemExit: 1"),
        (Panic("at 1"), "Panic: at 1"),
        (ExceptionGroup("two", [ValueError(1), ValueError(2)]), "ExceptionGroup: two"),
        (StopIteration("x"), "StopIteration"),
        (RecursionError(), "RecursionError"),
        (OSError(2, "gone"), "FileNotFoundError: [Errno 2] gone"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_any_other_exception_is_internal_and_retryable(
    raised: BaseException, message: str, threaded: bool
) -> None:
    error = await failing(raised, threaded=threaded)
    assert (error.type, error.retryable, error.step) == ("internal", True, "a")
    assert message in error.message


@both
async def test_a_handler_that_cancels_itself_has_failed(threaded: bool) -> None:
    error = await failing(asyncio.CancelledError, threaded=threaded)
    assert (error.type, error.retryable) == ("internal", True)


async def test_a_handler_that_cancels_a_task_of_its_own_has_failed() -> None:
    @handler("bad")
    async def bad(ctx: Context) -> None:
        inner = asyncio.ensure_future(asyncio.Event().wait())
        inner.cancel()
        await inner

    assert error_of(await run_with(f"steps: [{{use: bad, {ONCE}}}]", bad)).type == "internal"


async def test_cancelling_the_run_from_outside_is_no_failure_of_the_step() -> None:
    entered = asyncio.Event()

    @handler("hang")
    async def hang(ctx: Context) -> None:
        entered.set()
        await asyncio.Event().wait()

    async with FlowKit(flow("steps: [{use: hang}]"), [hang]) as kit:
        task = asyncio.create_task(kit.send("go", {}, ident="m"))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert list(await kit.store.runs(limit=9)) == []


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "raised",
    [
        Mute(),
        ValueError("half a character: \ud800"),
        TerminalError("t", "half: \ud800", path="\udcff"),
        TerminalError("t", "m", thing=object(), good=[1], nan={1, 2}, deep={"a": object()}),
        TerminalError(404, b"bytes", when=os),  # type: ignore[arg-type]
        RetryableError("t", None, "soon"),  # type: ignore[arg-type]
    ],
    ids=["mute", "surrogate", "surrogate details", "details", "wrong types", "wrong retry_after"],
)
async def test_an_error_that_json_cannot_carry_is_recorded_as_far_as_it_can_be(raised: Exception) -> None:
    error = await failing(raised)
    assert isinstance(error.type, str)
    if "good" in error.details:
        assert error.details["good"] == [1]


async def test_a_failure_of_one_attempt_is_recorded_with_it() -> None:
    service = Service({"a": [ValueError("odd"), RetryableError("busy"), 1]})
    done = await run("steps: [{use: act, with: {what: a}}]", None, service)
    failed = [r for r in done.stored.records if isinstance(r, AttemptFailed)]
    assert [(r.attempt, r.error.type, r.error.retryable) for r in failed] == [(1, "internal", True), (2, "busy", True)]


# --- input and output


@handler("typed")
async def typed(ctx: Context, *, sku: str, quantity: int = 1) -> Any:
    return [sku, quantity]


@pytest.mark.parametrize(
    "inputs",
    [{"sku": 5}, {"sku": "a", "quantity": "x"}, {"sku": "a", "quantity": None}, {}, {"sku": "a", "colour": "red"}],
    ids=str,
)
async def test_parameters_that_do_not_fit_are_invalid_input_and_not_retried(inputs: dict[str, Any]) -> None:
    done = await run_with('steps: [{id: a, use: typed, with: "{{ event }}"}]', typed, payload=inputs)
    error = error_of(done)
    assert (error.type, error.retryable, error.step) == ("invalid_input", False, "a")
    assert done.steps["a"].attempts == 1


async def test_parameters_have_their_defaults() -> None:
    done = await run_with('steps: [{id: a, use: typed, with: {sku: "{{ event.sku }}"}}]', typed, payload={"sku": "a"})
    assert done.steps["a"].output == ["a", 1]


@pytest.mark.parametrize(
    "result",
    [object(), {None: 1}, "\ud800", [object()], {"a": 1j}],
    ids=["object", "null key", "surrogate", "list", "complex"],
)
async def test_a_result_that_json_cannot_carry_is_invalid_output(result: Any) -> None:
    service = Service({"a": [lambda: result]})
    done = await run("steps: [{use: act, with: {what: a}}]", None, service)
    error = error_of(done)
    assert (error.type, error.retryable) == ("invalid_output", False)
    assert service.done == ["a"]


async def test_a_result_is_seen_as_json_at_once_and_not_only_after_a_crash() -> None:
    service = Service({"a": [lambda: {"t": (1, 2), 3: "x"}]})
    await run("steps: [{id: a, use: act, with: {what: a}}, {use: act, with: {what: b, a: '{{ steps.a.output }}'}}]",
              None, service)  # fmt: skip
    assert service.calls[1].fields == {"a": {"t": [1, 2], "3": "x"}}


# --- expressions


@pytest.mark.parametrize(
    "step",
    [
        "{id: a, use: act, with: {what: '{{ event.nothing }}'}}",
        "{id: a, use: act, when: event.nothing, with: {what: a}}",
        "{id: a, set: {x: '{{ 1 / 0 }}'}}",
        "{id: a, set: {x: '{{ 1e308 * 10 }}'}}",
        "{id: a, emit: told, with: {x: '{{ event.list + 1 }}'}}",
        "{id: a, fail: {type: t, message: '{{ event.nothing }}'}}",
        "{id: a, switch: [{when: 'event.list > 1', do: []}]}",
        "{id: a, emit: numbered, with: {}}",
    ],
)
async def test_an_expression_that_fails_fails_its_step_for_good(step: str) -> None:
    service = Service()
    error = error_of(await run(f"steps: [{step}]", {"list": []}, service))
    assert (error.type, error.retryable, error.step, service.done) == ("expression", False, "a", [])


async def test_an_emit_whose_payload_does_not_fit_is_invalid_input_and_publishes_nothing() -> None:
    done = await run("steps: [{id: a, emit: counted, with: {n: '{{ event.n }}'}}]", {"n": "five"})
    error = error_of(done)
    assert (error.type, error.retryable, error.step) == ("invalid_input", False, "a")
    assert "counted" in error.message
    assert done.emitted == ()


# --- secrets


@handler("leak")
async def leak(ctx: Context, *, token: str, how: str) -> None:
    match how:
        case "terminal":
            raise TerminalError("denied", f"{token} is wrong", token=token, deep=[{"x": f"<{token}>"}])
        case "retryable":
            raise RetryableError("busy", f"{token} is slow", url=f"http://h/?t={token}")
    raise ValueError(f"bad {token}")


@pytest.mark.parametrize("how", ["terminal", "retryable", "other"])
@pytest.mark.parametrize("place", ["step", "caught", "undo"])
async def test_secrets_are_masked_in_every_recorded_error(how: str, place: str) -> None:
    use = f"use: leak, with: {{token: '{{{{ secrets.TOKEN }}}}', how: {how}}}"
    steps = {
        "step": f"[{{{use}}}]",
        "caught": f"[{{{use}, catch: [{{do: []}}]}}]",
        "undo": f"[{{emit: told, compensate: {{{use}}}}}, {{fail: {{type: no, message: no}}}}]",
    }
    done = await run_with(f"steps: {steps[place]}", leak)
    assert "s3cret" not in repr(done.stored)
    assert "***" in repr(done.stored)


async def test_secrets_are_masked_in_flowruns_own_errors() -> None:
    step = "{use: typed, with: {sku: '{{ event.sku | default([secrets.TOKEN]) }}'}}"
    done = await run_with(f"steps: [{step}]", typed)
    assert done.state is RunState.FAILED
    assert "s3cret" not in repr(done.stored)


async def test_a_secret_that_a_plugin_returns_is_masked_in_what_is_kept_and_read() -> None:
    @handler("echo")
    async def echo(ctx: Context, *, text: str) -> dict[str, str]:
        return {"said": f"it is {text}"}

    one = "{id: one, use: echo, with: {text: '{{ secrets.TOKEN }}'}}"
    done = await run_with(f"steps: [{one}, {{emit: told, with: '{{{{ steps.one.output }}}}'}}]", echo)
    assert done.steps["one"].output == {"said": "it is ***"}
    assert done.emitted == (("told", {"said": "it is ***"}),)


async def test_a_result_that_does_not_fit_its_annotation_is_invalid_output() -> None:
    @handler("count")
    async def count(ctx: Context) -> int:
        return "many"  # type: ignore[return-value]

    done = await run_with("steps: [{use: count}]", count)
    assert done.stored.error is not None
    assert done.stored.error.type == "invalid_output"
    assert done.stored.error.retryable is False


async def test_an_event_larger_than_a_body_may_be_fails_its_step_and_not_its_receivers() -> None:
    @handler("make")
    async def make(ctx: Context) -> str:
        return "x" * 1_100_000

    done = await run_with("steps: [{id: big, use: make}, {emit: told, with: {text: '{{ steps.big.output }}'}}]", make)
    assert done.stored.error is not None
    assert done.stored.error.type == "invalid_input"
    assert done.emitted == ()
