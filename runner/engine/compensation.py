"""What is to be undone, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

from runner.engine.history import History, walk
from runner.plan import Emit, Program, Send, Step, Use
from runner.records import StepState


def undo_plan(program: Program, history: History) -> Iterator[tuple[Step, Use | Send | Emit]]:
    """The compensations of every completed step, wherever it stands, in reverse order of completion; and those that
    say `if: attempted` of every step that was tried with an unknown result.

    A step's own list is done in the order of the file.
    """
    steps = {step.id: step for step in walk(program.steps)}
    for step_id in reversed(history.touched):
        if (step := steps.get(step_id)) is not None:
            for undo in step.undo:
                if undo.attempted or is_completed(history, step_id):
                    yield step, undo.step


def is_completed(history: History, step_id: str) -> bool:
    """Whether the step's result is known, and good."""
    record = history.finished.get(step_id)
    return record is not None and record.state is StepState.COMPLETED
