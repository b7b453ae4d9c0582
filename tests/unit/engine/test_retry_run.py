"""LANGUAGE §9, `runs retry`: a run that ended badly goes on where it failed, or begins anew."""

from __future__ import annotations

from typing import Any

import pytest
from acting import Crash, CrashingStore, Service, undoable

from runner.engine.control import Hand
from runner.engine.run import run_id
from runner.errors import RefusedError, RetryableError, TerminalError
from runner.records import Change, Intervention, RunState
from runner.testing import FakeClock, KitRun
from runner.times import parse_time

RUN = run_id("f.h", "/amqp", "m-1")
ONCE = [TerminalError("no_luck"), {"ok": True}]
"""The first call fails for good, all others succeed."""


def act(name: str, more: str = "") -> str:
    return f"{{id: {name}, use: act, with: {{what: {name}}}{', ' if more else ''}{more}}}"


def interventions(run: KitRun) -> list[Intervention]:
    return [record for record in run.stored.records if isinstance(record, Intervention)]


def keys(service: Service, what: str) -> set[str]:
    return {call.key for call in service.calls if call.what == what}


async def retried(body: str, service: Service, from_step: str | None = None, payload: Any = None) -> KitRun:
    """The run that fails, and then is retried."""
    async with service.kit(body) as kit:
        begun = await kit.send("go", payload if payload is not None else {}, ident="m-1")
        assert begun is not None
        assert (await kit.finish(RUN)).state is not RunState.COMPLETED
        return await kit.retry(RUN, from_step)


# --- at the failed step


async def test_a_failed_run_goes_on_at_its_failed_step_and_what_was_done_stays_so() -> None:
    service = Service({"b": ONCE})
    done = await retried(f"steps: [{act('a')}, {act('b')}, {act('c')}]", service)
    assert done.state is RunState.COMPLETED
    assert done.stored.error is None
    assert service.done == ["a", "b", "b", "c"]
    assert keys(service, "b") == {f"{RUN}/b"}, "the other side knows the attempt that it has seen before"
    [note] = interventions(done)
    assert (note.action, note.by, note.was, note.from_step) == ("retry", "tester@here", RunState.FAILED, None)


async def test_it_gets_all_its_attempts_again() -> None:
    service = Service({"a": [*[RetryableError("busy")] * 4, None]})
    done = await retried(f"retry: {{max_attempts: 3}}\nsteps: [{act('a')}]", service)
    assert done.state is RunState.COMPLETED
    assert [call.attempt for call in service.calls] == [1, 2, 3, 1, 2]
    assert done.steps["a"].attempts == 2


INNER = f"{act('in')}, {act('b')}, {act('out')}"
NESTED = f"switch: [{{when: 'true', do: [{act('b')}]}}]"


@pytest.mark.parametrize(
    "failing",
    [
        pytest.param(f"switch: [{{when: 'true', do: [{INNER}]}}]", id="in a branch"),
        pytest.param(f"switch: [{{when: 'false', do: []}}], default: [{INNER}]", id="in the default"),
        pytest.param(f"switch: [{{when: 'true', do: [{act('in')}, {{{NESTED}}}, {act('out')}]}}]", id="deeper"),
        pytest.param(f"use: act, with: {{what: bad}}, catch: [{{do: [{INNER}]}}]", id="in a catch"),
        pytest.param(
            f"switch: [{{when: 'true', do: [{act('bad')}]}}], catch: [{{do: [{INNER}]}}]", id="in a branch's catch"
        ),
    ],
)
async def test_a_step_that_failed_inside_a_block_goes_on_there(failing: str) -> None:
    service = Service({"b": ONCE, "bad": [TerminalError("bad")]})
    done = await retried(f"steps: [{act('a')}, {{id: block, {failing}}}, {act('z')}]", service)
    assert done.state is RunState.COMPLETED
    assert [what for what in service.done if what != "bad"] == ["a", "in", "b", "b", "out", "z"]
    assert service.done.count("bad") <= 1, "what a catch has dealt with is not tried again"


async def test_a_failed_catch_still_sees_the_error_that_it_handles() -> None:
    service = Service({"bad": [TerminalError("card_declined")], "b": ONCE})
    body = f"""
        steps:
          - id: block
            use: act
            with: {{what: bad}}
            catch:
              - do:
                - {act("b")}
                - {{use: act, with: {{what: tell, e: "{{{{ error.type }}}}", s: "{{{{ steps.block.state }}}}"}}}}
        """
    done = await retried(body, service)
    assert done.state is RunState.COMPLETED
    assert service.calls[-1].fields == {"e": "card_declined", "s": "failed"}
    assert done.steps["block"].error is not None


