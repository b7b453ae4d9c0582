"""What is to be undone, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

from runner.engine.history import History, walk
from runner.plan import Emit, Program, Step, Use


def undo_plan(program: Program, history: History) -> Iterator[tuple[Step, Use | Emit]]:
    """The compensations of every completed step, wherever it stands, in reverse order of completion.

    A step's own list is done in the order of the file.
    """
    steps = {step.id: step for step in walk(program.steps)}
    for step_id in reversed(history.completed):
        if (step := steps.get(step_id)) is not None:
            for undo in step.undo:
                yield step, undo.step
