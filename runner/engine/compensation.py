"""What is to be undone, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

from runner.engine.history import History, base
from runner.plan import Emit, Program, Send, Step, Use
from runner.records import StepState


def undo_plan(program: Program, history: History) -> Iterator[tuple[str, Step, Use | Send | Emit]]:
    """By the ids of the steps' records, the compensations of every completed step, wherever it stands, in reverse order
    of completion; and those that say `if: attempted` of every step that was tried with an unknown result.

    A step's own list is done in the order of the file.
    """
    for key in reversed(history.touched):
        step = program.every[base(key)]
        for undo in step.undo:
            if undo.attempted or is_completed(history, key):
                yield key, step, undo.step


def is_completed(history: History, key: str) -> bool:
    """Whether the step's result is known, and good."""
    record = history.finished.get(key)
    return record is not None and record.state is StepState.COMPLETED
