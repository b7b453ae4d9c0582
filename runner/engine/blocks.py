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
        loop = _Loop(run, step, frame, begun)
        loop.take_up()
        parked = await Together(run, loop.rounds(), step.concurrency, loop.told).go(self._hands)
        if parked is not None:
            return parked
        ended = loop.ended
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

    # --- both

    def _begin(self, run: Run, step: Parallel | Foreach, key: str, items: Callable[[], list[Any]]) -> BlockBegun:
        begun = run.history.blocks.get(key)
        if begun is None:
            begun = BlockBegun(step_id=key, at=rfc3339(self._hands.clock.now()), items=items())
            run.note(begun)
        return begun


class _Loop:
    """The rounds of a `foreach`. They begin in order: those up to the last that has left a trace had begun before."""

    def __init__(self, run: Run, step: Foreach, frame: Frame, begun: BlockBegun) -> None:
        self.ended: dict[int, Outcome] = {}
        self._run = run
        self._step = step
        self._frame = frame
        self._items = begun.items
        self._key = frame.key(step)
        self._lines = _lines(frame, self._key, _deadline(run, step, begun), step.concurrency)
        self._entered: list[Strand] = []
        self._next = 0
        self._is_over = False
        """No further round begins."""

    def take_up(self) -> None:
        """What had begun before: rounds that are through take nobody's place."""
        self._next = _entered(self._run, self._step, self._frame, len(self._items))
        for index in range(self._next):
            passed = _passed(self._run, self._step, f"{self._frame.rounds}[{index}]")
            if passed is None:
                self._entered.append(self._strand(index))
            elif self._step.until is None:
                self.ended[index] = passed
            else:
                self._is_over = bool(self.told(self._strand(index), passed)) or self._is_over
        failed = any(isinstance(outcome, Failed) for outcome in self.ended.values())
        _end_others(self._entered, -1 if failed else _failed_in(self._run, self._entered))

    def rounds(self) -> Iterator[Strand]:
        """Those to be run, in order; those that had begun to their ends, also if one says that it is enough."""
        yield from self._entered
        for index in range(self._next, len(self._items)):
            if self._is_over:
                return
            if self._step.until is not None and self._step.concurrency > 1:
                # It runs to its end, whoever says that it is enough: also after a crash.
                self._run.note(BranchTaken(step_id=self._key, branch=index))
            yield self._strand(index)

    def told(self, strand: Strand, outcome: Done | Failed | Stopped) -> str:
        """A round has ended; why it ends the loop, if it does."""
        if isinstance(outcome, Done):
            try:
                self._is_over = self._is_over or self._says_enough(strand.frame)
            except ExpressionError as error:
                text = f"`until`: {error}"
                outcome = Failed(Error(type="expression", message=text, retryable=False, step=self._key))
        self.ended[strand.index] = outcome
        return "" if isinstance(outcome, Done) else f"round {strand.index} ended it"

    def _strand(self, index: int) -> Strand:
        frame = self._frame.in_round(self._step, index, self._items[index], next(self._lines))
        return Strand(index, self._step.steps, frame)

    def _says_enough(self, frame: Frame) -> bool:
        if self._step.until is None:
            return False
        return holds(self._step.until.evaluate(self._run.scope(f"{frame.key(self._step)}\0until", frame)))


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


def _passed(run: Run, step: Foreach, rounds: str) -> Done | None:
    """What a round gave that is through; None if something of it is left to be done, or failed."""
    output: Any = None
    for each in step.steps:
        record = run.history.finished.get(each.id + rounds)
        if record is None or run.history.broken(each, rounds) is not None:
            return None
        output = record.output if record.state is not StepState.SKIPPED else output
    return Done(output)


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
