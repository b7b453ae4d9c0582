"""What a run's records say: which steps are over, with what, and what was tried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from runner.plan import Program, Step, Switch
from runner.records import (
    AttemptBegun,
    AttemptFailed,
    BranchTaken,
    CommandSent,
    Error,
    ErrorCaught,
    EventsTaken,
    Intervention,
    Record,
    ReplySent,
    RunFailed,
    RunState,
    StepFinished,
    StepState,
    UndoFinished,
    WaitBegun,
)

UNSETTLED = frozenset({"timeout", "internal", "crashed", "cancelled"})
"""Errors of a reply after which the effect may be there all the same."""


class History:
    """The folded records of one run. `add` is the only way to change it, for old records and new ones alike."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.finished: dict[str, StepFinished] = {}
        self.branches: dict[str, int | None] = {}
        self.caught: dict[str, ErrorCaught] = {}
        self.attempts: dict[str, list[AttemptFailed]] = {}
        self.undone: dict[str, UndoFinished] = {}
        self.completed: list[str] = []
        """Ids in the order of completion."""
        self.touched: list[str] = []
        """Ids of steps that completed, or that were tried with an unknown result, in the order in which that was so."""
        self.failure: Error | None = None
        """Why the run's own steps ended, once they did."""
        self.cancelled = False
        """They ended because a person said so."""
        self.pivoted = False
        """The point of no return is passed."""
        self.revived_at: str | None = None
        """When a person let the run go on: its timeout counts anew from there."""
        self.variables: dict[str, Any] = {}
        self.steps: dict[str, dict[str, Any]] = {step.id: _SKIPPED for step in _every(program)}
        """`steps` as expressions see it: what did not run is skipped."""
        self.last_time: str | None = None
        """When the latest step ended: what `now()` says in the next one, also after a crash."""
        self.waits: dict[str, WaitBegun] = {}
        self.taken: set[tuple[str, str]] = set()
        """Events that no wait gets any more, as (source, id): the one that began the run, and what some wait got."""
        self.sent: dict[str, CommandSent] = {}
        """The latest command of a step, by the step's id."""
        self.unanswered: dict[str, CommandSent] = {}
        """Commands that timed out, of steps that a person lets try again: they go out again under their ids."""
        self.asked: dict[str, int] = {}
        """How many commands it has sent; one that goes out again under its id counts once."""
        self.reply: ReplySent | None = None
        self._open: dict[str, AttemptBegun | CommandSent] = {}

    def add(self, record: Record) -> None:
        """Fold one record in."""
        match record:
            case StepFinished():
                self._finish(record)
            case AttemptBegun():
                self._tried(record.step_id, unknown=record.again or record.step_id in self._open)
                self._open[record.step_id] = record
            case WaitBegun():
                self.waits[record.step_id] = record
            case EventsTaken():
                self.taken.update(record.events)
            case CommandSent():
                self._open[record.step_id] = self.sent[record.step_id] = record
                self.unanswered.pop(record.step_id, None)
                self.asked[record.step_id] = self.asked.get(record.step_id, 0) + record.is_new
            case ReplySent():
                self.reply = record
            case AttemptFailed():
                self.attempts.setdefault(record.step_id, []).append(record)
                self.unanswered.pop(record.step_id, None)
                self._over(record.step_id)
                self._tried(record.step_id, unknown=record.unknown or self._is_unsettled(record.step_id, record.error))
            case BranchTaken():
                self.branches[record.step_id] = record.branch
            case ErrorCaught():
                self.caught[record.step_id] = record
                self.steps[record.step_id] = _seen(StepState.FAILED, None, record.error, record.attempts)
                self._over(record.step_id)
                self._tried(record.step_id, unknown=record.unknown or self._is_unsettled(record.step_id, record.error))
            case RunFailed():
                self._fail(record)
            case UndoFinished():
                self.undone[record.step_id] = record
                self.last_time = record.finished_at
                self._over(record.step_id)
            case Intervention():
                self._intervene(record)

    def has_stopped(self, steps: Iterable[Step]) -> bool:
        """Whether a `stop` among these steps, wherever it stands, was reached."""
        reached = {
            step_id
            for step_id, record in self.finished.items()
            if record.action == "stop" and record.state is StepState.COMPLETED
        }
        return bool(reached) and any(step.id in reached for step in walk(steps))

    def _finish(self, record: StepFinished) -> None:
        self.finished[record.step_id] = record
        seen = _seen(record.state, record.output, record.error, record.attempts)
        self.steps[record.step_id] = seen if record.event is None else {**seen, "event": record.event}
        self.last_time = record.finished_at
        self._over(record.step_id)
        if record.state is StepState.COMPLETED:
            self.completed.append(record.step_id)
            self.pivoted = self.pivoted or record.pivot
            if record.action == "set":
                self.variables.update(record.output)
        done = record.state is StepState.COMPLETED
        unknown = record.unknown or self._is_unsettled(record.step_id, record.error)
        self._tried(record.step_id, unknown=done or unknown)

    def _is_unsettled(self, step_id: str, error: Error | None) -> bool:
        """Whether it is a command, and who did it says itself that it was cut short."""
        return step_id in self.sent and error is not None and error.type in UNSETTLED

    def _fail(self, record: RunFailed) -> None:
        self.failure = record.error
        self.cancelled = record.cancelled
        for step_id in list(self._open):  # begun before a crash, and never heard of again
            self._over(step_id)
            self._tried(step_id, unknown=True)

    def _over(self, step_id: str) -> None:
        self._open.pop(step_id, None)

    def _tried(self, step_id: str, *, unknown: bool) -> None:
        """Later counts: a step that is tried again and completes was done then."""
        if unknown:
            if step_id in self.touched:
                self.touched.remove(step_id)
            self.touched.append(step_id)

    # --- a person lets the run go on

    def _intervene(self, record: Intervention) -> None:
        if record.action != "retry" or record.anew is not None:
            return
        if record.was is RunState.COMPENSATION_FAILED:
            self._reopen_undoing()
        else:
            self._reopen(record.from_step)
        self.revived_at = record.at

    def _reopen_undoing(self) -> None:
        """What could not be undone is tried again; what was undone stays so."""
        for step_id in [step_id for step_id, record in self.undone.items() if record.state is StepState.FAILED]:
            ended, sent = self.undone.pop(step_id), self.sent.pop(step_id, None)
            if sent is not None and ended.unknown:
                self.unanswered[step_id] = sent
            self.attempts.pop(step_id, None)
        self._reopen_failed_path(self._program.on_failure)

    def _reopen(self, from_step: str | None) -> None:
        """The failed step is tried again, or `from_step` and all that stand after it run again."""
        for step in walk(self._program.on_failure):
            self._forget(step.id)
        failure, self.failure, self.cancelled = self.failure, None, False
        self.undone.clear()  # nothing was; what was not wanted then may be when it fails again
        if from_step is not None:
            self._reopen_from(from_step)
        elif failure is not None:
            self._reopen_failed_path(self._program.steps)
        self.pivoted = any(self.finished[step_id].pivot for step_id in self.completed)
        self.variables.clear()
        for step_id in self.completed:
            if self.finished[step_id].action == "set":
                self.variables.update(self.finished[step_id].output)

    def _reopen_failed_path(self, steps: tuple[Step, ...]) -> None:
        """The step that failed, and the blocks around it, which go on where they were."""
        step = next((step for step in steps if self._broke_off(step)), None)
        if step is None:
            return
        inner = _children(step, self.branches.get(step.id), self.caught.get(step.id))
        if inner:
            self._unfinish(step.id)
            self._reopen_failed_path(inner)
        else:
            self._forget(step.id)

    def _broke_off(self, step: Step) -> bool:
        """Whether the steps ended here: it failed, and no catch has dealt with that to its own end."""
        record = self.finished.get(step.id)
        if record is None or record.state not in (StepState.FAILED, StepState.CANCELLED):
            return False
        caught = self.caught.get(step.id)
        return caught is None or any(self._broke_off(inner) for inner in step.catches[caught.catch].steps)

    def _reopen_from(self, from_step: str) -> None:
        order = [step.id for step in walk(self._program.steps)]
        for step_id in order[order.index(from_step) :] if from_step in order else ():
            self._forget(step_id)
        for step_id in _around(self._program.steps, from_step):
            self._unfinish(step_id)

    def _unfinish(self, step_id: str) -> None:
        """It is not over; the branch that it took, or the catch, stands."""
        self.finished.pop(step_id, None)
        caught = self.caught.get(step_id)
        self.steps[step_id] = (
            _SKIPPED if caught is None else _seen(StepState.FAILED, None, caught.error, caught.attempts)
        )
        for ids in (self.completed, self.touched):
            if step_id in ids:
                ids.remove(step_id)

    def _forget(self, step_id: str) -> None:
        ended = self.finished.get(step_id)
        error = ended.error if ended is not None and ended.unknown else None
        if step_id in self.sent and error is not None and error.type == "timeout":  # another error is an answer's
            self.unanswered[step_id] = self.sent[step_id]
        for known in (self.attempts, self.branches, self.caught, self._open, self.sent, self.waits):
            known.pop(step_id, None)
        self._unfinish(step_id)


