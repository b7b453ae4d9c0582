"""`parallel` and `foreach`: what their lines are, and what becomes of the block when those have ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import msgspec

from runner.engine.compensation import undo_plan
from runner.engine.history import rounds_of
from runner.engine.line import Cut, Frame, Line
from runner.engine.results import own
from runner.engine.run import Run
from runner.engine.together import Hands, Strand, Together
from runner.errors import ExpressionError
from runner.expressions import holds
from runner.outcome import Done, Failed, Outcome, Parked, Stopped
from runner.plan import Emit, Foreach, Parallel, Send, Use
from runner.records import BlockBegun, BranchTaken, Error, StepState
from runner.times import parse_time, rfc3339
from runner.values import clip

MAX_ITEMS = 10_000
"""Each round's records are read again whenever the run is taken up."""

Undo = Callable[[Run, Use | Send | Emit, Frame, str], Awaitable[Parked | None]]
"""Undoes what the step with this record id did."""


class Blocks:
    """Runs the blocks of many lines. All may raise ExpressionError; `undo` does one compensation."""

    def __init__(self, hands: Hands, undo: Undo) -> None:
        self._hands = hands
        self._undo = undo

    # --- parallel

    async def parallel(self, run: Run, step: Parallel, frame: Frame) -> Outcome:
        """All branches, or the first that is through; then the others are cancelled, and what they did is undone."""
        key, names = frame.key(step), list(step.branches)
        begun = self._begin(run, step, key, list)
        lines = _lines(frame, key, _deadline(run, step, begun), len(names))
        strands = [
            Strand(n, step.branches[name], frame.in_branch(step, name, next(lines))) for n, name in enumerate(names)
        ]
        _end_others(strands, run.history.branches.get(key) if step.wait == "any" else _failed_in(run, strands))
        ended: dict[int, Outcome] = {}
        judge = self._judge_any if step.wait == "any" else self._judge_all

        def told(strand: Strand, outcome: Done | Failed | Stopped) -> str:
            ended[strand.index] = outcome
            return judge(run, key, names[strand.index], strand.index, outcome)

        parked = await Together(run, iter(strands), len(strands), told).go(self._hands)
        if parked is not None:
            return parked
        decisive = _decisive(ended, key)
        if decisive is not None:
            return decisive
        if step.wait == "all":
            return _first_failure(ended, key) or Done({name: _output(ended[n]) for n, name in enumerate(names)})
        winner = run.history.branches.get(key)
        if winner is None:
            last = max(strands, key=lambda strand: _failed_at(run, strand))
            return ended[last.index]
        first = names[winner]
        undone = await self._undo_losers(run, step, frame, first)
        return undone or Done({"winner": first, first: _output(ended[winner])})

    def _judge_all(self, run: Run, key: str, name: str, index: int, outcome: Outcome) -> str:
        if isinstance(outcome, Done):
            return ""
        return f"branch {name} failed" if isinstance(outcome, Failed) else f"branch {name} stopped the run"

    def _judge_any(self, run: Run, key: str, name: str, index: int, outcome: Outcome) -> str:
        if isinstance(outcome, Failed):
            return "" if outcome.over is None else f"{key} is over"
        if isinstance(outcome, Done):
            first = run.history.branches.get(key)
            if first is None:
                run.note(BranchTaken(step_id=key, branch=index))
            elif first != index:
                return ""
        return f"branch {name} came first"

    async def _undo_losers(self, run: Run, step: Parallel, frame: Frame, winner: str) -> Parked | Failed | None:
        """At once, in reverse. One that cannot be undone fails the block, once the others are undone."""
        error = Error(type="cancelled", message=f"branch {winner} came first", retryable=False, step=frame.key(step))
        shown = msgspec.structs.asdict(error)
        homes = [step.home_of(name) for name in step.branches if name != winner]
        line, stuck = Line(is_undoing=True), None
        for key, loser, undo in list(undo_plan(run.program, run.history)):
            if not any(run.history.is_inside(key, home, frame.rounds) for home in homes):
                continue
            rounds = rounds_of(key)
            names = {**run.history.names(loser.home, rounds), "error": shown}
            there = Frame(line=line, home=loser.home, rounds=rounds, names=names)
            if there.key(undo) not in run.history.undone:
                if self._hands.draining():
                    return Parked(self._hands.clock.now())
                parked = await self._undo(run, undo, there, key)
                if parked is not None:
                    return parked
            record = run.history.undone[there.key(undo)]
            if record.state is StepState.FAILED and record.error is not None:
                stuck = stuck or Failed(record.error)
        return stuck

    # --- foreach

    async def foreach(self, run: Run, step: Foreach, frame: Frame) -> Outcome:
        """A round for each item, so many at once, until one holds the condition, or fails."""
        key = frame.key(step)
        begun = self._begin(run, step, key, lambda: self._items(run, step, frame))
        lines = _lines(frame, key, _deadline(run, step, begun), step.concurrency)
        ended: dict[int, Outcome] = {}
        is_enough = False

        def strand(index: int) -> Strand:
            return Strand(index, step.steps, frame.in_round(step, index, begun.items[index], next(lines)))

        # Rounds begin in order: those up to the last that has left a trace had begun before a crash.
        entered = [strand(index) for index in range(_entered(run, step, frame, len(begun.items)))]
        _end_others(entered, _failed_in(run, entered))

        def rounds() -> Iterator[Strand]:
            yield from entered  # to their ends, also if one of them says that it is enough
            for index in range(len(entered), len(begun.items)):
                if is_enough:
                    return
                if step.until is not None and step.concurrency > 1:
                    run.note(
                        BranchTaken(step_id=key, branch=index)
                    )  # it runs to its end, whoever says that it is enough
                yield strand(index)

        def told(strand: Strand, outcome: Done | Failed | Stopped) -> str:
            nonlocal is_enough
            if isinstance(outcome, Done):
                try:
                    is_enough = is_enough or self._says_enough(run, step, strand.frame)
                except ExpressionError as error:
                    text = f"`until`: {error}"
                    outcome = Failed(Error(type="expression", message=text, retryable=False, step=key))
            ended[strand.index] = outcome
            return "" if isinstance(outcome, Done) else f"round {strand.index} ended it"

        parked = await Together(run, rounds(), step.concurrency, told).go(self._hands)
        if parked is not None:
            return parked
        decisive = _decisive(ended, key)
        if decisive is not None:
            return decisive
        return _first_failure(ended, key) or Done([_output(ended[index]) for index in sorted(ended)])

    def _items(self, run: Run, step: Foreach, frame: Frame) -> list[Any]:
        items = own(step.items.evaluate(run.scope(frame.key(step), frame)))
        if not isinstance(items, list):
            raise ExpressionError(f"`in` must give a list, and gives {clip(repr(items))}")
        if len(items) > MAX_ITEMS:
            raise ExpressionError(f"the list has {len(items)} items, the limit is {MAX_ITEMS}: emit an event for each")
        return items

    def _says_enough(self, run: Run, step: Foreach, frame: Frame) -> bool:
        if step.until is None:
            return False
        return holds(step.until.evaluate(run.scope(f"{frame.key(step)}\0until", frame)))

    # --- both

    def _begin(self, run: Run, step: Parallel | Foreach, key: str, items: Callable[[], list[Any]]) -> BlockBegun:
        begun = run.history.blocks.get(key)
        if begun is None:
            begun = BlockBegun(step_id=key, at=rfc3339(self._hands.clock.now()), items=items())
            run.note(begun)
        return begun