async def test_a_step_whose_when_could_not_be_asked_is_asked_again() -> None:
    service = Service({"a": [{"n": None}]})
    body = f"""
        steps:
          - {act("a")}
          - {act("b", "when: steps.a.output.n.deep > 1")}
        """
    async with service.kit(body) as kit:
        failed = await kit.send("go", {}, ident="m-1")
        assert failed is not None
        assert failed.stored.error is not None
        assert failed.stored.error.type == "expression"
        service.answers["a"] = [{"n": {"deep": 2}}]
        assert (await kit.retry(RUN)).state is RunState.FAILED, "what a gave is stored"
        assert (await kit.retry(RUN, "a")).state is RunState.COMPLETED
    assert service.done == ["a", "a", "b"]


async def test_vars_and_steps_are_as_they_were_and_go_on_from_there() -> None:
    service = Service({"b": ONCE})
    body = f"""
        steps:
          - set: {{x: 1, y: 1}}
          - {act("a")}
          - {act("b")}
          - {{use: act, with: {{what: look, x: "{{{{ vars.x }}}}", y: "{{{{ vars.y }}}}", b: "{{{{ steps.b.state }}}}",
              a: "{{{{ steps.a.output.what }}}}", error: "{{{{ steps.b.error }}}}"}}}}
        """
    await retried(body, service)
    assert service.calls[-1].fields == {"x": 1, "y": 1, "a": "a", "b": "completed", "error": None}


async def test_on_failure_is_done_again_if_it_fails_again_and_its_earlier_results_are_forgotten() -> None:
    service = Service({"b": [TerminalError("first"), TerminalError("second")]})
    body = f"""
        steps: [{act("b")}]
        on_failure:
          - {{id: report, use: act, with: {{what: report, why: "{{{{ error.type }}}}"}}}}
          - {{emit: told, with: {{}}}}
        """
    done = await retried(body, service)
    assert done.state is RunState.FAILED
    assert [call.fields.get("why") for call in service.calls if call.what == "report"] == ["first", "second"]
    assert [name for name, _ in done.emitted] == ["told", "told"]


async def test_a_compensation_that_was_not_wanted_at_the_first_failure_may_be_at_the_second() -> None:
    service = Service({"b": [TerminalError("harmless"), TerminalError("harmful")]})
    body = f"""
        steps: [{undoable("a", undo='when: error.type == "harmful"')}, {act("b")}]
        """
    done = await retried(body, service)
    assert service.done == ["a", "b", "b", "undo_a"]
    assert done.state is RunState.COMPENSATED


async def test_retrying_twice_in_a_row_goes_on_from_the_second_failure() -> None:
    service = Service({"a": ONCE, "b": ONCE})
    async with service.kit(f"steps: [{act('a')}, {act('b')}, {act('c')}]") as kit:
        await kit.send("go", {}, ident="m-1")
        assert (await kit.retry(RUN)).state is RunState.FAILED
        done = await kit.retry(RUN)
    assert (done.state, service.done) == (RunState.COMPLETED, ["a", "a", "b", "b", "c"])
    assert len(interventions(done)) == 2


async def test_a_run_that_failed_by_its_own_timeout_has_all_its_time_again() -> None:
    clock = FakeClock()
    service = Service({"a": [RetryableError("busy", retry_after_s=60), None]})
    service.answers["b"] = [lambda: clock.advance(6), None]
    body = f"timeout: 10s\nsteps: [{act('a')}, {act('b')}, {act('c')}]"
    async with service.kit(body, clock=clock) as kit:
        await kit.send("go", {}, ident="m-1")
        late = await kit.finish(RUN)
        assert late.stored.error is not None
        assert (late.state, late.stored.error.type) == (RunState.FAILED, "timeout")
        clock.advance(3600)
        assert (await kit.retry(RUN)).state is RunState.COMPLETED
    assert service.done == ["a", "a", "b", "c"]