_SKIPPED: dict[str, Any] = {"output": None, "state": "skipped", "error": None, "attempts": 0}


def _seen(state: StepState, output: Any, error: Error | None, attempts: int) -> dict[str, Any]:
    shown = msgspec.structs.asdict(error) if error is not None else None
    return {"output": output, "state": str(state), "error": shown, "attempts": attempts}


def _every(program: Program) -> Iterator[Step]:
    return walk(program.steps + program.on_failure)


def walk(steps: Iterable[Step]) -> Iterator[Step]:
    """These steps and all inside them, in the order of the file; compensations are none."""
    for step in steps:
        yield step
        for block in _blocks(step):
            yield from walk(block)


def _blocks(step: Step) -> Iterator[tuple[Step, ...]]:
    if isinstance(step, Switch):
        for branch in step.branches:
            yield branch.steps
    for catch in step.catches:
        yield catch.steps


def _children(step: Step, branch: int | None, caught: ErrorCaught | None) -> tuple[Step, ...]:
    """The steps inside that it was at: those of its catch, else those of the branch that it took."""
    if caught is not None:
        return step.catches[caught.catch].steps
    return step.branches[branch].steps if isinstance(step, Switch) and branch is not None else ()


def _around(steps: tuple[Step, ...], step_id: str) -> tuple[str, ...]:
    """The ids of the steps that a step stands inside of, outermost first."""
    for step in steps:
        if step.id == step_id:
            return ()
        for block in _blocks(step):
            if any(inner.id == step_id for inner in walk(block)):
                return (step.id, *_around(block, step_id))
    return ()
