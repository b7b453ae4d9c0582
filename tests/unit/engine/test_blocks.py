"""`parallel` and `foreach`: what runs at once, what ends it, what is seen, undone and gone on with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from acting import Crash, CrashingStore, Gate, Service, flow, run, undoable, until

from runner.errors import RetryableError, TerminalError
from runner.records import Change, RunState
from runner.testing import FlowKit, KitRun

LONG = "{wait: {until: \"now() | plus('2h')\"}}"
"""A wait of which nobody can tell beforehand that it is longer than a timeout around it."""


def do(name: str, more: str = "") -> str:
    """A step that does `name`, under that id."""
    return f"{{id: {name}, use: act, with: {{what: {name}}}, {more}}}".replace(", }", "}")


def states(run: KitRun) -> dict[str, str]:
    return {key: str(step.state) for key, step in run.steps.items()}


async def begin(kit: FlowKit, payload: Any = None) -> KitRun:
    begun = await kit.send("go", {} if payload is None else payload)
    assert begun is not None
    return begun


# --- parallel, all


async def test_branches_run_at_once_and_the_output_is_by_branch() -> None:
    left, right = Gate("l"), Gate("r")
    service = Service({"left": [left], "right": [right]})
    body = f"""
        steps:
          - {{id: both, parallel: {{branches: {{a: [{do("left")}], b: [{do("right")}], c: []}}}}}}
          - {{id: seen, set: {{both: "{{{{ steps.both.output }}}}"}}}}
    """
    async with service.kit(body) as kit:
        going = asyncio.create_task(begin(kit))
        await asyncio.gather(left.entered.wait(), right.entered.wait())
        right.opened.set()
        left.opened.set()
        done = await going
    assert done.state == "completed"
    assert done.steps["seen"].output == {"both": {"a": "l", "b": "r", "c": None}}


async def test_a_branch_sees_what_was_before_it_and_its_own_and_nothing_of_another() -> None:
    done = await run(
        """
        steps:
          - {id: before, set: {n: 1}}
          - id: both
            parallel:
              branches:
                a:
                  - {set: {n: "{{ vars.n + 10 }}"}}
                  - {id: mine, set: {m: "{{ vars.n }}", earlier: "{{ steps.before.output.n }}"}}
                b:
                  - {set: {n: "{{ vars.n + 100 }}"}}
                  - {id: theirs, set: {m: "{{ vars.n }}", others: "{{ steps.mine is defined }}"}}
          - {id: after, set: {n: "{{ vars.n }}", inner: "{{ steps | list }}"}}
    """.replace('others: "{{ steps.mine is defined }}"', "others: \"{{ 'mine' in steps }}\"")
    )
    assert done.steps["mine"].output == {"m": 11, "earlier": 1}
    assert done.steps["theirs"].output == {"m": 101, "others": False}
    assert done.steps["after"].output == {"n": 1, "inner": ["before", "both", "after"]}


async def test_the_first_failure_cancels_the_rest_and_all_is_undone_in_reverse() -> None:
    gate, done_too = Gate(), Gate()
    service = Service({"long": [gate], "wrong": [lambda: fail_after(done_too)]})
    body = f"""
        steps:
          - {undoable("first")}
          - id: both
            parallel:
              branches:
                a: [{undoable("a1")}, {undoable("long", undo="if: attempted")}, {do("never")}]
                b: [{do("wrong")}]
    """

    async def fail_after(gate: Gate) -> None:
        await gate.opened.wait()
        raise TerminalError("broken", "no")

    async with service.kit(body.replace("if: attempted", "")) as kit:
        going = asyncio.create_task(begin(kit))
        await gate.entered.wait()
        done_too.opened.set()
        done = await kit.finish((await going).stored.started.run_id)
    assert done.state == "compensated"
    assert done.stored.error is not None
    assert (done.stored.error.type, done.stored.error.step) == ("broken", "wrong")
    assert states(done) == {"first": "completed", "a1": "completed", "wrong": "failed", "long": "cancelled",
                            "both": "failed"}  # fmt: skip
    assert service.done[-2:] == ["undo_a1", "undo_first"]


async def test_what_was_cut_short_in_another_branch_is_undone_if_that_says_attempted() -> None:
    gate = Gate()
    service = Service({"long": [gate], "wrong": [TerminalError("broken")]})
    step = "{id: long, use: act, with: {what: long}, compensate: {use: act, with: {what: undo_long}, if: attempted}}"
    body = f"steps: [{{parallel: {{branches: {{a: [{step}], b: [{do('wrong', 'when: event.yes')}]}}}}}}]"
    done = await run(body, {"yes": True}, service)
    assert done.state == "compensated"
    assert service.done == ["long", "wrong", "undo_long"]


async def test_a_catch_on_the_block_takes_what_its_branches_did_not_and_nothing_is_undone() -> None:
    service = Service({"wrong": [TerminalError("broken")]})
    done = await run(
        f"""
        steps:
          - id: both
            parallel: {{branches: {{a: [{undoable("a1")}], b: [{do("wrong")}]}}}}
            catch: [{{on: [broken], do: [{{id: told, set: {{why: "{{{{ error.type }}}} in {{{{ error.step }}}}"}}}}]}}]
          - {do("after")}
    """,
        service=service,
    )
    assert done.state == "completed"
    assert done.steps["told"].output == {"why": "broken in wrong"}
    assert done.undone == []
    assert service.done[-1] == "after"


async def test_blocks_nest_and_a_failure_deep_inside_undoes_every_branch_in_one_order() -> None:
    service = Service({"wrong": [TerminalError("broken")]})
    inner = f"{{parallel: {{branches: {{x: [{undoable('x1')}], y: [{undoable('y1')}]}}}}}}"
    done = await run(
        f"""
        steps:
          - id: outer
            parallel:
              branches:
                a: [{inner}, {undoable("a2")}]
                b: [{{foreach: {{in: "[1, 2]", do: [{undoable("each")}]}}}}]
          - {do("wrong")}
    """,
        service=service,
    )
    assert done.state == "compensated"
    completed = [f"undo_{name}" for name in service.done if name != "wrong" and not name.startswith("undo_")]
    assert [name for name in service.done if name.startswith("undo_")] == completed[::-1]


async def test_one_branch_is_tried_again_while_another_goes_on() -> None:
    gate = Gate()
    service = Service({"long": [gate], "weak": [RetryableError("busy"), "ok"]})
    body = f"""
        retry: {{delay: 1ms, jitter: none}}
        steps: [{{id: both, parallel: {{branches: {{a: [{do("long")}], b: [{do("weak")}, {do("then")}]}}}}}}]
    """
    async with service.kit(body) as kit:
        going = asyncio.create_task(begin(kit))
        await gate.entered.wait()
        kit.clock.advance(0.001)
        await until(lambda: "then" in service.done)
        gate.opened.set()
        done = await going
    assert done.state == "completed"
    assert service.done.count("long") == 1


async def test_branches_that_all_wait_hold_nothing() -> None:
    async with Service().kit("""
        steps:
          - parallel: {branches: {a: [{wait: 2h}], b: [{wait: 1h}]}}
    """) as kit:
        parked = await begin(kit)
        assert parked.state == "waiting"
        assert (await kit.store.backlog()).runs == 0, "asleep by its own wish"
        done = await kit.finish(parked.stored.started.run_id)
    assert list(states(done)) == ["1.branches.b.1", "1.branches.a.1", "1"]


async def test_a_reply_is_heard_while_another_branch_goes_on() -> None:
    gate = Gate()
    service = Service({"long": [gate]})
    text = flow(f"""
        steps:
          - id: both
            parallel:
              branches:
                a: [{do("long")}]
                b: [{{id: asked, command: ask, with: {{n: 1}}}}, {do("then")}]
    """).replace("routes:", "commands: {ask: {schema: {}, reply: {}, external: true}}\nroutes:")
    async with FlowKit(text, service.handlers()) as kit:
        going = asyncio.create_task(begin(kit))
        await until(lambda: kit.sent)
        await kit.answer(kit.sent[0].id, "yes")
        await until(lambda: "then" in service.done)
        gate.opened.set()
        done = await going
    assert done.state == "completed"
    assert done.steps["both"].output["b"] == {"what": "then"}


async def test_an_event_that_came_before_the_wait_counts_while_another_branch_goes_on() -> None:
    gate, first = Gate(), Gate()
    service = Service({"long": [gate], "first": [first]})
    async with service.kit(f"""
        steps:
          - parallel:
              branches:
                a: [{do("long")}]
                b: [{do("first")}, {{id: heard, wait_for: {{event: answer}}}}, {do("then")}]
    """) as kit:
        going = asyncio.create_task(begin(kit))
        await asyncio.gather(gate.entered.wait(), first.entered.wait())
        await kit.arrive("answer", {"text": "yes"})
        first.opened.set()
        await until(lambda: "then" in service.done)
        gate.opened.set()
        done = await going
    assert done.steps["heard"].output == {"text": "yes"}


# --- parallel, any


async def test_the_first_branch_wins_and_the_others_are_undone_at_once() -> None:
    service = Service()
    done = await run(
        f"""
        steps:
          - id: race
            parallel:
              wait: any
              branches:
                slow: [{undoable("s1")}, {undoable("s2")}, {{wait: 1h}}]
                fast: [{{wait: 1m}}, {undoable("f1")}]
          - {do("after")}
    """,
        service=service,
    )
    assert done.state == "completed"
    assert done.steps["race"].output == {"winner": "fast", "fast": {"what": "f1"}}
    assert service.done == ["s1", "s2", "f1", "undo_s2", "undo_s1", "after"]
    assert done.steps["race.branches.slow.3"].state == "cancelled"


async def test_a_branch_that_fails_drops_out_and_the_last_error_counts_if_all_do() -> None:
    service = Service({"one": [TerminalError("first")], "two": [TerminalError("second")]})
    branches = f"a: [{undoable('mine')}, {do('one')}], b: [{{wait: 1s}}, {do('two')}]"
    done = await run(f"steps: [{{parallel: {{wait: any, branches: {{{branches}}}}}}}]", service=service)
    assert done.state == "compensated"
    assert done.stored.error is not None
    assert done.stored.error.type == "second"
    assert service.done == ["mine", "one", "two", "undo_mine"]


async def test_a_loser_that_cannot_be_undone_fails_the_block_and_is_for_a_person() -> None:
    service = Service({"undo_s1": [TerminalError("stuck")]})
    body = f"""
        steps:
          - id: race
            parallel:
              wait: any
              branches: {{slow: [{undoable("s1")}, {{wait: 1h}}], fast: [{{wait: 1m}}, {undoable("f1")}]}}
    """
    async with service.kit(body) as kit:
        done = await kit.finish((await begin(kit)).stored.started.run_id)
        assert done.state == "compensation_failed"
        assert done.stored.error is not None
        assert done.stored.error.type == "stuck"
        assert service.done == ["s1", "f1", "undo_s1", "undo_f1"], "the others are undone all the same"
        service.answers["undo_s1"] = ["ok"]
        again = await kit.retry(done.stored.started.run_id)
    assert again.state == "compensated"
    assert service.done[4:] == ["undo_s1"]


async def test_undoing_losers_is_not_cut_short_by_the_runs_timeout() -> None:
    service = Service({"undo_s1": [RetryableError("busy"), "ok"]})
    done = await run(
        f"""
        timeout: 90s
        steps:
          - parallel:
              wait: any
              branches:
                slow: [{undoable("s1", undo="retry: {delay: 1h, max_delay: 1h, jitter: none}")}, {LONG}]
                fast: [{{wait: 1m}}]
          - {do("after")}
    """,
        service=service,
    )
    assert service.done == ["s1", "undo_s1", "undo_s1"]
    assert done.stored.error is not None
    assert done.stored.error.type == "timeout", "only then is the run's time looked at again"
    assert done.state == "failed", "nothing was left to be undone"


# --- what ends blocks


async def test_a_blocks_timeout_cancels_all_and_no_catch_inside_takes_it() -> None:
    catch = "catch: [{do: [{id: inner, set: {x: 1}}]}]"
    done = await run(
        f"""
        steps:
          - id: both
            parallel: {{branches: {{a: [{{id: w, {LONG[1:-1]}, {catch}}}], b: [{do("quick")}]}}}}
            timeout: 10m
            catch: [{{on: [timeout], do: [{{id: outer, set: {{why: "{{{{ error.step }}}}"}}}}]}}]
          - {do("after")}
    """
    )
    assert done.state == "completed"
    assert done.steps["outer"].output == {"why": "both"}
    assert "inner" not in done.steps


async def test_the_runs_timeout_passes_through_every_block() -> None:
    done = await run(
        f"""
        timeout: 5m
        steps:
          - id: outer
            foreach: {{in: "[1]", do: [{{id: inner, parallel: {{branches: {{a: [{LONG}]}}}}, catch: [{{do: []}}]}}]}}
            catch: [{{do: []}}]
    """
    )
    assert done.state == "failed"
    assert done.stored.error is not None
    assert done.stored.error.message == "the run took longer than 300 s"


async def test_a_cancelled_run_interrupts_every_branch() -> None:
    one, two = Gate(), Gate()
    service = Service({"one": [one], "two": [two]})
    undo = "compensate: {use: act, with: {what: undone}, if: attempted}"
    branches = f"a: [{do('one', undo)}], b: [{do('two', undo)}], c: [{{wait: 1h}}]"
    async with service.kit(f"steps: [{do('first')}, {{parallel: {{branches: {{{branches}}}}}}}]") as kit:
        going = asyncio.create_task(begin(kit))
        await asyncio.gather(one.entered.wait(), two.entered.wait())
        [row] = await kit.store.runs(limit=1)
        done = await kit.cancel(row.id)
        await going
    assert done.state == "cancelled"
    assert service.done == ["first", "one", "two", "undone", "undone"]


@pytest.mark.parametrize("block", ["parallel: {branches: {a: [{stop: true}], b: [{wait: 1h}]}}",
                                   "foreach: {in: '[1, 2]', do: [{stop: true}]}"])  # fmt: skip
async def test_stop_inside_a_block_ends_the_run_as_completed(block: str) -> None:
    service = Service()
    done = await run(f"steps: [{undoable('x')}, {{{block}}}, {do('after')}]", service=service)
    assert done.state == "completed"
    assert service.done == ["x"]


# --- foreach


async def test_rounds_see_their_item_and_index_and_the_output_keeps_the_order() -> None:
    first = Gate("slow")
    service = Service({"p": [first]})
    body = """
        steps:
          - id: each
            foreach:
              in: event.lines
              as: line
              concurrency: 2
              do: [{id: one, use: act, with: {what: "{{ line }}", n: "{{ index }}"}}]
    """
    async with service.kit(body) as kit:
        going = asyncio.create_task(begin(kit, {"lines": ["p", "q", "r"]}))
        await first.entered.wait()
        await until(lambda: len(service.done) == 3)
        first.opened.set()
        done = await going
    assert done.steps["each"].output == ["slow", {"what": "q", "n": 1}, {"what": "r", "n": 2}]
    assert list(done.steps) == ["one[1]", "one[2]", "one[0]", "each"]


async def test_no_more_rounds_run_at_once_than_concurrency_says() -> None:
    now, most = 0, 0

    async def count() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    body = "steps: [{foreach: {in: range(20), concurrency: 3, do: [{use: act, with: {what: x}}]}}]"
    done = await run(body, service=Service({"x": [count]}))
    assert done.state == "completed"
    assert most == 3


@pytest.mark.parametrize("asked", [1, 3])
async def test_until_ends_the_loop_after_the_round_that_holds(asked: int) -> None:
    service = Service()
    done = await run(
        f"""
        steps:
          - id: offers
            foreach:
              in: event.couriers
              until: steps.offer.output.what == "b"
              concurrency: {asked}
              do: [{{id: offer, use: act, with: {{what: "{{{{ item }}}}"}}}}]
    """,
        {"couriers": list("abcdef")},
        service,
    )
    # Those that had begun beside it run to their end.
    assert service.done == list("ab") if asked == 1 else list("abc")
    assert [each["what"] for each in done.steps["offers"].output] == service.done


async def test_a_list_of_nothing_is_over_at_once() -> None:
    done = await run("steps: [{id: each, foreach: {in: '[]', do: [{wait: 1h}]}}]")
    assert done.steps["each"].output == []


@pytest.mark.parametrize(
    ("items", "says"), [({}, "`in` must give a list, and gives {}"), ([0] * 10_001, "the limit is 10000")]
)
async def test_what_is_no_list_or_too_long_fails_the_step(items: Any, says: str) -> None:
    done = await run("steps: [{id: each, foreach: {in: event.all, do: [{wait: 1h}]}}]", {"all": items})
    assert done.stored.error is not None
    assert done.stored.error.type == "expression"
    assert says in done.stored.error.message


async def test_loops_nest_and_a_compensation_sees_its_own_round() -> None:
    service = Service({"wrong": [TerminalError("broken")]})
    done = await run(
        f"""
        steps:
          - foreach:
              in: "['p', 'q']"
              as: outer
              do:
                - {{set: {{said: "{{{{ outer }}}}!"}}}}
                - foreach:
                    in: "[1, 2]"
                    do:
                      - id: each
                        use: act
                        with: {{what: "{{{{ outer }}}}{{{{ item }}}}"}}
                        compensate:
                          use: act
                          with: {{what: "undo {{{{ vars.said }}}} {{{{ outer }}}}{{{{ item }}}} {{{{ index }}}}"}}
          - {do("wrong")}
    """,
        service=service,
    )
    assert service.done == ["p1", "p2", "q1", "q2", "wrong",
                            "undo q! q2 1", "undo q! q1 0", "undo p! p2 1", "undo p! p1 0"]  # fmt: skip
    assert [record.step_id for record in done.undone] == [
        f"each.compensate.1[{outer}][{inner}]" for outer in (1, 0) for inner in (1, 0)
    ]


async def test_a_round_that_fails_ends_the_loop_unless_it_is_caught_inside() -> None:
    service = Service({"b": [TerminalError("broken")]})
    body = """
        steps:
          - id: each
            foreach: {in: "['a', 'b', 'c']", do: [{id: one, use: act, with: {what: "{{ item }}"}CATCH}]}
    """
    done = await run(body.replace("CATCH", ""), service=service)
    assert done.state == "failed"
    assert done.stored.error is not None
    assert done.stored.error.step == "one[1]"
    done = await run(body.replace("CATCH", ", catch: [{do: []}]"), service=Service({"b": [TerminalError("broken")]}))
    assert done.steps["each"].output == [{"what": "a"}, None, {"what": "c"}]


async def test_the_items_are_those_of_the_beginning() -> None:
    body = "steps: [{id: each, foreach: {in: \"[env.REGION]\", do: [{wait: 1h}, {set: {r: '{{ item }}'}}]}}]"
    async with Service().kit(body, env={"REGION": "north"}) as kit:
        parked = await begin(kit)
        kit._env["REGION"] = "south"
        done = await kit.finish(parked.stored.started.run_id)
    assert done.steps["each"].output == [{"r": "north"}]


async def test_values_of_chance_and_time_are_a_rounds_own_and_the_same_after_a_crash() -> None:
    body = """
        steps:
          - foreach:
              in: "[1, 2]"
              concurrency: 2
              do:
                - {id: first, use: act, with: {what: "first{{ item }}"}}
                - {id: drawn, use: act, with: {what: "drawn{{ item }}", id: "{{ uuid() }}", at: "{{ now() }}"}}
                - {id: last, use: act, with: {what: "last{{ item }}"}}
    """
    service = Service()
    async with service.kit(body, store=lambda store: CrashingStore(store, {(4, "after")})) as kit:
        with pytest.raises(Crash):
            await begin(kit)
        [run_id] = [run.id for run in await kit.store.runs(limit=1)]
        done = await kit.resume(run_id)
    assert done.state == "completed"
    drawn = {(call.what, call.fields["id"], call.fields["at"]) for call in service.calls if "drawn" in call.what}
    assert len(drawn) == 2
    assert len({ident for _, ident, _ in drawn}) == 2


def undo(name: str) -> str:
    return f"compensate: {{use: act, with: {{what: undo_{name}}}, if: attempted}}"


# --- crashes, and what a person does

EVERYTHING = f"""
    steps:
      - {undoable("a")}
      - id: both
        parallel:
          branches:
            left:
              - {undoable("l1")}
              - foreach: {{in: "[1, 2, 3]", concurrency: 2, do: [{undoable("each")}, {do("more")}]}}
            right:
              - switch: [{{when: event.n > 0, do: [{undoable("r1")}]}}]
              - {{emit: told, with: {{}}}}
              - {undoable("r2")}
      - id: race
        parallel:
          wait: any
          branches: {{slow: [{undoable("s1")}, {{wait: 1h}}], fast: [{{wait: 1s}}, {undoable("f1")}]}}
      - {do("end")}
