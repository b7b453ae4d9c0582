"""LANGUAGE §4, `command`: a run asks, waits in the store, and goes on with the answer, or without one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from acting import Crash, CrashingStore, Service, flow, since, undoable

from runner.engine.run import run_id
from runner.errors import RetryableError
from runner.ports import Store
from runner.records import CommandSent, RunState, StepFinished, StepState, UndoFinished
from runner.testing import Error, FakeClock, FlowKit, KitRun
from runner.times import parse_time

RUN = run_id("f.h", "/amqp", "m-1")
COMMANDS = """\
commands:
  pay:
    external: true
    timeout: 10s
    schema: {type: object, required: [amount], properties: {amount: {type: integer}}}
    reply: {type: object, required: [id], properties: {id: {type: string}}}
  refund: {external: true, timeout: 5s}
"""
DECLINED = Error(type="card_declined", message="no credit", retryable=False, details={"code": 51}, step="theirs")
BUSY = Error(type="busy", message="later", retryable=True)
PAID = {"id": "c-1"}
TWICE = "retry: {max_attempts: 2, delay: 4s, jitter: none}"


def asking(body: str, service: Service | None = None, **options: Any) -> FlowKit:
    """The kit for a handler of this body, where another program does `pay` and `refund`."""
    options.setdefault("env", {"REGION": "north"})
    options.setdefault("secrets", {"TOKEN": "s3cret"})
    return FlowKit(flow(body) + COMMANDS, (service or Service()).handlers(), **options)


def pay(more: str = "") -> str:
    """The step that charges what the event says."""
    return f'{{id: pay, command: pay, with: {{amount: "{{{{ event.amount }}}}"}}{", " if more else ""}{more}}}'


UNDO = 'compensate: {command: refund, with: {of: "{{ event.amount }}"}, if: attempted}'


async def begin(kit: FlowKit, amount: Any = 42) -> KitRun:
    begun = await kit.send("go", {"amount": amount}, ident="m-1")
    assert begun is not None
    return begun


async def answer_next(kit: FlowKit, result: Any = None, error: Error | None = None) -> KitRun:
    """Answer what went out last, and let the run go on from there."""
    assert await kit.answer(kit.sent[-1].id, result, error=error)
    return await kit.resume(RUN)


async def let_pass(kit: FlowKit) -> KitRun:
    """Let time go on to the moment that the run waits for, and no answer come."""
    due = (await kit.look(RUN)).stored.due_at
    assert due is not None
    await kit.clock.sleep_until(parse_time(due))
    return await kit.resume(RUN)


def ids(kit: FlowKit) -> list[str]:
    return [sent.id for sent in kit.sent]


def names(kit: FlowKit) -> list[str]:
    return [sent.command for sent in kit.sent]


# --- an answer


async def test_the_reply_is_the_output_and_the_run_waits_for_it_without_holding_anything() -> None:
    service = Service()
    async with asking(
        f'steps: [{pay()}, {{use: act, with: {{what: "{{{{ steps.pay.output.id }}}}"}}}}]', service
    ) as kit:
        waiting = await begin(kit)
        assert (waiting.state, since(kit.clock, waiting)) == (RunState.WAITING, 10.0)
        [sent] = kit.sent
        assert (sent.command, sent.payload) == ("pay", {"amount": 42})
        assert sent.deadline == kit.clock.now() + timedelta(seconds=10), "the command's own timeout"

        kit.clock.advance(3)
        await kit.answer(sent.id, PAID)
        done = await kit.finish(RUN)

        assert (done.state, done.steps["pay"].output, done.steps["pay"].attempts) == (RunState.COMPLETED, PAID, 1)
        assert (done.steps["pay"].action, done.steps["pay"].target) == ("command", "pay")
        assert kit.clock.now() == sent.deadline - timedelta(seconds=7), "nobody waited any longer than for the reply"
    assert service.done == ["c-1"]


async def test_a_steps_own_timeout_is_the_deadline_that_the_command_bears() -> None:
    async with asking(f"steps: [{pay('timeout: 3s')}]") as kit:
        waiting = await begin(kit)
        assert since(kit.clock, waiting) == 3.0
        [row] = await kit.store.outbox(10)
        expiry = row.outgoing.properties.headers["ce-expirytime"]
        assert parse_time(expiry) == kit.sent[0].deadline == kit.clock.now() + timedelta(seconds=3)


async def test_on_the_wire_it_says_whose_it_is_and_where_the_answer_goes() -> None:
    async with asking(f"steps: [{pay()}]") as kit:
        begun = await begin(kit)
        [row] = await kit.store.outbox(10)
        message, sent = row.outgoing, kit.sent[0]
        properties, headers = message.properties, message.properties.headers
        assert (message.exchange, message.routing_key, message.mandatory) == ("test.commands", "pay", True)
        assert properties.reply_to == "test.replies"
        assert properties.message_id == properties.correlation_id == headers["ce-id"] == sent.id
        assert headers["ce-correlationid"] == begun.stored.started.trigger.correlation_id
        assert headers["ce-causationid"] == "m-1"
        assert headers["ce-source"] == "/flowrun/test/f"
        assert (headers["ce-type"], properties.type) == ("pay", "pay")


async def test_the_first_answer_counts() -> None:
    async with asking(f"steps: [{pay()}]") as kit:
        await begin(kit)
        await kit.answer(kit.sent[0].id, PAID)
        await kit.answer(kit.sent[0].id, error=DECLINED)
        assert (await kit.finish(RUN)).steps["pay"].output == PAID


async def test_a_wrong_waking_changes_nothing_and_the_wait_goes_on() -> None:
    async with asking(f"steps: [{pay()}]") as kit:
        await begin(kit)
        kit.clock.advance(2)
        waiting = await kit.resume(RUN)
        assert (waiting.state, since(kit.clock, waiting), len(kit.sent)) == (RunState.WAITING, 8.0, 1)


async def test_an_answer_to_a_command_that_nobody_sent_is_nobodys() -> None:
    async with asking(f"steps: [{pay()}]") as kit:
        await begin(kit)
        assert not await kit.answer("of-another", PAID)


async def test_each_step_and_each_run_sends_a_command_of_its_own() -> None:
    async with asking(f"steps: [{pay()}, {{command: pay, with: {{amount: 1}}}}]") as kit:
        await begin(kit)
        await answer_next(kit, PAID)
        await kit.send("go", {"amount": 42}, ident="m-2")
        assert len(set(ids(kit))) == len(kit.sent) == 3


# --- what fails


async def test_a_failed_reply_brings_the_callees_error_to_the_catch() -> None:
    body = f"""
        steps:
          - {pay('catch: [{on: [other], do: []}, {on: [card_declined], do: [{set: {e: "{{ error }}"}}]}]')}
        """
    async with asking(body) as kit:
        await begin(kit)
        done = await answer_next(kit, error=DECLINED)
    caught = {"type": "card_declined", "message": "no credit", "retryable": False, "details": {"code": 51}}
    assert done.state is RunState.COMPLETED
    assert done.steps["pay"].output == {"e": {**caught, "step": "pay"}}
    assert done.steps["pay"].state is StepState.FAILED


async def test_a_failed_reply_that_nobody_catches_fails_the_run_which_undoes_what_it_did() -> None:
    service = Service()
    async with asking(f"steps: [{undoable('a')}, {pay('compensate: {command: refund}')}]", service) as kit:
        await begin(kit)
        done = await answer_next(kit, error=DECLINED)
        assert names(kit) == ["pay"], "what was refused is not undone"
    assert (done.state, service.done) == (RunState.COMPENSATED, ["a", "undo_a"])
    assert done.stored.error == Error(
        type="card_declined", message="no credit", retryable=False, details={"code": 51}, step="pay"
    )


async def test_a_command_is_tried_once_whatever_the_handlers_retry() -> None:
    async with asking(f"retry: {{max_attempts: 5}}\nsteps: [{pay()}]") as kit:
        await begin(kit)
        done = await answer_next(kit, error=BUSY)
        assert (done.state, len(kit.sent)) == (RunState.FAILED, 1)


async def test_unless_the_step_says_so_and_then_the_rest_of_the_policy_is_the_handlers() -> None:
    async with asking(
        f"retry: {{max_attempts: 5, delay: 7s, jitter: none}}\nsteps: [{pay('retry: {max_attempts: 2}')}]"
    ) as kit:
        await begin(kit)
        waiting = await answer_next(kit, error=BUSY)
        assert since(kit.clock, waiting) == 7.0


async def test_after_a_failed_reply_a_new_command_goes_out() -> None:
    async with asking(f"steps: [{pay(TWICE)}]") as kit:
        await begin(kit)
        waiting = await answer_next(kit, error=BUSY)
        assert (waiting.state, since(kit.clock, waiting), len(kit.sent)) == (RunState.WAITING, 4.0, 1)
        await let_pass(kit)
        assert len(set(ids(kit))) == 2
        done = await answer_next(kit, PAID)
    assert (done.state, done.steps["pay"].attempts) == (RunState.COMPLETED, 2)


async def test_what_is_not_retryable_is_not_sent_again() -> None:
    async with asking(f"steps: [{pay(TWICE)}]") as kit:
        await begin(kit)
        assert (await answer_next(kit, error=DECLINED)).state is RunState.FAILED
        assert len(kit.sent) == 1


async def test_a_request_that_does_not_fit_is_not_sent_and_needs_no_undoing() -> None:
    async with asking(f"steps: [{pay(f'{TWICE}, {UNDO}')}]") as kit:
        done = await begin(kit, amount="much")
        assert kit.sent == ()
    assert done.state is RunState.FAILED
    assert done.stored.error is not None
    assert (done.stored.error.type, done.stored.error.retryable) == ("invalid_input", False)
    assert "pay does not fit its schema" in done.stored.error.message


@pytest.mark.parametrize("reply", [None, {}, {"id": 7}, "c-1"])
async def test_a_reply_that_does_not_fit_is_invalid_output_and_nobody_knows_what_was_done(reply: Any) -> None:
    async with asking(f"steps: [{pay(f'{TWICE}, {UNDO}')}]") as kit:
        await begin(kit)
        undoing = await answer_next(kit, reply)
        assert undoing.steps["pay"].error is not None
        assert (undoing.steps["pay"].error.type, undoing.steps["pay"].error.retryable) == ("invalid_output", False)
        assert names(kit) == ["pay", "refund"]


# --- no answer


async def test_without_an_answer_the_error_is_a_timeout_that_may_be_retried() -> None:
    async with asking(f"steps: [{pay()}]") as kit:
        await begin(kit)
        done = await kit.finish(RUN)
        assert kit.clock.now() == kit.sent[0].deadline
    assert done.state is RunState.FAILED
    assert done.stored.error == Error(type="timeout", message="no reply to pay within 10 s", retryable=True, step="pay")


@pytest.mark.parametrize(
    ("error", "undone"),
    [("timeout", True), ("internal", True), ("crashed", True), ("cancelled", True), ("card_declined", False)],
)
@pytest.mark.parametrize("caught", [False, True])
async def test_what_was_cut_short_at_its_receiver_may_have_been_done_and_is_undone(
    error: str, undone: bool, caught: bool
) -> None:
    end = "{fail: {type: no_luck, message: sorry}}"
    catch = ", catch: [{do: []}]" if caught else ""
    async with asking(f"steps: [{pay(f'retry: {{max_attempts: 1}}, {UNDO}{catch}')}, {end}]") as kit:
        await begin(kit)
        failed = Error(type=error, message="no result within 2 s", retryable=False)
        await answer_next(kit, error=failed)
        assert [sent.command for sent in kit.sent[1:]] == (["refund"] if undone else [])


async def test_what_was_cut_short_at_its_receiver_is_asked_for_anew_when_it_is_tried_again() -> None:
    async with asking(f"steps: [{pay(f'{TWICE}, {UNDO}')}]") as kit:
        await begin(kit)
        await answer_next(kit, error=Error(type="internal", message="a bug", retryable=True))
        kit.clock.advance(5)
        await kit.resume(RUN)
        first, second = kit.sent
        assert first.id != second.id, "under its old id it would be given the old answer"
        assert (await answer_next(kit, PAID)).state is RunState.COMPLETED


@pytest.mark.parametrize(("condition", "undone"), [("", []), (", if: attempted", ["refund"])])
async def test_what_timed_out_may_have_been_done_and_is_undone_where_attempted_suffices(
    condition: str, undone: list[str]
) -> None:
    undo = f'compensate: {{command: refund, with: {{of: "{{{{ event.amount }}}}"}}{condition}}}'
    async with asking(f"steps: [{pay(undo)}]") as kit:
        await begin(kit)
        await let_pass(kit)
        assert names(kit) == ["pay", *undone]
        if undone:
            assert (await answer_next(kit, {})).state is RunState.COMPENSATED


async def test_after_a_timeout_the_same_command_goes_out_again_with_a_new_deadline() -> None:
    body = f"""
        steps:
          - set: {{at: "{{{{ now() }}}}"}}
          - id: pay
            command: pay
            with: {{amount: 1, at: "{{{{ now() }}}}", id: "{{{{ uuid() }}}}", began: "{{{{ run.started_at }}}}"}}
            when: now() == run.started_at
            {TWICE}
        """
    async with asking(body) as kit:
        await begin(kit)
        waiting = await let_pass(kit)
        assert (waiting.state, since(kit.clock, waiting)) == (RunState.WAITING, 4.0)
        await let_pass(kit)
        first, again = kit.sent
        assert again.id == first.id
        assert again.deadline == first.deadline + timedelta(seconds=14)
        assert again.payload == first.payload, "evaluated once: every attempt gets the same values"
        sent = [r for r in (await kit.look(RUN)).stored.records if isinstance(r, CommandSent)]
        assert [(r.attempt, r.is_new) for r in sent] == [(1, True), (2, False)]
        done = await answer_next(kit, PAID)
    assert (done.state, done.steps["pay"].attempts) == (RunState.COMPLETED, 2)


async def test_a_command_that_went_out_again_and_fails_is_followed_by_a_new_one() -> None:
    async with asking(f"steps: [{pay('retry: {max_attempts: 4, delay: 1s}')}]") as kit:
        await begin(kit)
        await let_pass(kit)
        await let_pass(kit)
        await answer_next(kit, error=BUSY)
        await let_pass(kit)
        first, again, new = ids(kit)
        assert first == again != new
        await let_pass(kit)
        await let_pass(kit)
        assert ids(kit)[-1] == new, "and that one, after its timeout, under its own id"


async def test_an_answer_that_comes_while_the_step_waits_for_its_retry_is_used() -> None:
    async with asking(f"steps: [{pay(TWICE)}]") as kit:
        await begin(kit)
        await let_pass(kit)
        timed_out = kit.clock.now()
        kit.clock.advance(1)
        await kit.answer(kit.sent[0].id, PAID)
        done = await kit.finish(RUN)
        assert (done.state, len(kit.sent)) == (RunState.COMPLETED, 1)
        assert kit.clock.now() == timed_out + timedelta(seconds=1), "at once"
    assert done.steps["pay"].output == PAID


async def test_so_is_one_that_comes_after_it_went_out_again() -> None:
    async with asking(f"steps: [{pay(TWICE)}]") as kit:
        await begin(kit)
        await let_pass(kit)
        await let_pass(kit)
        done = await answer_next(kit, PAID)
    assert done.steps["pay"].output == PAID


async def test_a_reply_that_comes_after_the_step_is_over_is_kept_and_changes_nothing() -> None:
    service = Service({"b": [RetryableError("busy"), {}]})
    body = f"""
        steps:
          - {pay("catch: [{on: [timeout], do: []}]")}
          - {{use: act, with: {{what: b}}, {TWICE}}}
        """
    async with asking(body, service) as kit:
        await begin(kit)
        waiting = await let_pass(kit)
        assert (service.done, since(kit.clock, waiting)) == (["b"], 4.0)
        retry_at = kit.clock.now() + timedelta(seconds=4)

        assert await kit.answer(kit.sent[0].id, PAID), "it is kept"
        still = await kit.resume(RUN)

        assert (service.done, still.state) == (["b"], RunState.WAITING), "no attempt before its time"
        done = await kit.finish(RUN)
        assert kit.clock.now() == retry_at
        assert [a.result for a in done.stored.answers] == [PAID]
    assert (done.state, done.steps["pay"].output) == (RunState.COMPLETED, None)


async def test_a_second_answer_does_not_hasten_the_retry_after_the_first() -> None:
    async with asking(f"steps: [{pay(TWICE)}]") as kit:
        await begin(kit)
        waiting = await answer_next(kit, error=BUSY)
        due_at = waiting.stored.due_at
        await kit.answer(kit.sent[0].id, error=BUSY)
        still = await kit.resume(RUN)
        assert (len(kit.sent), still.stored.due_at) == (1, due_at)


async def test_a_late_reply_changes_nothing_in_a_run_that_has_ended() -> None:
    async with asking(f"steps: [{pay()}]") as kit:
        await begin(kit)
        ended = await kit.finish(RUN)
        assert await kit.answer(kit.sent[0].id, PAID)
        after = await kit.look(RUN)
    assert (after.state, after.stored.records) == (RunState.FAILED, ended.stored.records)
    assert after.stored.due_at is None


# --- the caller's own end


async def test_the_runs_timeout_bounds_the_wait_and_what_was_sent_is_undone() -> None:
    async with asking(f"timeout: 4s\nsteps: [{pay(f'{TWICE}, {UNDO}')}]") as kit:
        waiting = await begin(kit)
        assert since(kit.clock, waiting) == 4.0
        assert kit.sent[0].deadline == kit.clock.now() + timedelta(seconds=4)
        undoing = await let_pass(kit)
        assert (undoing.state, names(kit)) == (RunState.COMPENSATING, ["pay", "refund"])
        done = await answer_next(kit, {})
    assert done.stored.error is not None
    assert (done.state, done.stored.error.type) == (RunState.COMPENSATED, "timeout")


async def test_a_run_whose_time_is_over_before_the_retry_sends_nothing_more() -> None:
    async with asking(f"timeout: 12s\nsteps: [{pay(TWICE)}]") as kit:
        await begin(kit)
        waiting = await let_pass(kit)
        assert since(kit.clock, waiting) == 2.0
        done = await let_pass(kit)
        assert (done.state, len(kit.sent)) == (RunState.FAILED, 1)


async def test_a_run_that_is_cancelled_while_it_waits_undoes_what_may_have_been_done() -> None:
    service = Service()
    async with asking(f"steps: [{undoable('a')}, {pay(UNDO)}]", service) as kit:
        await begin(kit)
        cancelled = await kit.cancel(RUN, "no more")
        assert names(kit) == ["pay", *["refund"] * 10], "nobody answers: ten attempts"
        assert len(set(ids(kit)[1:])) == 1
    assert (cancelled.state, service.done) == (RunState.COMPENSATION_FAILED, ["a", "undo_a"])
    assert cancelled.steps["pay"].state is StepState.CANCELLED


async def test_a_run_that_is_cancelled_before_its_retry_sends_nothing_more() -> None:
    async with asking(f"steps: [{pay(TWICE)}]") as kit:
        await begin(kit)
        await let_pass(kit)
        cancelled = await kit.cancel(RUN)
        assert (cancelled.state, len(kit.sent)) == (RunState.CANCELLED, 1)


async def test_an_answer_that_is_there_when_the_run_is_cancelled_counts_and_is_undone() -> None:
    service = Service()
    body = f"steps: [{pay('compensate: {use: act, with: {what: back}}')}, {undoable('b')}]"
    async with asking(body, service) as kit:
        await begin(kit)
        await kit.answer(kit.sent[0].id, PAID)
        cancelled = await kit.cancel(RUN)
    assert cancelled.steps["pay"].state is StepState.COMPLETED
    assert (cancelled.state, service.done) == (RunState.CANCELLED, ["back"])


async def test_a_person_who_retries_after_a_failed_reply_sends_a_new_command() -> None:
    async with asking(f"steps: [{pay()}, {{fail: {{type: never, message: x}}, when: false}}]") as kit:
        await begin(kit)
        assert (await answer_next(kit, error=DECLINED)).state is RunState.FAILED
        await kit.retry(RUN)
        assert len(set(ids(kit))) == 2


async def test_a_person_who_retries_after_a_timeout_sends_the_same_command_again() -> None:
    """It may be under way still: under another id it would be done twice."""
    async with asking(f"steps: [{pay()}]") as kit:
        await begin(kit)
        assert (await kit.finish(RUN)).state is RunState.FAILED
        await kit.retry(RUN)
        first, again = kit.sent
        assert first.id == again.id
        assert first.deadline < again.deadline


async def test_and_a_reply_that_came_meanwhile_is_used() -> None:
    async with asking(f"steps: [{pay()}]") as kit:
        await begin(kit)
        await kit.finish(RUN)
        await kit.answer(kit.sent[0].id, PAID)
        done = await kit.retry(RUN)
        assert (done.state, len(kit.sent)) == (RunState.COMPLETED, 1)


# --- where a command may stand


async def test_a_command_undoes_within_ten_attempts() -> None:
    body = 'steps: [{use: act, with: {what: a}, compensate: {command: refund, with: {of: "{{ output.what }}"}}},'
    async with asking(body + " {fail: {type: no_luck, message: x}}]") as kit:
        assert (await begin(kit)).state is RunState.COMPENSATING
        for _ in range(9):
            await answer_next(kit, error=BUSY)
            await let_pass(kit)
        assert len(set(ids(kit))) == 10
        assert kit.sent[0].payload == {"of": "a"}
        done = await answer_next(kit, {"back": True})
    assert done.state is RunState.COMPENSATED
    assert [(undo.output, undo.attempts, undo.target) for undo in done.undone] == [({"back": True}, 10, "refund")]


async def test_an_undo_that_is_refused_for_good_is_for_a_person() -> None:
    service = Service()
    body = f"steps: [{undoable('a')}, {undoable('b').replace('use: act, with: {what: undo_b}', 'command: refund')},"
    async with asking(body + " {fail: {type: no_luck, message: x}}]", service) as kit:
        await begin(kit)
        done = await answer_next(kit, error=DECLINED)
        assert (done.state, service.done) == (RunState.COMPENSATION_FAILED, ["a", "b", "undo_a"])
        assert done.stored.error is not None
        assert done.stored.error.type == "no_luck"


async def test_a_list_of_undos_may_mix_commands_with_others_and_ask_when() -> None:
    service = Service()
    undo = """compensate:
          - {command: refund, with: {n: 1}}
          - {use: act, with: {what: mail}}
          - {command: refund, with: {n: 2}, when: "error.type == 'other'"}
          - {command: refund, with: {n: 3}}"""
    body = f"""
    steps:
      - id: a
        use: act
        with: {{what: a}}
        {undo}
      - {{fail: {{type: no_luck, message: x}}}}
    """
    async with asking(body, service) as kit:
        await begin(kit)
        await answer_next(kit, {})
        done = await answer_next(kit, {})
        assert [sent.payload for sent in kit.sent] == [{"n": 1}, {"n": 3}]
    assert (done.state, service.done) == (RunState.COMPENSATED, ["a", "mail"])


PLACES: Mapping[str, tuple[str, RunState]] = {
    "switch": (f"steps: [{{id: s, switch: [{{when: 'true', do: [{pay()}]}}]}}, {{set: {{x: 1}}}}]", RunState.COMPLETED),
    "default": (f"steps: [{{id: s, switch: [{{when: 'false', do: []}}], default: [{pay()}]}}]", RunState.COMPLETED),
    "catch": (
        f"steps: [{{id: s, fail: {{type: oops, message: x}}, catch: [{{do: [{pay()}]}}]}}]",
        RunState.COMPLETED,
    ),
    "on_failure": (f"steps: [{{fail: {{type: oops, message: x}}}}]\non_failure: [{pay()}]", RunState.FAILED),
}


@pytest.mark.parametrize("place", PLACES)
async def test_a_command_stands_wherever_a_step_may(place: str) -> None:
    body, state = PLACES[place]
    async with asking(body) as kit:
        assert not (await begin(kit)).state.is_final
        assert names(kit) == ["pay"]
        done = await answer_next(kit, PAID)
    assert (done.state, done.steps["pay"].output) == (state, PAID)
    if "s" in done.steps:
        assert done.steps["s"].output == PAID


async def test_a_command_in_on_failure_that_fails_is_for_a_person() -> None:
    async with asking(PLACES["on_failure"][0]) as kit:
        await begin(kit)
        assert (await kit.finish(RUN)).state is RunState.COMPENSATION_FAILED


async def test_a_command_may_be_the_pivot() -> None:
    async with asking(f"steps: [{undoable('a')}, {pay('pivot: true')}, {{fail: {{type: x, message: y}}}}]") as kit:
        await begin(kit)
        done = await answer_next(kit, PAID)
    assert (done.state, done.undone) == (RunState.FAILED, [])


async def test_a_command_that_is_not_wanted_is_not_sent() -> None:
    async with asking(f"steps: [{pay('when: event.amount > 100')}]") as kit:
        done = await begin(kit)
        assert (done.state, done.steps["pay"].state, kit.sent) == (RunState.COMPLETED, StepState.SKIPPED, ())


async def test_a_whole_request_may_be_one_template() -> None:
    async with asking('steps: [{command: pay, with: "{{ event }}"}]') as kit:
        await begin(kit)
        assert kit.sent[0].payload == {"amount": 42}


# --- crashes

SAGA = f"""
    steps:
      - {undoable("a")}
      - id: pay
        command: pay
        with: {{amount: 1, id: "{{{{ uuid() }}}}", at: "{{{{ now() }}}}"}}
        compensate: {{command: refund, with: {{of: "{{{{ output.id }}}}", id: "{{{{ uuid() }}}}"}}}}
      - {{use: act, with: {{what: "{{{{ steps.pay.output.id }}}}"}}}}
