"""`parallel` and `foreach` where several things meet: undoing, draining, retries by hand, time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from acting import Crash, CrashingStore, Gate, Service, run, undoable

from runner.errors import RetryableError, TerminalError
from runner.testing import FlowKit, KitRun
from runner.times import parse_time


def do(name: str, more: str = "") -> str:
    """A step that does `name`, under that id."""
    return f"{{id: {name}, use: act, with: {{what: {name}}}, {more}}}".replace(", }", "}")


async def begin(kit: FlowKit, payload: Any = None) -> KitRun:
    begun = await kit.send("go", {} if payload is None else payload)
    assert begun is not None
    return begun


async def turns(kit: FlowKit) -> None:
    """All other tasks get so far as they can without anything from outside."""
    for _ in range(100):
        await kit.store.runs(limit=1)  # the store has its turns too
        await asyncio.sleep(0)


async def test_undoing_losers_is_waited_for_in_a_block_that_has_failed_meanwhile() -> None:
    service = Service({"undo_s1": [RetryableError("busy"), "ok"], "wrong": [TerminalError("broken")]})
    slow = undoable("s1", undo="retry: {delay: 1h, max_delay: 1h, jitter: none}")
    race = f"{{parallel: {{wait: any, branches: {{slow: [{slow}, {{wait: 2h}}], fast: [{{wait: 1s}}]}}}}}}"
    async with asyncio.timeout(5):
        done = await run(
            f"steps: [{{parallel: {{branches: {{a: [{race}], b: [{{wait: 1m}}, {do('wrong')}]}}}}}}]", service=service
        )
    assert service.done == ["s1", "undo_s1", "wrong", "undo_s1"]
    assert done.stored.error is not None
    assert done.stored.error.type == "broken"


async def test_a_branch_that_is_due_costs_nothing_while_the_process_drains() -> None:
    gate = Gate()
    service = Service({"long": [gate], "quick": [lambda: drain()]})
    branches = f"a: [{do('long')}], b: [{do('quick')}, {do('then')}]"
    async with service.kit(f"steps: [{do('first')}, {{parallel: {{branches: {{{branches}}}}}}}]") as kit:

        def drain() -> None:
            kit.draining = True

        going = asyncio.create_task(begin(kit))
        await gate.entered.wait()
        looks, now = 0, kit.clock.now

        def look() -> Any:
            nonlocal looks
            looks += 1
            return now()

        kit.clock.now = look  # type: ignore[method-assign]
        await turns(kit)
        assert looks < 20
        gate.opened.set()
        parked = await going
        kit.draining = False
        done = await kit.finish(parked.stored.started.run_id)
    assert done.state == "completed"
    assert service.done == ["first", "long", "quick", "then"]


async def test_an_event_leaves_although_another_branch_goes_on_for_long() -> None:
    gate = Gate()
    async with Service({"long": [gate]}).kit(
        f"steps: [{{parallel: {{branches: {{a: [{do('long')}], b: [{{emit: told, with: {{}}}}]}}}}}}]"
    ) as kit:
        going = asyncio.create_task(begin(kit))
        await gate.entered.wait()
        await turns(kit)
        [row] = await kit.store.runs(limit=1)
        assert (await kit.look(row.id)).emitted == (("told", {}),)
        gate.opened.set()
        await going


async def test_the_last_error_is_the_last_in_time_whichever_branch_had_it() -> None:
    service = Service({"one": [TerminalError("first")], "two": [TerminalError("second")]})
    branches = f"a: [{{wait: 1h}}, {do('two')}], b: [{{wait: 1s}}, {do('one')}]"
    done = await run(f"steps: [{{parallel: {{wait: any, branches: {{{branches}}}}}}}]", service=service)
    assert done.stored.error is not None
    assert done.stored.error.type == "second"


async def test_of_branches_that_are_through_in_the_same_moment_the_first_in_the_file_wins() -> None:
    names = [f"b{n}" for n in range(20)]
    branches = ", ".join(f"{name}: [{{set: {{x: 1}}}}]" for name in names)
    done = await run(f"steps: [{{id: race, parallel: {{wait: any, branches: {{{branches}}}}}}}]")
    assert done.steps["race"].output["winner"] == "b0"


async def test_a_loser_that_cannot_be_undone_does_not_keep_the_others_from_being_undone_at_once() -> None:
    service = Service({"undo_s2": [TerminalError("stuck")]})
    done = await run(
        f"""
        steps:
          - parallel:
              wait: any
              branches: {{slow: [{undoable("s1")}, {undoable("s2")}, {{wait: 1h}}], fast: [{{wait: 1m}}]}}
            catch: [{{on: [stuck], do: []}}]
          - {do("after")}
    """,
        service=service,
    )
    assert done.state == "completed"
    assert service.done == ["s1", "s2", "undo_s2", "undo_s1", "after"]


async def test_undoing_losers_stops_between_two_of_them_when_the_process_drains() -> None:
    service = Service({"undo_s2": [lambda: drain()]})
    branches = f"slow: [{undoable('s1')}, {undoable('s2')}, {{wait: 1h}}], fast: [{{wait: 1m}}]"
    async with service.kit(f"steps: [{{parallel: {{wait: any, branches: {{{branches}}}}}}}]") as kit:

        def drain() -> None:
            kit.draining = True

        parked = await begin(kit)
        kit.clock.advance(60)
        parked = await kit.resume(parked.stored.started.run_id)
        assert parked.state == "running"
        assert service.done == ["s1", "s2", "undo_s2"]
        kit.draining = False
        done = await kit.finish(parked.stored.started.run_id)
    assert done.state == "completed"
    assert service.done == ["s1", "s2", "undo_s2", "undo_s1"]


async def test_a_loser_that_runs_again_from_a_step_on_is_undone_again() -> None:
    service = Service({"end": [TerminalError("broken"), "ok"]})
    race = f"{{slow: [{undoable('s1')}, {{wait: 1h}}], fast: [{{wait: 1s}}]}}"
    body = f"steps: [{do('a')}, {{id: race, parallel: {{wait: any, branches: {race}}}}}, {do('end')}]"
    async with service.kit(body) as kit:
        failed = await kit.finish((await begin(kit)).stored.started.run_id)
        assert failed.state == "failed"
        before = len(service.done)
        await kit.retry(failed.stored.started.run_id, "race")
    assert service.done[before:] == ["s1", "undo_s1", "end"]


async def test_a_block_in_a_catch_sees_the_same_when_a_person_lets_it_go_on() -> None:
    service = Service({"wrong": [TerminalError("broken")], "weak": [TerminalError("broken"), "ok"]})
    weak = '{id: weak, use: act, with: {what: weak, seen: "{{ steps.w.state }}"}}'
    body = f"""
        steps:
          - id: w
            use: act
            with: {{what: wrong}}
            catch: [{{do: [{{parallel: {{branches: {{a: [{do("first")}, {weak}]}}}}}}]}}]
    """
    async with service.kit(body) as kit:
        failed = await kit.finish((await begin(kit)).stored.started.run_id)
        await kit.retry(failed.stored.started.run_id)
    assert [call.fields["seen"] for call in service.calls if call.what == "weak"] == ["failed", "failed"]


HOURLY = """
    steps:
      - id: each
        foreach:
          in: "[1, 2, 3, 4]"
          concurrency: CONCURRENCY
          do:
            - {id: began, set: {at: "{{ now() }}"}}
            - {wait: 1h}
