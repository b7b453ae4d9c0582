"""LANGUAGE §4, Order of things: `catch`."""

from __future__ import annotations

import pytest
from acting import Service, run

from runner.errors import RetryableError, TerminalError
from runner.records import RunState, StepState

PAY = """
    steps:
      - id: pay
        use: act
        with: {what: pay}
        retry: {delay: 0s}
        catch:
          - {on: [no_money, http.404], do: [{use: act, with: {what: exact}}]}
          - {on: [http.*], do: [{use: act, with: {what: family}}]}
          - {on: [http.503], do: [{use: act, with: {what: too_late}}]}
          %s
      - {use: act, with: {what: after, pay: "{{ steps.pay }}"}}
"""
ALL = "- {do: [{use: act, with: {what: all, error: '{{ error }}'}}]}"


@pytest.mark.parametrize(
    ("type", "handler"),
    [("no_money", "exact"), ("http.404", "exact"), ("http.503", "family"), ("else", "all"), ("httpx.1", "all")],
)
async def test_the_first_entry_that_matches_is_taken(type: str, handler: str) -> None:
    service = Service()
    service.fails("pay", type)
    done = await run(PAY % ALL, None, service)
    assert done.state is RunState.COMPLETED
    assert service.done == ["pay", handler, "after"]


async def test_an_error_that_no_entry_takes_fails_the_run() -> None:
    service = Service()
    service.fails("pay", "else")
    done = await run(PAY % "", None, service)
    assert (done.state, service.done) == (RunState.FAILED, ["pay"])


async def test_the_caught_step_has_failed_with_its_error_and_the_output_of_the_catch() -> None:
    service = Service({"pay": [TerminalError("no_money", "you are poor", balance=3)], "exact": [{"x": 1}]})
    done = await run(PAY % "", None, service)
    assert service.calls[-1].fields["pay"] == {
        "state": "failed", "output": {"x": 1}, "attempts": 1,
        "error": {"type": "no_money", "message": "you are poor", "retryable": False, "details": {"balance": 3},
                  "step": "pay"},
    }  # fmt: skip
    assert done.steps["pay"].state is StepState.FAILED
    assert done.stored.error is None


async def test_catch_sees_error() -> None:
    service = Service({"pay": [TerminalError("else", "why", n=1)]})
    await run(PAY % ALL, None, service)
    assert service.calls[1].fields["error"] == {
        "type": "else", "message": "why", "retryable": False, "details": {"n": 1}, "step": "pay",
    }  # fmt: skip


async def test_catch_comes_after_the_retries() -> None:
    service = Service({"pay": [RetryableError("http.503")]})
    await run(PAY % "", None, service)
    assert service.done == ["pay", "pay", "pay", "family", "after"]
    assert service.calls[-1].fields["pay"]["attempts"] == 3


async def test_an_empty_do_lets_the_error_pass() -> None:
    service = Service()
    service.fails("a")
    done = await run(
        """
        steps:
          - {id: a, use: act, with: {what: a}, catch: [{do: []}]}
          - {use: act, with: {what: b, output: "{{ steps.a.output }}"}}
        """,
        None, service,
    )  # fmt: skip
    assert done.state is RunState.COMPLETED
    assert service.calls[-1].fields == {"output": None}


async def test_a_catch_on_a_block_takes_what_its_steps_did_not() -> None:
    service = Service()
    service.fails("a", "one")
    service.fails("b", "two")
    done = await run(
        """
        steps:
          - id: block
            switch:
              - when: "true"
                do:
                  - {use: act, with: {what: a}, catch: [{on: [one], do: [{use: act, with: {what: inner}}]}]}
                  - {id: b, use: act, with: {what: b}, catch: [{on: [one], do: []}]}
                  - {use: act, with: {what: never}}
            catch: [{do: [{use: act, with: {what: outer, step: "{{ error.step }}"}}]}]
          - {use: act, with: {what: after, b: "{{ steps.b.state }}", block: "{{ steps.block.state }}"}}
        """,
        None, service,
    )  # fmt: skip
    assert done.state is RunState.COMPLETED
    assert service.done == ["a", "inner", "b", "outer", "after"]
    assert service.calls[3].fields == {"step": "b"}
    assert service.calls[4].fields == {"b": "failed", "block": "failed"}


async def test_the_output_of_a_caught_block_is_the_catchs() -> None:
    done = await run(
        """
        steps:
          - id: block
            switch: [{when: "true", do: [{set: {a: 1}}, {fail: {type: no, message: no}}]}]
            catch: [{do: [{set: {b: 2}}, {set: {c: 3}, when: "false"}]}]
        """
    )
    assert done.steps["block"].output == {"b": 2}


