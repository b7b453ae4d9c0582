"""LANGUAGE §9, `runs cancel` and `runs kill`: a person ends a run; the one undoes it, the other does not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from acting import Gate, Service, undoable
from bench import Bench

from runner.engine import worker as worker_module
from runner.engine.control import Hand
from runner.engine.run import run_id
from runner.errors import OwnershipError, RefusedError, RetryableError, TerminalError
from runner.ports import Store
from runner.records import Change, Intervention, RunState, StepState
from runner.testing import FakeClock, FlowKit, KitRun
from runner.times import rfc3339

RUN = run_id("f.h", "/amqp", "m-1")
BUSY = RetryableError("busy")
REPORT = "on_failure: [{use: act, with: {what: report, why: '{{ error.type }}', at: '{{ error.step }}'}}]"


def intervention(run: KitRun) -> Intervention | None:
    found = [record for record in run.stored.records if isinstance(record, Intervention)]
    assert len(found) < 2
    return found[0] if found else None


async def cancelled_midway(kit: FlowKit, gate: Gate, reason: str | None = None) -> KitRun:
    """The run is cancelled while it waits at the gate; the gate is opened only then."""
    going = asyncio.create_task(kit.send("go", {}, ident="m-1"))
    await gate.entered.wait()
    run = await kit.cancel(RUN, reason)
    gate.opened.set()
    await going
    return run


# --- where it may be


async def test_a_waiting_run_is_undone_at_once_and_not_when_it_was_due() -> None:
    service = Service({"b": [RetryableError("busy", retry_after_s=3600)]})
    async with service.kit(f"steps: [{undoable('a')}, {undoable('b')}]\n{REPORT}") as kit:
        await kit.send("go", {}, ident="m-1")
        before = kit.clock.now()
        done = await kit.cancel(RUN, "wrong address")
        assert kit.clock.now() == before
    assert done.state is RunState.CANCELLED
    assert service.done == ["a", "b", "undo_a", "report"]
    assert service.calls[-1].fields == {"why": "cancelled", "at": "b"}
    assert done.steps["b"].state is StepState.CANCELLED
    assert done.steps["b"].attempts == 1
    assert done.stored.error is not None
    assert (done.stored.error.type, done.stored.error.retryable) == ("cancelled", False)
    assert done.stored.error.message == "cancelled by tester@here: wrong address"
    assert intervention(done) == Intervention(
        action="cancel", by="tester@here", at=rfc3339(before), was=RunState.WAITING, reason="wrong address"
    )
    assert done.stored.request is None


async def test_a_run_in_mid_attempt_is_interrupted_there() -> None:
    gate = Gate()
    service = Service({"b": [gate]})
    async with service.kit(f"steps: [{undoable('a')}, {undoable('b')}, {undoable('c')}]\n{REPORT}") as kit:
        done = await cancelled_midway(kit, gate)
    assert (done.state, service.done) == (RunState.CANCELLED, ["a", "b", "undo_a", "report"])
    assert done.steps["b"].state is StepState.CANCELLED
    assert "c" not in done.steps
    note = intervention(done)
    assert note is not None
    assert (note.was, note.reason) == (RunState.RUNNING, None)


async def test_a_run_that_was_put_down_between_two_steps_begins_no_other() -> None:
    service = Service()
    async with service.kit(f"steps: [{undoable('a')}, {undoable('b')}, {undoable('c')}]") as kit:
        service.answers["b"] = [lambda: setattr(kit, "draining", True)]
        await kit.send("go", {}, ident="m-1")
        kit.draining = False
        done = await kit.cancel(RUN)
    assert (done.state, service.done) == (RunState.CANCELLED, ["a", "b", "undo_b", "undo_a"])


async def test_a_run_that_is_committing_what_it_did_commits_it_and_begins_no_other_step() -> None:
    service = Service()

    @dataclass
    class Asking:
        """A store in whose second commit a person asks."""

        store: Store
        commits: int = 0

        async def commit(self, change: Change) -> bool:
            committed = await self.store.commit(change)
            self.commits += 1
            if self.commits == 2:
                await kit._hand().cancel((await kit.look(RUN)).stored)
                kit._going_on[RUN][0].interrupt((await kit.store.requests())[RUN])
            return committed

    store: Any = Asking
    body = f"steps: [{undoable('a')}, {undoable('b')}, {undoable('c')}, {undoable('d')}]"
    async with service.kit(body, store=store) as kit:
        await kit.send("go", {}, ident="m-1")
        done = await kit.look(RUN)
    assert done.state is RunState.CANCELLED
    assert service.done == ["a", "b", "undo_b", "undo_a"]


BLOCKS = {
    "a branch": f"switch: [{{when: 'true', do: [{undoable('in')}, {undoable('b')}]}}]",
    "a catch": f"use: act, with: {{what: bad}}, catch: [{{do: [{undoable('in')}, {undoable('b')}]}}]",
    "a branch in a catch": "use: act, with: {what: bad}, catch: [{do: [{switch: [{when: 'true', do: ["
    f"{undoable('in')}, {undoable('b')}]}}]}}]}}]",
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("midway", [True, False], ids=["midway", "waiting"])
async def test_inside_a_block_it_is_cancelled_and_the_block_undone_with_it(block: str, midway: bool) -> None:
    gate = Gate()
    service = Service({"bad": [TerminalError("bad")], "b": [gate if midway else BUSY]})
    async with service.kit(f"steps: [{undoable('a')}, {{id: block, {block}}}, {undoable('z')}]") as kit:
        if midway:
            done = await cancelled_midway(kit, gate)
        else:
            await kit.send("go", {}, ident="m-1")
            done = await kit.cancel(RUN)
    assert done.state is RunState.CANCELLED
    assert [what for what in service.done if what != "bad"] == ["a", "in", "b", "undo_in", "undo_a"]


async def test_no_catch_takes_a_cancellation() -> None:
    gate = Gate()
    service = Service({"b": [gate]})
    caught = undoable("b", "catch: [{do: [{use: act, with: {what: caught}}]}]")
    async with service.kit(f"steps: [{undoable('a')}, {caught}]") as kit:
        done = await cancelled_midway(kit, gate)
    assert (done.state, service.done) == (RunState.CANCELLED, ["a", "b", "undo_a"])


async def test_nothing_to_undo_is_cancelled_as_well() -> None:
    service = Service({"b": [BUSY]})
    async with service.kit("steps: [{use: act, with: {what: b}}]") as kit:
        await kit.send("go", {}, ident="m-1")
        assert (await kit.cancel(RUN)).state is RunState.CANCELLED


# --- handlers that do as they like


@pytest.mark.parametrize("answer", ["a result", TerminalError("stopped"), ValueError("a bug")])
async def test_a_handler_that_does_not_heed_its_cancellation_ends_as_it_likes_and_then_the_run_is_cancelled(
    answer: Any,
) -> None:
    entered = asyncio.Event()

    async def stubborn() -> Any:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if isinstance(answer, Exception):
                raise answer from None
            return answer

    service = Service({"b": [stubborn]})
    async with service.kit(f"steps: [{undoable('a')}, {undoable('b')}, {undoable('c')}]") as kit:
        going = asyncio.create_task(kit.send("go", {}, ident="m-1"))
        await entered.wait()
        done = await kit.cancel(RUN)
        await going
    assert done.state is RunState.CANCELLED
    undone = ["undo_b", "undo_a"] if answer == "a result" else ["undo_a"]
    assert service.done == ["a", "b", *undone]


async def test_compensations_are_not_cut_short_by_the_cancellation_that_asked_for_them() -> None:
    gate = Gate()
    service = Service({"b": [gate], "undo_a": [BUSY, lambda: asyncio.sleep(0), {}]})
    async with service.kit(f"steps: [{undoable('a')}, {undoable('b')}]") as kit:
        done = await cancelled_midway(kit, gate)
    assert (done.state, service.done) == (RunState.CANCELLED, ["a", "b", "undo_a", "undo_a"])


# --- how it may end


@pytest.mark.parametrize("what", ["undo_a", "report"])
async def test_an_undoing_that_fails_leaves_it_for_a_person(what: str) -> None:
    service = Service({"b": [BUSY]})
    service.fails(what)
    async with service.kit(f"steps: [{undoable('a')}, {undoable('b')}]\n{REPORT}") as kit:
        await kit.send("go", {}, ident="m-1")
        done = await kit.cancel(RUN)
    assert done.state is RunState.COMPENSATION_FAILED
    assert done.stored.error is not None
    assert done.stored.error.type == "cancelled"
    assert service.done == ["a", "b", "undo_a", "report"]


async def test_a_run_that_is_cancelled_and_fails_by_itself_before_it_hears_of_that_is_just_failed() -> None:
    service = Service()
    async with service.kit(f"steps: [{undoable('a')}, {undoable('b')}]") as kit:

        async def asked_too_late() -> None:
            await kit._hand().cancel((await kit.look(RUN)).stored)  # nobody tells who runs it
            raise TerminalError("no_luck")

        service.answers["b"] = [asked_too_late]
        await kit.send("go", {}, ident="m-1")
        done = await kit.finish(RUN)
    assert done.state is RunState.COMPENSATED
    assert done.stored.error is not None
    assert done.stored.error.type == "no_luck"
    assert intervention(done) is None
    assert done.stored.request is None


async def test_a_crash_while_it_is_undone_goes_on_undoing() -> None:
    gate, undoing = Gate(), Gate()
    service = Service({"b": [gate], "undo_a": [undoing]})
    async with service.kit(f"steps: [{undoable('a')}, {undoable('b')}]") as kit:
        going = asyncio.create_task(kit.send("go", {}, ident="m-1"))
        await gate.entered.wait()
        asking = asyncio.create_task(kit.cancel(RUN))
        await undoing.entered.wait()
        asking.cancel()
        going.cancel()
        await asyncio.gather(going, asking, return_exceptions=True)
        service.answers["undo_a"] = []
        done = await kit.finish(RUN)
    assert (done.state, service.done) == (RunState.CANCELLED, ["a", "b", "undo_a", "undo_a"])
    assert intervention(done) is not None


async def test_a_request_that_its_process_did_not_live_to_heed_is_heeded_by_the_next() -> None:
    gate = Gate()
    service = Service({"b": [gate]})
    async with service.kit(f"steps: [{undoable('a')}, {undoable('b')}]") as kit:
        going = asyncio.create_task(kit.send("go", {}, ident="m-1"))
        await gate.entered.wait()
        await kit._hand().cancel((await kit.look(RUN)).stored)
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        assert (await kit.look(RUN)).stored.request is not None
        done = await kit.finish(RUN)
    assert (done.state, service.done) == (RunState.CANCELLED, ["a", "b", "undo_a"])


# --- refused


async def test_what_is_being_undone_or_over_cannot_be_cancelled() -> None:
    service = Service({"b": [TerminalError("no")], "undo_a": [BUSY, {}]})
    async with service.kit(f"steps: [{undoable('a')}, {undoable('b')}]") as kit:
        await kit.send("go", {}, ident="m-1")
        with pytest.raises(RefusedError, match="is being undone already") as caught:
            await kit.cancel(RUN)
        assert caught.value.hint == "flowrun runs kill ends it as it stands"
        await kit.finish(RUN)
        with pytest.raises(RefusedError, match="is compensated: there is nothing to cancel"):
            await kit.cancel(RUN)
        with pytest.raises(RefusedError, match="is compensated: there is nothing to kill"):
            await kit.kill(RUN)
        assert intervention(await kit.look(RUN)) is None


async def test_a_run_that_ends_between_the_look_and_the_word_is_left() -> None:
    service = Service({"a": [BUSY, {}]})
    async with service.kit(f"steps: [{undoable('a')}]") as kit:
        seen = await kit.send("go", {}, ident="m-1")
        assert seen is not None
        await kit.finish(RUN)
        with pytest.raises(RefusedError, match="has ended meanwhile"):
            await kit._hand().cancel(seen.stored)
        with pytest.raises(RefusedError, match="has changed meanwhile: look again"):
            await kit._hand().kill(seen.stored)
        assert (await kit.look(RUN)).state is RunState.COMPLETED


# --- kill


@pytest.mark.parametrize("was", [RunState.WAITING, RunState.COMPENSATING])
async def test_a_killed_run_ends_as_it_stands_and_undoes_nothing(was: RunState) -> None:
    service = Service({"b": [BUSY if was is RunState.WAITING else TerminalError("no")], "undo_a": [BUSY]})
    async with service.kit(f"steps: [{undoable('a')}, {undoable('b')}]\n{REPORT}") as kit:
        await kit.send("go", {}, ident="m-1")
        before = list(service.done)
        done = await kit.kill(RUN, "it loops")
    assert done.state is RunState.CANCELLED
    assert service.done == before
    assert done.stored.error is not None
    assert (done.stored.error.type, done.stored.error.message) == ("cancelled", "killed by tester@here: it loops")
    assert done.stored.finished_at is not None
    assert done.stored.due_at is None
    note = intervention(done)
    assert note is not None
    assert (note.action, note.was, note.reason) == ("kill", was, "it loops")


async def test_who_runs_a_killed_run_can_write_nothing_more_to_it() -> None:
    gate = Gate("too late")
    service = Service({"b": [gate]})
    async with service.kit(f"steps: [{undoable('a')}, {undoable('b')}]") as kit:
        going = asyncio.create_task(kit.send("go", {}, ident="m-1"))
        await gate.entered.wait()
        killed = await kit.kill(RUN)
        gate.opened.set()
        with pytest.raises(OwnershipError):
            await going
        assert (await kit.look(RUN)).stored == killed.stored
    assert (killed.state, service.done) == (RunState.CANCELLED, ["a", "b"])
    note = intervention(killed)
    assert note is not None
    assert note.was is RunState.RUNNING


async def test_a_run_that_was_to_be_cancelled_may_still_be_killed() -> None:
    service = Service({"b": [BUSY]})
    async with service.kit(f"steps: [{undoable('a')}, {undoable('b')}]") as kit:
        seen = await kit.send("go", {}, ident="m-1")
        assert seen is not None
        await kit._hand().cancel(seen.stored)
        done = await kit.kill(RUN)
    assert (done.state, done.stored.request, service.done) == (RunState.CANCELLED, None, ["a", "b"])


async def test_kill_ends_what_has_passed_its_pivot() -> None:
    service = Service({"b": [BUSY]})
    async with service.kit(f"steps: [{undoable('p', 'pivot: true')}, {undoable('b')}]") as kit:
        await kit.send("go", {}, ident="m-1")
        assert (await kit.kill(RUN)).state is RunState.CANCELLED


HANGING = """
flow: f
events: {e: {external: true}}
routes: [{on: e, to: h}]
handlers:
  h:
    concurrency: 1
    steps: [{use: act, with: {what: a}}, {use: act, with: {what: "{{ event.what }}"}}]
"""


async def test_a_killed_run_sets_its_place_free_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "POLL_S", 0.01)
    gate, served = Gate(), Gate()
    service = Service({"hang": [gate], "fine": [served]})
    bench = Bench(HANGING, service.handlers())
    async with bench.working() as worker:
        await bench.send("m-1", payload={"what": "hang"})
        await gate.entered.wait()
        [summary] = await bench.store.runs(limit=10)
        hanging = await bench.store.run(summary.id)
        assert hanging is not None
        await Hand(bench.store, project="p", by="ada@here", now=FakeClock().now()).kill(hanging)
        await bench.send("m-2", payload={"what": "fine"})
        try:
            async with asyncio.timeout(1):
                await served.entered.wait()
        finally:
            gate.opened.set()
            served.opened.set()
            await bench.until_idle(worker)
