"""What a run's records say: which steps are over, with what, and what was tried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from runner.plan import Program, Step, Switch
from runner.records import (
    AttemptFailed,
    BranchTaken,
    Error,
    ErrorCaught,
    Record,
    RunFailed,
    StepFinished,
    StepState,
    UndoFinished,
)


class History:
    """The folded records of one run. `add` is the only way to change it, for old records and new ones alike."""

    def __init__(self, program: Program) -> None:
        self.finished: dict[str, StepFinished] = {}
        self.branches: dict[str, int | None] = {}
        self.caught: dict[str, ErrorCaught] = {}
        self.attempts: dict[str, list[AttemptFailed]] = {}
        self.undone: dict[str, UndoFinished] = {}
        self.completed: list[str] = []
        """Ids in the order of completion."""
        self.failure: Error | None = None
        """Why the run's own steps ended, once they did."""
        self.variables: dict[str, Any] = {}
        self.steps: dict[str, dict[str, Any]] = {step.id: _SKIPPED for step in _every(program)}
        """`steps` as expressions see it: what did not run is skipped."""
        self.last_time: str | None = None
        """When the latest step ended: what `now()` says in the next one, also after a crash."""

    def add(self, record: Record) -> None:
        """Fold one record in."""
        match record:
            case StepFinished():
                self._finish(record)
            case AttemptFailed():
                self.attempts.setdefault(record.step_id, []).append(record)
            case BranchTaken():
                self.branches[record.step_id] = record.branch
            case ErrorCaught():
                self.caught[record.step_id] = record
                self.steps[record.step_id] = _seen(StepState.FAILED, None, record.error, record.attempts)
            case RunFailed():
                self.failure = record.error
            case UndoFinished():
                self.undone[record.step_id] = record
                self.last_time = record.finished_at

    def _finish(self, record: StepFinished) -> None:
        self.finished[record.step_id] = record
        self.steps[record.step_id] = _seen(record.state, record.output, record.error, record.attempts)
        self.last_time = record.finished_at
        if record.state is StepState.COMPLETED:
            self.completed.append(record.step_id)
            if record.action == "set":
                self.variables.update(record.output)


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
        if isinstance(step, Switch):
            for branch in step.branches:
                yield from walk(branch.steps)
        for catch in step.catches:
            yield from walk(catch.steps)