async def test_a_second_timeout_is_counted_from_the_retry() -> None:
    clock = FakeClock()
    service = Service({"a": [TerminalError("no_luck"), None], "b": [RetryableError("busy", retry_after_s=60)]})
    async with service.kit(f"timeout: 10s\nsteps: [{act('a')}, {act('b')}]", clock=clock) as kit:
        await kit.send("go", {}, ident="m-1")
        clock.advance(3600)
        again = clock.now()
        late = await kit.retry(RUN)
    assert late.stored.finished_at is not None
    assert (parse_time(late.stored.finished_at) - again).total_seconds() == 10


async def test_the_crashes_of_before_are_forgiven() -> None:
    service = Service({"b": [RetryableError("busy"), TerminalError("no_luck"), {}]})
    async with service.kit(f"steps: [{act('a')}, {act('b')}]") as kit:
        parked = await kit.send("go", {}, ident="m-1")
        assert parked is not None
        await kit.store.seize(RUN)
        for _ in range(2):
            await kit.store.commit(Change(run_id=RUN, state=RunState.RUNNING, suspect=True))
        assert (await kit.finish(RUN)).stored.crashes == 2
        done = await kit.retry(RUN)
    assert (done.state, done.stored.crashes) == (RunState.COMPLETED, 0)


# --- from a step


STEPS = f"""
    steps:
      - set: {{x: 0}}
      - {act("a")}
      - set: {{x: "{{{{ vars.x + 1 }}}}"}}
      - id: block
        switch: [{{when: "true", do: [{act("in")}, {act("deep")}]}}]
      - {act("b")}
      - {act("c")}
      - {{id: z, use: act, with: {{what: z, x: "{{{{ vars.x }}}}", old: "{{{{ steps.in.output.what }}}}"}}}}
    """


@pytest.mark.parametrize(
    ("step", "again"),
    [
        ("c", ["c", "z"]),
        ("b", ["b", "c", "z"]),
        ("deep", ["deep", "b", "c", "z"]),
        ("in", ["in", "deep", "b", "c", "z"]),
        ("block", ["in", "deep", "b", "c", "z"]),
        ("a", ["a", "in", "deep", "b", "c", "z"]),
    ],
)
async def test_from_a_step_that_step_and_all_after_it_run_again_and_nothing_before_it(
    step: str, again: list[str]
) -> None:
    service = Service({"c": ONCE})
    done = await retried(STEPS, service, step)
    assert done.state is RunState.COMPLETED
    assert service.done == ["a", "in", "deep", "b", "c", *again]
    assert service.calls[-1].fields == {"x": 1, "old": "in"}, "what is done again counts once"
    assert interventions(done)[0].from_step == step


async def test_from_a_step_inside_a_catch_the_catch_goes_on_there() -> None:
    service = Service({"bad": [TerminalError("bad")], "b": ONCE})
    body = f"""
        steps:
          - id: block
            use: act
            with: {{what: bad}}
            catch: [{{do: [{act("in")}, {{id: told, use: act, with: {{what: told, e: "{{{{ error.type }}}}"}}}}]}}]
          - {act("b")}
        """
    done = await retried(body, service, "told")
    assert done.state is RunState.COMPLETED
    assert service.done == ["bad", "in", "told", "b", "told", "b"]


async def test_from_a_step_other_data_may_lead_into_another_branch() -> None:
    service = Service({"a": [{"n": 1}, {"n": 2}], "b": ONCE})
    body = f"""
        steps:
          - {act("a")}
          - switch: [{{when: steps.a.output.n == 1, do: [{act("one")}]}}, {{when: "true", do: [{act("two")}]}}]
          - {{id: b, use: act, with: {{what: b, one: "{{{{ steps.one.state }}}}", two: "{{{{ steps.two.state }}}}"}}}}
        """
    done = await retried(body, service, "a")
    assert done.state is RunState.COMPLETED
    assert service.done == ["a", "one", "b", "a", "two", "b"]
    assert service.calls[-1].fields == {"one": "skipped", "two": "completed"}


async def test_from_a_step_that_never_ran_is_refused_and_says_which_did() -> None:
    service = Service({"b": ONCE})
    async with service.kit(f"steps: [{act('a')}, {act('b')}, {act('c')}]\non_failure: [{act('r')}]") as kit:
        await kit.send("go", {}, ident="m-1")
        for step in ("c", "r", "nothing"):
            with pytest.raises(RefusedError, match=f'never came to a step "{step}"') as caught:
                await kit.retry(RUN, step)
            assert caught.value.hint == "it ran: a, b"
        assert (await kit.retry(RUN, "b")).state is RunState.COMPLETED


# --- a compensation that failed