def _deadline(run: Run, step: Parallel | Foreach, begun: BlockBegun) -> datetime | None:
    if step.timeout_s is None:
        return None
    return parse_time(max(begun.at, run.history.revived_at or "")) + timedelta(seconds=step.timeout_s)


def _lines(frame: Frame, key: str, deadline: datetime | None, at_once: int) -> Iterator[Line]:
    """So many of them a dead process may have been in the midst of."""
    cut = Cut(at_once if frame.line.was_cut_short() else 0)
    while True:
        yield Line(frame.line, key, deadline, cut=cut)


def _entered(run: Run, step: Foreach, frame: Frame, items: int) -> int:
    last = run.history.branches.get(frame.key(step))
    for index in reversed(range(0 if last is None else last + 1, items)):
        if run.history.is_entered(step.home_of_rounds, f"{frame.rounds}[{index}]"):
            return index + 1
    return 0 if last is None else last + 1


def _failed_in(run: Run, strands: list[Strand]) -> int | None:
    """The one that failed before a crash."""
    for strand in strands:
        records = (run.history.broken(step, strand.frame.rounds) for step in strand.steps)
        if any(record is not None and record.state is StepState.FAILED for record in records):
            return strand.index
    return None


def _failed_at(run: Run, strand: Strand) -> int:
    """When it failed, also if that was before the run was taken up again: the number of the record that says so."""
    order = list(run.history.finished)
    records = (run.history.broken(step, strand.frame.rounds) for step in strand.steps)
    return max((order.index(record.step_id) for record in records if record is not None), default=-1)


def _end_others(strands: list[Strand], decided: int | None) -> None:
    """What was decided before a crash: nothing begins anew on the others."""
    for strand in strands if decided is not None else ():
        if strand.index != decided:
            strand.frame.line.end("it was decided before")


def _decisive(ended: dict[int, Outcome], key: str) -> Failed | Stopped | None:
    """What ends the block whatever its lines did: something around it is over, its own time is, or a `stop`."""
    for outcome in ended.values():
        if isinstance(outcome, Stopped):
            return outcome
        if isinstance(outcome, Failed) and outcome.over is not None and not _is_ended(outcome, key):
            return outcome if outcome.over != key else Failed(outcome.error)
    return None


def _first_failure(ended: dict[int, Outcome], key: str) -> Failed | None:
    failed = (outcome for outcome in ended.values() if isinstance(outcome, Failed) and not _is_ended(outcome, key))
    return next(failed, None)


def _is_ended(failure: Failed, key: str) -> bool:
    """Whether it was ended for the sake of another line of this block."""
    return failure.over == key and failure.error.type == "cancelled"


def _output(outcome: Outcome) -> Any:
    return outcome.output if isinstance(outcome, Done) else None