"""
FAILING = (
    SAGA + "      - {fail: {type: no_luck, message: x}}\n    on_failure: [{command: refund, with: {last: true}}]\n"
)


async def story(body: str, *at: tuple[int, str]) -> tuple[KitRun, list[tuple[str, Any, str]], list[str], int]:
    """Run it, dying at these commits, the other program answering each command as soon as it sees it."""
    clock, service = FakeClock(), Service()
    stores: list[CrashingStore] = []

    def crashing(store: Store) -> Store:
        stores.append(CrashingStore(store, set(at)))
        return stores[0]  # type: ignore[return-value]

    async with asking(body, service, clock=clock, store=crashing) as kit:
        for _ in range(30):
            try:
                done = await next_of(kit)
            except Crash:
                clock.advance(1.3)
                continue
            if done is not None and done.state.is_final:
                sent = [(s.command, {k: v for k, v in s.payload.items() if k != "at"}, s.id) for s in kit.sent]
                assert len(await kit.store.outbox(100)) == len(sent), "what is told to have gone out has"
                return done, sent, [f"{call.what} {call.key}" for call in service.calls], stores[0].count
    raise AssertionError("it never ends")


async def next_of(kit: FlowKit) -> KitRun | None:
    for sent in kit.sent:
        await kit.answer(sent.id, PAID)
    if await kit.store.known(RUN):
        return await kit.resume(RUN)
    return await kit.send("go", {"amount": 42}, ident="m-1")


@pytest.mark.parametrize("body", [SAGA, FAILING], ids=["forward", "compensation"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_crash_at_any_commit_sends_each_command_once_and_ends_alike(body: str, moment: str) -> None:
    calm, sent, calls, commits = await story(body)
    assert [name for name, _, _ in sent] == (["pay"] if body is SAGA else ["pay", "refund", "refund"])
    for n in range(1, commits + 1):
        crashed, sent_then, calls_then, _ = await story(body, (n, moment))
        assert crashed.state is calm.state
        assert sent_then == sent, "the same commands with the same payloads, under the same ids, each once"
        assert list(dict.fromkeys(calls_then)) == calls
        for kind in (StepFinished, UndoFinished):
            assert states(crashed, kind) == states(calm, kind)


def states(run: KitRun, kind: type[StepFinished] | type[UndoFinished]) -> list[tuple[str, str, int]]:
    return [(r.step_id, str(r.state), r.attempts) for r in run.stored.records if isinstance(r, kind)]