"""


@pytest.mark.parametrize(("concurrency", "hours"), [(1, [0, 1, 2, 3]), (3, [0, 0, 0, 1])])
async def test_a_round_begins_when_an_earlier_one_made_room_for_it(concurrency: int, hours: list[int]) -> None:
    done = await run(HOURLY.replace("CONCURRENCY", str(concurrency)))
    assert [hour(done, f"began[{index}]") for index in range(4)] == hours


async def test_time_goes_on_in_a_block_of_on_failure() -> None:
    service = Service({"wrong": [TerminalError("broken")]})
    done = await run(
        f"""
        steps: [{do("wrong")}]
        on_failure:
          - foreach: {{in: "[1, 2]", do: [{{wait: 1h}}, {{id: then, set: {{at: "{{{{ now() }}}}"}}}}]}}
    """,
        service=service,
    )
    assert [hour(done, f"then[{index}]") for index in range(2)] == [1, 2]


def hour(run: KitRun, key: str) -> int:
    return parse_time(run.steps[key].output["at"]).hour


async def test_a_round_that_only_waits_runs_to_its_end_although_another_says_that_it_is_enough() -> None:
    service = Service()
    done = await run(
        """
        steps:
          - id: each
            foreach:
              in: "[0, 1, 2, 3]"
              concurrency: 3
              until: item == 2
              do:
                - switch: [{when: item == 1, do: [{wait: 2h}]}, {when: item == 3, do: [{wait: 1h}]}]
                - {when: item > 1, use: act, with: {what: "n{{ item }}"}}
                - {set: {n: "{{ item }}"}}
    """,
        service=service,
    )
    assert service.done == ["n2", "n3"]
    assert done.steps["each"].output == [{"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}]


@pytest.mark.parametrize("number", range(1, 5))
async def test_no_branch_begins_an_effect_when_the_commit_that_it_shared_with_another_has_failed(number: int) -> None:
    service = Service()
    branches = f"a: [{do('a1')}, {do('a2')}], b: [{do('b1')}, {do('b2')}]"
    body = f"steps: [{do('first')}, {{parallel: {{branches: {{{branches}}}}}}}]"
    async with service.kit(body, store=lambda store: CrashingStore(store, {(number, "before")})) as kit:
        with contextlib.suppress(Crash):
            await begin(kit)
        rows = await kit.store.runs(limit=1)
        known = (await kit.look(rows[0].id)).steps if rows else {}
    for before, after in (("first", "a1"), ("first", "b1"), ("a1", "a2"), ("b1", "b2")):
        assert after not in service.done or before in known


async def test_a_round_that_a_process_died_in_is_done_again_although_another_says_that_it_is_enough() -> None:
    long, enough, later = Gate(), Gate("enough"), Gate()
    service = Service({"n1": [long, "ok"], "n2": [enough], "n3": [later, "ok"]})
    body = """
        steps:
          - {use: act, with: {what: first}}
          - id: each
            foreach:
              in: "[0, 1, 2, 3]"
              concurrency: 3
              until: item == 2
              do: [{id: one, use: act, with: {what: "n{{ item }}"}}]
    """
    async with service.kit(body) as kit:
        going = asyncio.create_task(begin(kit))
        await asyncio.gather(*(gate.entered.wait() for gate in (long, enough, later)))
        enough.opened.set()
        await turns(kit)
        going.cancel()  # the process is gone
        await asyncio.gather(going, return_exceptions=True)
        [row] = await kit.store.runs(limit=1)
        done = await kit.finish(row.id)
    assert [service.done.count(f"n{item}") for item in range(4)] == [1, 2, 1, 2]
    assert len(done.steps["each"].output) == 4