async def test_only_what_could_not_be_undone_is_repeated_under_the_same_keys() -> None:
    service = Service({"undo_b": [TerminalError("locked"), None], "d": [TerminalError("no_luck")]})
    body = f"""
        steps: [{undoable("a")}, {undoable("b")}, {undoable("c")}, {act("d")}]
        on_failure: [{act("report")}]
        """
    done = await retried(body, service)
    assert service.done == ["a", "b", "c", "d", "undo_c", "undo_b", "undo_a", "report", "undo_b"]
    assert done.state is RunState.COMPENSATED
    assert keys(service, "undo_b") == {f"{RUN}/b.compensate.1"}
    assert done.stored.error is not None
    assert done.stored.error.type == "no_luck", "why it failed, not how it was undone"


async def test_a_failed_on_failure_is_repeated_at_its_failed_step() -> None:
    service = Service({"b": [TerminalError("no_luck")], "r2": ONCE})
    body = f"""
        steps: [{undoable("a")}, {act("b")}]
        on_failure: [{act("r1")}, {{switch: [{{when: "true", do: [{act("r2")}]}}]}}, {act("r3")}]
        """
    done = await retried(body, service)
    assert service.done == ["a", "b", "undo_a", "r1", "r2", "r2", "r3"]
    assert done.state is RunState.COMPENSATED


async def test_a_compensation_that_fails_again_leaves_the_run_as_it_was_for_another_try() -> None:
    service = Service({"b": [TerminalError("no_luck")], "undo_a": [TerminalError("1"), TerminalError("2"), None]})
    async with service.kit(f"steps: [{undoable('a')}, {act('b')}]") as kit:
        await kit.send("go", {}, ident="m-1")
        assert (await kit.retry(RUN)).state is RunState.COMPENSATION_FAILED
        assert (await kit.retry(RUN)).state is RunState.COMPENSATED
    assert service.done == ["a", "b", "undo_a", "undo_a", "undo_a"]


async def test_a_cancelled_run_whose_undoing_failed_is_cancelled_once_that_is_repeated() -> None:
    service = Service({"b": [RetryableError("busy")], "undo_a": ONCE})
    async with service.kit(f"steps: [{undoable('a')}, {act('b')}]") as kit:
        await kit.send("go", {}, ident="m-1")
        assert (await kit.cancel(RUN)).state is RunState.COMPENSATION_FAILED
        assert (await kit.retry(RUN)).state is RunState.CANCELLED


# --- anew


@pytest.mark.parametrize("end", [RunState.COMPENSATED, RunState.CANCELLED])
async def test_what_was_undone_begins_anew_under_another_id_and_says_so(end: RunState) -> None:
    bad = RetryableError("busy") if end is RunState.CANCELLED else TerminalError("no_luck")
    service = Service({"b": [bad, None]})
    async with service.kit(f"steps: [{undoable('a')}, {act('b')}]") as kit:
        await kit.send("go", {"n": 1}, ident="m-1")
        old = await kit.cancel(RUN) if end is RunState.CANCELLED else await kit.look(RUN)
        assert old.state is end
        kit.clock.advance(60)
        new = await kit.retry(RUN)
        old_again = await kit.look(RUN)
    assert new.state is RunState.COMPLETED
    assert new.stored.started.run_id != RUN
    assert new.stored.started.data == old.stored.started.data
    assert new.stored.started.trigger == old.stored.started.trigger
    assert new.stored.started.started_at > old.stored.started.started_at
    assert service.done == ["a", "b", "undo_a", "a", "b"]
    assert len(keys(service, "a")) == 2, "what was undone is done anew, not again"
    assert old_again.state is end
    assert interventions(old_again)[-1].anew == new.stored.started.run_id
    kept = ("state", "finished_at", "error", "started")
    assert [getattr(old_again.stored, name) for name in kept] == [getattr(old.stored, name) for name in kept]


async def test_a_killed_run_begins_anew_as_well() -> None:
    service = Service({"b": [RetryableError("busy"), None]})
    async with service.kit(f"steps: [{act('a')}, {act('b')}]") as kit:
        await kit.send("go", {}, ident="m-1")
        assert (await kit.kill(RUN)).state is RunState.CANCELLED
        new = await kit.retry(RUN)
    assert (new.state, service.done) == (RunState.COMPLETED, ["a", "b", "a", "b"])


