"""How long steps take at the worst. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from runner.delays import attempts
from runner.plan import Foreach, Parallel, Send, Step, Switch, Use, Wait, WaitFor, walk


def worst_s(step: Use | Send) -> float:
    """Until the last attempt of a step has failed, at the latest; infinite if the attempts are unlimited."""
    if step.retry.max_attempts is None and step.retry.max_duration_s is None:
        return math.inf
    if step.retry.max_attempts is None and step.retry.max_duration_s is not None:
        return step.retry.max_duration_s + step.timeout_s
    return max(attempt.ends_s for attempt in attempts(step.retry, step.timeout_s))


def worst_of(steps: Iterable[Step]) -> float:
    """How long steps take, one after the other, at the worst: each needs its last attempt, the longest branch is taken,
    a loop goes one round. Waits of which no length is known count nothing: `unknown` names them."""
    return sum(_worst(step) for step in steps)


def undoing_s(steps: Iterable[Step]) -> float:
    """How long all compensations take, one after the other, at the worst; each round of a loop has its own."""
    undoing = (undo.step for step in walk(steps) for undo in step.undo)
    return sum(worst_s(step) for step in undoing if isinstance(step, Use | Send))


def unknown(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps of which `worst_of` knows only a part: loops, and waits until something happens."""
    for step in walk(steps):
        match step:
            case Foreach(timeout_s=None) | Wait(duration_s=None) | WaitFor(timeout_s=None):
                yield step


def _worst(step: Step) -> float:
    caught = max((worst_of(catch.steps) for catch in step.catches), default=0.0)
    return _own(step) + caught


def _own(step: Step) -> float:
    match step:
        case Use() | Send():
            return worst_s(step)
        case Switch():
            return max((worst_of(branch.steps) for branch in step.branches), default=0.0)
        case Parallel():
            longest = max((worst_of(branch) for branch in step.branches.values()), default=0.0)
            return longest if step.timeout_s is None else min(longest, step.timeout_s)
        case Foreach():
            return worst_of(step.steps) if step.timeout_s is None else step.timeout_s
        case Wait():
            return step.duration_s or 0.0
        case WaitFor():
            return step.timeout_s or 0.0
    return 0.0
