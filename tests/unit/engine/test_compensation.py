"""LANGUAGE §4, Compensation: a run that fails undoes what it did, in reverse."""

from __future__ import annotations

from acting import Service, run

from runner.errors import RetryableError
from runner.records import RunState, StepState

UNDOABLE = "{use: act, with: {what: %s}, compensate: {use: act, with: {what: undo_%s}}}"
FAIL = "{fail: {type: no_luck, message: sorry}}"


def undoable(name: str) -> str:
    return UNDOABLE % (name, name)


async def test_completed_steps_are_undone_in_reverse_order() -> None:
    service = Service()
    done = await run(f"steps: [{undoable('a')}, {undoable('b')}, {undoable('c')}, {FAIL}]", None, service)
    assert done.state is RunState.COMPENSATED
    assert service.done == ["a", "b", "c", "undo_c", "undo_b", "undo_a"]
    assert [undo.state for undo in done.undone] == [StepState.COMPLETED] * 3
    assert done.stored.error is not None
    assert done.stored.error.type == "no_luck"


async def test_reverse_is_of_completion_over_the_whole_run_blocks_included() -> None:
    service = Service()
    await run(
        f"""
        steps:
          - {undoable('a')}
          - switch: [{{when: "true", do: [{undoable('b')}, {undoable('c')}]}}]
          - {undoable('d')}
          - {FAIL}
        """,
        None, service,
    )  # fmt: skip
    assert service.done[4:] == ["undo_d", "undo_c", "undo_b", "undo_a"]


async def test_steps_that_failed_were_skipped_or_have_no_undo_are_left() -> None:
    service = Service()
    service.fails("d")
    await run(
        f"""
        steps:
          - {{use: act, when: "false", with: {{what: a}}, compensate: {{use: act, with: {{what: undo_a}}}}}}
          - {{use: act, with: {{what: b}}, irreversible: true}}
          - {{use: act, with: {{what: c}}}}
          - {undoable('d')}
        """,
        None, service,
    )  # fmt: skip
    assert service.done == ["b", "c", "d"]


async def test_nothing_to_undo_is_failed() -> None:
    service = Service()
    done = await run(f"steps: [{{use: act, with: {{what: a}}}}, {FAIL}]", None, service)
    assert done.state is RunState.FAILED


async def test_a_steps_list_of_compensations_is_done_in_its_own_order() -> None:
    service = Service()
    await run(
        f"""
        steps:
          - {undoable('a')}
          - use: act
            with: {{what: b}}
            compensate: [{{use: act, with: {{what: b1}}}}, {{use: act, with: {{what: b2}}}}]
          - {FAIL}
        """,
        None, service,
    )  # fmt: skip
    assert service.done == ["a", "b", "b1", "b2", "undo_a"]


async def test_each_compensation_has_its_own_when() -> None:
    service = Service()
    done = await run(
        f"""
        steps:
          - use: act
            with: {{what: a, paid: true}}
            compensate:
              - {{use: act, when: output.paid, with: {{what: refund}}}}
              - {{use: act, when: not output.paid, with: {{what: void}}}}
              - {{use: act, when: error.type == "other", with: {{what: other}}}}
          - {FAIL}
        """,
        None, service,
    )  # fmt: skip
    assert service.done == ["a", "refund"]
    assert [undo.state for undo in done.undone] == [StepState.COMPLETED, StepState.SKIPPED, StepState.SKIPPED]
    assert done.state is RunState.COMPENSATED


async def test_if_no_when_of_a_compensation_holds_nothing_was_to_be_undone() -> None:
    body = f"""
        steps:
          - {{use: act, with: {{what: a}}, compensate: {{use: act, when: "false", with: {{what: undo_a}}}}}}
          - {FAIL}
        """
    assert (await run(body)).state is RunState.FAILED


