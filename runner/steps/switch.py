"""`switch`: which branch is taken."""

from __future__ import annotations

from runner.expressions import Scope, holds
from runner.plan import Switch


def choose(step: Switch, scope: Scope) -> int | None:
    """The number, from 0, of the first branch that holds, or of the default; None if there is none.

    Raises ExpressionError.
    """
    for number, branch in enumerate(step.branches):
        if branch.when is None or holds(branch.when.evaluate(scope)):
            return number
    return None