async def test_what_began_anew_and_was_undone_again_is_retried_by_its_new_id() -> None:
    service = Service({"b": [TerminalError("1"), TerminalError("2"), {}]})
    async with service.kit(f"steps: [{undoable('a')}, {act('b')}]") as kit:
        await kit.send("go", {}, ident="m-1")
        second = await kit.retry(RUN)
        assert second.state is RunState.COMPENSATED
        with pytest.raises(RefusedError, match=f"began anew as {second.stored.started.run_id}"):
            await kit.retry(RUN)
        third = await kit.retry(second.stored.started.run_id)
        assert third.state is RunState.COMPLETED


async def test_a_retry_that_died_after_it_had_begun_the_new_run_begins_no_second_one() -> None:
    """The new run stands, but the note of it was never written."""
    service = Service({"b": [TerminalError("1"), None]})
    async with service.kit(f"steps: [{undoable('a')}, {act('b')}]") as kit:
        await kit.send("go", {}, ident="m-1")
        dying: Any = CrashingStore(kit.store, {(1, "after")})
        hand = Hand(dying, project="test", by="ada@here", now=kit.clock.now())
        stored = (await kit.look(RUN)).stored
        with pytest.raises(Crash):
            await hand.retry(stored, kit.plan)
        new = await kit.retry(RUN)
        assert [note.anew for note in interventions(await kit.look(RUN))] == [new.stored.started.run_id]
        assert len(await kit.store.runs(limit=10)) == 2
    assert service.done == ["a", "b", "undo_a", "a", "b"]


# --- refused


async def test_what_is_completed_or_goes_on_by_itself_is_not_retried() -> None:
    service = Service({"b": [RetryableError("busy"), None]})
    async with service.kit(f"steps: [{act('b')}]") as kit:
        await kit.send("go", {}, ident="m-1")
        with pytest.raises(RefusedError, match="is waiting: it goes on by itself"):
            await kit.retry(RUN)
        await kit.finish(RUN)
        with pytest.raises(RefusedError, match="is completed: there is nothing to retry"):
            await kit.retry(RUN)


@pytest.mark.parametrize("end", [RunState.COMPENSATED, RunState.COMPENSATION_FAILED])
async def test_only_a_failed_run_goes_on_from_a_step(end: RunState) -> None:
    service = Service({"b": [TerminalError("no")]})
    if end is RunState.COMPENSATION_FAILED:
        service.fails("undo_a")
    async with service.kit(f"steps: [{undoable('a')}, {act('b')}]") as kit:
        await kit.send("go", {}, ident="m-1")
        with pytest.raises(RefusedError, match=f"is {end}: only a failed run goes on from a step"):
            await kit.retry(RUN, "a")
        assert interventions(await kit.look(RUN)) == []


async def test_what_has_begun_anew_and_got_through_does_not_begin_anew_once_more() -> None:
    service = Service({"b": [TerminalError("1"), {}]})
    async with service.kit(f"steps: [{undoable('a')}, {act('b')}]") as kit:
        await kit.send("go", {}, ident="m-1")
        assert (await kit.retry(RUN)).state is RunState.COMPLETED
        with pytest.raises(RefusedError):
            await kit.retry(RUN)


@pytest.mark.parametrize("where", ["among the steps", "in a branch", "in on_failure"])
async def test_a_stop_that_was_reached_still_stops_after_a_retry(where: str) -> None:
    """What fails is the undo, after the stop, or the block that holds it; what stands behind the stop stays undone."""
    service = Service({"undo_a": ONCE})
    broken = (
        "{id: a, use: act, with: {what: a}, compensate: {use: act, with: {what: undo_a}, retry: {max_attempts: 1}}}"
    )
    stop = "{stop: true}"
    body = {
        "among the steps": f"steps: [{act('a')}, {stop}, {act('z')}]",
        "in a branch": f"steps: [{act('a')}, {{switch: [{{when: 'true', do: [{stop}]}}]}}, {act('z')}]",
        "in on_failure": f"steps: [{broken}, {act('bad')}]\non_failure: [{stop}, {act('z')}]",
    }[where]
    service.answers["bad"] = [TerminalError("bad")]
    async with service.kit(body) as kit:
        done = await kit.send("go", {}, ident="m-1")
        assert done is not None
        done = await kit.finish(RUN)
        if where == "in on_failure":
            assert done.state is RunState.COMPENSATION_FAILED
            done = await kit.retry(RUN)
            assert done.state is RunState.COMPENSATED
        else:
            assert done.state is RunState.COMPLETED
    assert "z" not in service.done