async def test_a_compensation_sees_output_and_error_and_what_steps_see() -> None:
    service = Service({"a": [{"id": 7}]})
    await run(
        """
        steps:
          - set: {x: 1}
          - id: a
            use: act
            with: {what: a}
            compensate:
              use: act
              with: {what: undo, id: "{{ output.id }}", of: "{{ event.n }}", why: "{{ error.type }}",
                      x: "{{ vars.x }}", at: "{{ error.step }}", s: "{{ steps.a.state }}"}
          - id: f
            fail: {type: no_luck, message: m}
        """,
        {"n": 3}, service,
    )  # fmt: skip
    assert service.calls[-1].fields == {"id": 7, "of": 3, "why": "no_luck", "x": 1, "at": "f", "s": "completed"}


async def test_a_compensation_has_ten_attempts_by_default_whatever_the_handlers_retry_is() -> None:
    service = Service({"undo_a": [RetryableError("busy")]})
    done = await run(f"{{retry: {{max_attempts: 2}}, steps: [{undoable('a')}, {FAIL}]}}", None, service)
    assert service.done == ["a"] + ["undo_a"] * 10
    assert done.state is RunState.COMPENSATION_FAILED
    assert (done.undone[0].state, done.undone[0].attempts) == (StepState.FAILED, 10)


async def test_a_compensations_own_retry_overrides_its_default() -> None:
    service = Service({"undo": [RetryableError("busy")]})
    body = f"""
        steps:
          - use: act
            with: {{what: a}}
            compensate: {{use: act, with: {{what: undo}}, retry: {{max_attempts: 2, delay: 5s}}}}
          - {FAIL}
        """
    await run(body, None, service)
    assert service.done == ["a", "undo", "undo"]


async def test_every_attempt_of_a_compensation_bears_one_key_and_the_same_values() -> None:
    service = Service({"undo": [RetryableError("busy"), RetryableError("busy"), None]})
    body = f"""
        steps:
          - use: act
            with: {{what: a}}
            compensate:
              use: act
              when: uuid() != ""
              with: {{what: undo, id: "{{{{ uuid() }}}}", at: "{{{{ now() }}}}"}}
          - {FAIL}
        """
    await run(body, None, service)
    tries = service.calls[1:]
    assert len(tries) == 3
    assert len({call.key for call in tries}) == 1
    assert tries[0].key != service.calls[0].key
    assert all(call.fields == tries[0].fields for call in tries)


async def test_a_retry_of_a_compensation_waits_in_state_compensating() -> None:
    service = Service({"undo_b": [RetryableError("busy"), None]})
    async with service.kit(f"steps: [{undoable('a')}, {undoable('b')}, {FAIL}]") as kit:
        parked = await kit.send("go", {})
        assert parked is not None
        assert parked.state is RunState.COMPENSATING
        assert parked.stored.due_at is not None
        assert parked.stored.error is not None
        assert parked.stored.error.type == "no_luck"
        done = await kit.finish(parked.stored.started.run_id)
    assert (done.state, service.done) == (RunState.COMPENSATED, ["a", "b", "undo_b", "undo_b", "undo_a"])


async def test_a_compensation_that_fails_for_good_does_not_keep_the_others_from_being_done() -> None:
    service = Service()
    service.fails("undo_b")
    done = await run(
        f"{{steps: [{undoable('a')}, {undoable('b')}, {undoable('c')}, {FAIL}], on_failure: [{{emit: told}}]}}",
        None, service,
    )  # fmt: skip
    assert service.done[3:] == ["undo_c", "undo_b", "undo_a"]
    assert done.state is RunState.COMPENSATION_FAILED
    assert done.emitted == (("told", {}),)
    assert done.stored.error is not None
    assert done.stored.error.type == "no_luck", "the run's error, not its compensation's"