async def test_an_error_in_a_catch_fails_the_run_with_that_error() -> None:
    service = Service()
    service.fails("a", "first")
    service.fails("b", "second")
    done = await run(
        "steps: [{id: a, use: act, with: {what: a}, catch: [{do: [{use: act, with: {what: b}}]}, {do: []}]}]",
        None, service,
    )  # fmt: skip
    assert done.state is RunState.FAILED
    assert done.stored.error is not None
    assert done.stored.error.type == "second"
    assert done.steps["a"].error is not None
    assert done.steps["a"].error.type == "first"


async def test_an_error_in_a_catch_goes_to_the_catch_of_the_block_around() -> None:
    service = Service()
    service.fails("a", "first")
    done = await run(
        """
        steps:
          - switch:
              - when: "true"
                do: [{use: act, with: {what: a}, catch: [{do: [{fail: {type: second, message: m}}]}]}]
            catch: [{on: [second], do: [{use: act, with: {what: saved}}]}]
        """,
        None, service,
    )  # fmt: skip
    assert (done.state, service.done) == (RunState.COMPLETED, ["a", "saved"])


async def test_stop_in_a_catch_completes_the_run() -> None:
    service = Service()
    service.fails("a")
    done = await run(
        "steps: [{use: act, with: {what: a}, catch: [{do: [{stop: true}]}]}, {use: act, with: {what: never}}]",
        None, service,
    )  # fmt: skip
    assert (done.state, service.done) == (RunState.COMPLETED, ["a"])


async def test_a_caught_step_is_not_undone_but_those_before_it_are() -> None:
    service = Service()
    service.fails("b")
    done = await run(
        """
        steps:
          - {use: act, with: {what: a}, compensate: {use: act, with: {what: undo_a}}}
          - {use: act, with: {what: b}, compensate: {use: act, with: {what: undo_b}}, catch: [{do: []}]}
          - {fail: {type: no, message: no}}
        """,
        None, service,
    )  # fmt: skip
    assert done.state is RunState.COMPENSATED
    assert service.done == ["a", "b", "undo_a"]


async def test_catching_undoes_nothing_by_itself() -> None:
    service = Service()
    service.fails("b")
    await run(
        """
        steps:
          - switch:
              - when: "true"
                do:
                  - {use: act, with: {what: a}, compensate: {use: act, with: {what: undo_a}}}
                  - {use: act, with: {what: b}}
            catch: [{do: []}]
        """,
        None, service,
    )  # fmt: skip
    assert service.done == ["a", "b"]


async def test_completed_steps_of_a_catch_are_undone_when_the_run_fails_later() -> None:
    service = Service()
    service.fails("a")
    done = await run(
        """
        steps:
          - use: act
            with: {what: a}
            catch: [{do: [{use: act, with: {what: other}, compensate: {use: act, with: {what: undo_other}}}]}]
          - {use: act, with: {what: b}, compensate: {use: act, with: {what: undo_b}}}
          - {fail: {type: no, message: no}}
        """,
        None, service,
    )  # fmt: skip
    assert done.state is RunState.COMPENSATED
    assert service.done == ["a", "other", "b", "undo_b", "undo_other"]


async def test_an_error_of_when_and_of_with_is_caught_too() -> None:
    done = await run(
        """
        steps:
          - {id: a, set: {x: 1}, when: event.nothing, catch: [{on: [expression], do: []}]}
          - {id: b, use: act, with: {what: "{{ event.nothing }}"}, catch: [{on: [expression], do: []}]}
          - {id: c, emit: counted, with: {n: "{{ event.n | default('x') }}"}, catch: [{on: [invalid_input], do: []}]}
        """
    )
    assert done.state is RunState.COMPLETED
    assert {step.state for step in done.steps.values()} == {StepState.FAILED}


async def test_a_retry_in_a_catch_waits_and_goes_on_in_it() -> None:
    service = Service({"a": [TerminalError("broken")], "b": [RetryableError("busy"), None]})
    done = await run(
        "steps: [{use: act, with: {what: a}, catch: [{do: [{use: act, with: {what: b, e: '{{ error.type }}'}}]}]}]",
        None, service,
    )  # fmt: skip
    assert (done.state, service.done) == (RunState.COMPLETED, ["a", "b", "b"])
    assert [call.fields for call in service.calls[1:]] == [{"e": "broken"}] * 2