"""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("ends", ["completed", "compensated"])
async def test_a_crash_at_any_commit_changes_nothing_of_the_end(moment: str, ends: str) -> None:
    commits, expected, keys = await survive(ends, set())
    assert commits > 10
    for number in range(1, commits + 1):
        _, outcome, seen = await survive(ends, {(number, moment)})
        assert outcome == expected, f"crash {moment} commit {number}"
        assert seen == keys, f"crash {moment} commit {number}"


async def survive(ends: str, at: set[tuple[int, str]]) -> tuple[int, Any, set[str]]:
    """Run it with a crash; what became of it, and the keys of all effects."""
    service = Service()
    if ends == "compensated":
        service.fails("end")
    stores: list[CrashingStore] = []

    def crashing(store: Any) -> CrashingStore:
        stores.append(CrashingStore(store, at))
        return stores[-1]

    async with service.kit(EVERYTHING, store=crashing) as kit:

        async def attempt(work: Callable[[], Any]) -> Any:
            try:
                return await work()
            except Crash:
                return None

        async def deliver() -> Any:
            return await kit.send("go", {"n": 1}, ident="once")

        await attempt(deliver)
        await attempt(deliver)
        [row] = await kit.store.runs(limit=1)
        done = await attempt(lambda: kit.finish(row.id)) or await kit.finish(row.id)
        ended = sorted((key, str(step.state), repr(step.output)) for key, step in done.steps.items()
                       if step.action != "emit")  # fmt: skip
        undone = sorted((record.step_id, str(record.state)) for record in done.undone)
        emitted = [name for name, _ in done.emitted]
        return stores[0].count, (done.state, ended, undone, emitted), {call.key for call in service.calls}


async def test_a_crash_in_the_midst_of_several_branches_leaves_each_of_them_attempted() -> None:
    gates = [Gate(), Gate()]
    service = Service({"one": [gates[0]], "two": [gates[1]]})
    branches = ", ".join(f"{name}: [{do(name, undo(name))}, {do(f'{name}_then')}]" for name in ("one", "two"))
    branches += f", three: [{do('fine', undo('fine'))}, {LONG}, {do('later', undo('later'))}]"
    body = f"timeout: 5m\nsteps: [{do('x')}, {{parallel: {{branches: {{{branches}}}}}}}, {do('end', undo('end'))}]"
    async with service.kit(body) as kit:
        going = asyncio.create_task(begin(kit))
        await asyncio.gather(*(gate.entered.wait() for gate in gates))
        going.cancel()  # the process is gone
        await asyncio.gather(going, return_exceptions=True)
        [row] = await kit.store.runs(limit=1)
        await kit.store.commit(Change(run_id=row.id, state=RunState.RUNNING, suspect=True))
        kit.clock.advance(600.0)
        done = await kit.finish(row.id)
    assert done.stored.error is not None
    assert done.stored.error.type == "timeout"
    assert sorted(service.done[-3:]) == ["undo_fine", "undo_one", "undo_two"], "what had not begun is not undone"


async def test_a_retried_run_does_again_only_what_failed_or_was_cancelled() -> None:
    gate = Gate()
    service = Service({"long": [gate, "ok"], "wrong": [TerminalError("broken"), "ok"]})
    body = f"""
        steps:
          - id: both
            parallel:
              branches:
                a: [{do("a1")}, {do("long")}]
                b: [{do("b1")}, {do("wrong")}, {do("b3")}]
                c: [{do("c1")}]
          - id: each
            foreach: {{in: "[1, 2, 3]", do: [{{id: one, use: act, with: {{what: "n{{{{ item }}}}"}}}}]}}
    """
    service.answers["n2"] = [TerminalError("broken"), "ok"]
    async with service.kit(body) as kit:
        failed = await kit.finish((await begin(kit)).stored.started.run_id)
        assert failed.state == "failed"
        before = len(service.done)
        failed = await kit.retry(failed.stored.started.run_id)
        assert failed.state == "failed"
        assert service.done[before:] == ["long", "wrong", "b3", "n1", "n2"]
        before = len(service.done)
        done = await kit.retry(failed.stored.started.run_id)
    assert done.state == "completed"
    assert service.done[before:] == ["n2", "n3"]
    assert done.steps["each"].output == [{"what": "n1"}, "ok", {"what": "n3"}]


async def test_a_retry_from_inside_a_block_begins_with_the_whole_block() -> None:
    service = Service({"end": [TerminalError("broken"), "ok"]})
    body = f"steps: [{do('a')}, {{foreach: {{in: '[1, 2]', do: [{do('each')}]}}}}, {do('end')}]"
    async with service.kit(body) as kit:
        failed = await kit.finish((await begin(kit)).stored.started.run_id)
        before = len(service.done)
        done = await kit.retry(failed.stored.started.run_id, "each[1]")
    assert done.state is RunState.COMPLETED
    assert service.done[before:] == ["each", "each", "end"]
