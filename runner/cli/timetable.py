"""`flowrun explain retry`: when each attempt of a handler's steps happens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

from runner.cli import output
from runner.delays import attempts
from runner.diagnostics import did_you_mean
from runner.engine.timetable import undoing_s, unknown, worst_of, worst_s
from runner.errors import NotFoundError
from runner.plan import Jitter, Plan, Program, RetryPolicy, Send, Step, Use, walk
from runner.times import format_duration

SHOWN = 10
"""So many attempts of a step are shown."""


def program(plan: Plan, name: str) -> Program:
    """The handler `flow.handler`, or the only one that is called so. Raises NotFoundError."""
    if name in plan.programs:
        return plan.programs[name]
    found = [program for full, program in plan.programs.items() if full.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(program.name for program in found)
        raise NotFoundError(f'two flows have a handler "{name}"', hint=f"which one: {names}?")
    hint = did_you_mean(name, plan.programs) or f"there are: {', '.join(plan.programs)}"
    raise NotFoundError(f'there is no handler "{name}"', hint=hint)


def text(program: Program) -> Iterator[str]:
    """Each step with its policy and its attempts, and the whole."""
    yield output.paint(program.name, "bold") + f"  ({program.span})"
    for title, step in _tried(program):
        yield ""
        yield f"{output.paint(step.id, 'bold')}  {title}{step.action} {step.target}"
        yield f"  {_policy(step.retry)}; each attempt within {format_duration(step.timeout_s)}"
        yield from (f"  {line}" for line in _table(step))
    yield ""
    yield from _whole(program)


def as_json(program: Program) -> dict[str, object]:
    """The same for programs; what has no end is null."""
    return {
        "handler": program.name,
        "steps": [
            {
                "id": step.id,
                "action": step.action,
                "target": step.target,
                "max_attempts": step.retry.max_attempts,
                "timeout_s": step.timeout_s,
                "attempts": [
                    {"attempt": a.number, "delay_s": a.delay_s, "begins_s": a.begins_s, "ends_s": a.ends_s}
                    for a in islice(attempts(step.retry, step.timeout_s), 100)
                ],
                "worst_s": _or_none(worst_s(step)),
            }
            for _, step in _tried(program)
        ],
        "timeout_s": program.timeout_s,
        "worst_s": _or_none(worst_of(program.steps)),
        "undoing_s": _or_none(undoing_s(program.steps)),
        "on_failure_s": _or_none(worst_of(program.on_failure)),
        "not_counted": [step.id for step in unknown(program.steps)],
    }


def _tried(program: Program) -> Iterator[tuple[str, Use | Send]]:
    """The steps that can be tried again, each with a word of what it is if it is none of the usual ones."""
    for title, steps in (("", program.steps), ("on failure: ", program.on_failure)):
        for step in walk(steps):
            if isinstance(step, Use | Send):
                yield title, step
            for undo in step.undo:
                if isinstance(undo.step, Use | Send):
                    yield f"undo of {step.id}: ", undo.step


def _policy(policy: RetryPolicy) -> str:
    if policy.max_attempts == 1:
        return "once"
    tries = "tried without end" if policy.max_attempts is None else f"at most {policy.max_attempts} attempts"
    growth = f" ×{policy.multiplier:g}" if policy.backoff == "exponential" else ""
    said = [tries, f"{policy.backoff}{growth} from {format_duration(policy.delay_s)}"]
    said.append(f"capped at {format_duration(policy.max_delay_s)}")
    if isinstance(policy.jitter, Jitter):
        low, high = format_duration(policy.jitter.low_s), format_duration(policy.jitter.high_s)
        said.append(f"jitter adds {low} to {high}")
    else:
        said.append(f"jitter {policy.jitter}")
    if policy.max_duration_s is not None:
        said.append(f"none begins after {format_duration(policy.max_duration_s)}")
    if policy.on is not None:
        said.append(f"only {', '.join(policy.on)}")
    if policy.except_:
        said.append(f"not {', '.join(policy.except_)}")
    return ", ".join(said)


def _table(step: Use | Send) -> Iterator[str]:
    found = list(islice(attempts(step.retry, step.timeout_s), SHOWN + 1))
    rows = [
        (
            str(a.number),
            "at once" if a.number == 1 else _between(a.delay_s),
            format_duration(a.begins_s[0]),
            format_duration(a.begins_s[1]),
            format_duration(a.ends_s),
        )
        for a in found[:SHOWN]
    ]
    yield from output.table(["ATTEMPT", "AFTER A DELAY OF", "BEGINS AT LEAST", "AT MOST", "HAS FAILED BY"], rows)
    if len(found) > SHOWN:
        worst = worst_s(step)
        yield "… without end" if math.isinf(worst) else f"… the last has failed by {format_duration(worst)}"


def _between(delay_s: tuple[float, float]) -> str:
    low, high = map(format_duration, delay_s)
    return low if low == high else f"{low} to {high}"


def _whole(program: Program) -> Iterator[str]:
    worst = worst_of(program.steps)
    yield f"All steps, at the worst: {_length(worst)}."
    for step in unknown(program.steps):
        yield f"  {_not_counted(step)}"
    if program.timeout_s is not None:
        kept = "which is longer" if worst <= program.timeout_s else "which ends it before"
        yield f"The handler's timeout is {_length(program.timeout_s)}, {kept}."
    undoing, on_failure = undoing_s(program.steps), worst_of(program.on_failure)
    if undoing:
        yield f"Then undoing all of it, at the worst: {_length(undoing)}."
    if on_failure:
        yield f"Then on_failure, at the worst: {_length(on_failure)}."


def _not_counted(step: Step) -> str:
    if step.action == "foreach":
        return f"{step.id}: one round of the loop is counted; it has one for each item"
    return f"{step.id}: {step.action} {step.target}".rstrip() + " has no length that is known beforehand"


def _length(seconds: float) -> str:
    return "without end" if math.isinf(seconds) else format_duration(seconds)


def _or_none(seconds: float) -> float | None:
    return None if math.isinf(seconds) else seconds