async def test_a_compensation_whose_templates_fail_has_failed_for_good() -> None:
    service = Service()
    done = await run(
        f"""
        steps:
          - {undoable('a')}
          - {{use: act, with: {{what: b}}, compensate: {{use: act, with: {{what: "{{{{ output.nothing }}}}"}}}}}}
          - {FAIL}
        """,
        None, service,
    )  # fmt: skip
    assert service.done == ["a", "b", "undo_a"]
    assert done.state is RunState.COMPENSATION_FAILED
    assert done.undone[0].error is not None
    assert done.undone[0].error.type == "expression"


async def test_an_emit_can_undo() -> None:
    done = await run(
        f"""
        steps:
          - {{use: act, with: {{what: a}}, compensate: {{emit: counted, with: {{n: 1}}}}}}
          - {{emit: told, compensate: {{emit: counted, with: {{n: 2}}}}}}
          - {FAIL}
        """
    )
    assert done.state is RunState.COMPENSATED
    assert done.emitted == (("told", {}), ("counted", {"n": 2}), ("counted", {"n": 1}))


# --- on_failure


async def test_on_failure_comes_after_the_compensations_and_sees_the_error() -> None:
    service = Service()
    done = await run(
        f"""
        steps:
          - {undoable('a')}
          - id: f
            fail: {{type: no_luck, message: "n is {{{{ event.n }}}}"}}
          - {{id: later, use: act, with: {{what: later}}}}
        on_failure:
          - {{use: act, with: {{what: report, e: "{{{{ error }}}}", later: "{{{{ steps.later.state }}}}",
               f: "{{{{ steps.f.state }}}}"}}}}
          - {{emit: told, with: {{why: "{{{{ error.type }}}}"}}}}
        """,
        {"n": 5}, service,
    )  # fmt: skip
    assert service.done == ["a", "undo_a", "report"]
    assert service.calls[-1].fields == {
        "e": {"type": "no_luck", "message": "n is 5", "retryable": False, "details": {}, "step": "f"},
        "later": "skipped",
        "f": "failed",
    }
    assert done.emitted == (("told", {"why": "no_luck"}),)
    assert done.state is RunState.COMPENSATED


async def test_on_failure_alone_leaves_the_run_failed() -> None:
    service = Service()
    done = await run(f"{{steps: [{FAIL}], on_failure: [{{use: act, with: {{what: report}}}}]}}", None, service)
    assert (done.state, service.done) == (RunState.FAILED, ["report"])


async def test_on_failure_that_fails_is_compensation_failed() -> None:
    service = Service()
    service.fails("report")
    done = await run(f"{{steps: [{FAIL}], on_failure: [{{use: act, with: {{what: report}}}}]}}", None, service)
    assert done.state is RunState.COMPENSATION_FAILED
    assert done.stored.error is not None
    assert done.stored.error.type == "no_luck"


async def test_on_failure_may_catch_and_stop() -> None:
    service = Service()
    service.fails("report")
    done = await run(
        f"""
        steps: [{undoable('a')}, {FAIL}]
        on_failure:
          - {{use: act, with: {{what: report}}, catch: [{{do: [{{stop: true}}]}}]}}
          - {{use: act, with: {{what: never}}}}
        """,
        None, service,
    )  # fmt: skip
    assert (done.state, service.done) == (RunState.COMPENSATED, ["a", "undo_a", "report"])


async def test_a_retry_in_on_failure_waits_in_state_compensating() -> None:
    service = Service({"report": [RetryableError("busy"), None]})
    async with service.kit(f"{{steps: [{FAIL}], on_failure: [{{use: act, with: {{what: report}}}}]}}") as kit:
        parked = await kit.send("go", {})
        assert parked is not None
        assert parked.state is RunState.COMPENSATING
        assert (await kit.finish(parked.stored.started.run_id)).state is RunState.FAILED
    assert service.done == ["report", "report"]


async def test_a_completed_run_undoes_nothing_and_skips_on_failure() -> None:
    service = Service()
    done = await run(f"{{steps: [{undoable('a')}], on_failure: [{{emit: told}}]}}", None, service)
    assert (done.state, service.done, done.emitted) == (RunState.COMPLETED, ["a"], ())
