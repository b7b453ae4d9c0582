"""`flowrun plan`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import click

from runner.cli import difference, options, output
from runner.cli.compiled import compiled
from runner.expressions import Expression
from runner.plan import Emit, Fail, Foreach, Parallel, Plan, Program, RateLimit, Send, Step, Switch, Use, Wait, WaitFor
from runner.settings import Settings, load_settings
from runner.times import format_duration
from runner.values import as_text


@click.command("plan")
@options.settings
@click.option("--diff", is_flag=True, help="Compare with the live broker: what start would add, and what it refuses.")
@options.as_json
def command(root: Path, broker: str | None, store: str | None, diff: bool, as_json: bool) -> None:
    """Show exchanges, queues, bindings and programs as the flow files declare them.

    With --diff exit code 1 says that something stands otherwise than planned, so that start would refuse.
    """
    if diff:
        _show_difference(load_settings(root, broker=broker, store=store), as_json)
        return
    plan = compiled(root).plan
    if as_json:
        output.echo(output.json_value(_as_json(plan)))
        return
    for line in _text(plan):
        output.echo(line)


def _show_difference(settings: Settings, as_json: bool) -> None:
    plan = compiled(settings.root, settings.project).plan
    planned, left_over = asyncio.run(difference.compare(settings, plan))
    if as_json:
        output.echo(output.json_value(difference.as_json(planned, left_over)))
    else:
        for line in difference.text(settings, planned, left_over):
            output.echo(line)
    if any(found.is_drift for found in planned):
        raise SystemExit(1)


def _text(plan: Plan) -> Iterator[str]:
    topology = plan.topology
    yield output.paint(f"project {plan.project}", "bold")
    yield ""
    yield from output.table(["EXCHANGE", "TYPE"], [(e.name, e.type) for e in topology.exchanges])
    yield ""
    rows = [(q.name, " ".join(f"{k}={as_text(v)}" for k, v in sorted(q.arguments.items()))) for q in topology.queues]
    yield from output.table(["QUEUE", "ARGUMENTS"], rows)
    yield ""
    bindings = [(b.exchange, b.pattern, b.queue) for b in topology.bindings]
    yield from output.table(["EXCHANGE", "PATTERN", "QUEUE"], bindings)
    if plan.schedules:
        yield ""
        shown = [(s.name, s.cron, s.timezone, s.event) for s in plan.schedules]
        yield from output.table(["SCHEDULE", "CRON", "TIME ZONE", "EVENT"], shown)
    if plan.ingress:
        yield ""
        behind = [(e.method, e.path, f"command {e.command}" if e.event is None else e.event) for e in plan.ingress]
        yield from output.table(["METHOD", "PATH", "BECOMES"], behind)
    if plan.projections:
        yield ""
        folded = [(p.name, ", ".join(p.folds)) for p in plan.projections.values()]
        yield from output.table(["PROJECTION", "IS FOLDED FROM"], folded)
    for program in plan.programs.values():
        yield ""
        yield from _program(program)
    yield ""
    counts = (
        (len(topology.exchanges), "exchange"),
        (len(topology.queues), "queue"),
        (len(topology.bindings), "binding"),
        (len(plan.programs), "program"),
    )
    yield ", ".join(f"{number} {noun}{'' if number == 1 else 's'}" for number, noun in counts) + "."


def _program(program: Program) -> Iterator[str]:
    yield output.paint(program.name, "bold") + f"  ({program.span}, plan {program.plan_hash})"
    if program.command is not None:
        yield f"  does {program.command}"
    for route in program.routes:
        when = f" when {route.when.source}" if route.when is not None else ""
        yield f"  on {', '.join(sorted(route.events))}{when}"
    if program.idempotency is not None:
        yield f"  one run a key, until {format_duration(program.idempotency.ttl_s)} after its end"
    if program.timeout_s is not None:
        yield f"  within {format_duration(program.timeout_s)}"
    for cancel in program.cancel_on:
        yield f"  cancelled by {cancel.event}{_matching(cancel.fields)}"
    yield from (f"  {line}" for line in _traffic(program))
    yield from _steps(program.steps, "  ")
    if program.on_failure:
        yield "  on failure"
        yield from _steps(program.on_failure, "    ")


def _traffic(program: Program) -> Iterator[str]:
    """What holds its messages and runs in bounds."""
    gate, limit, breaker, feedback = program.gate, program.rate_limit, program.breaker, program.feedback
    if limit is not None:
        yield f"{'drops' if program.drops else 'refuses'} more than {_limit(limit)}"
    if gate is not None:
        if gate.partition is not None:
            yield "one after the other in each partition"
        if gate.slots is not None:
            yield f"{gate.slots.limit} at once for each value of a key"
        if gate.throttle is not None:
            yield f"begins no more than {_limit(gate.throttle)}"
        if gate.priority is not None:
            yield "by priority"
        yield f"queues {gate.most:,}, then {'refuses' if gate.rejects else 'takes no'} more"
    if breaker is not None:
        per = "a plugin" if breaker.per_plugin else "it"
        within, pause = format_duration(breaker.period_s), format_duration(breaker.pause_s)
        yield f"pauses for {pause} when {per} fails {breaker.failures} times within {within}"
    if feedback is not None:
        yield f"tells {feedback.event} above a lag of {feedback.above:,} and below {feedback.below:,}"


def _limit(limit: RateLimit) -> str:
    key = "" if limit.key is None else " for each value of a key"
    burst = "" if limit.burst == limit.limit else f", {limit.burst} at once"
    return f"{limit.limit:,} in {format_duration(limit.period_s)}{key}{burst}"


def _steps(steps: tuple[Step, ...], indent: str) -> Iterator[str]:
    for step in steps:
        when = f"  when {step.when.source}" if step.when is not None else ""
        pivot = "  pivot" if isinstance(step, Use | Send | Emit) and step.pivot else ""
        yield f"{indent}{step.id}  {step.action} {_target(step)}{when}{pivot}".rstrip()
        for undo in step.undo:
            also = " (also if its result is unknown)" if undo.attempted else ""
            yield f"{indent}  undo{also}: {undo.step.action} {_target(undo.step)}"
        if isinstance(step, Switch):
            for branch in step.branches:
                yield f"{indent}  {'default' if branch.when is None else 'when ' + branch.when.source}"
                yield from _steps(branch.steps, indent + "    ")
        if isinstance(step, Parallel):
            for name, steps in step.branches.items():
                yield f"{indent}  {name}"
                yield from _steps(steps, indent + "    ")
        if isinstance(step, Foreach):
            yield from _steps(step.steps, indent + "  ")
        for catch in step.catches:
            yield f"{indent}  catch {', '.join(catch.types) if catch.types is not None else 'all'}"
            yield from _steps(catch.steps, indent + "    ")


def _target(step: Step) -> str:
    match step:
        case Use() | Send():
            tries = step.retry.max_attempts
            return (
                f"{step.target}  (attempts {'unlimited' if tries is None else tries}, "
                f"timeout {format_duration(step.timeout_s)})"
            )
        case Emit():
            return step.event
        case Fail():
            return step.type
        case Parallel():
            return f"wait for {step.wait}{_timeout(step.timeout_s)}"
        case Foreach():
            until = f"  until {step.until.source}" if step.until is not None else ""
            at_once = f"  ({step.concurrency} at once)" if step.concurrency > 1 else ""
            return f"{step.item} in {step.items.source}{until}{at_once}{_timeout(step.timeout_s)}"
        case Wait():
            return format_duration(step.duration_s) if step.duration_s is not None else _until(step)
        case WaitFor():
            end = _timeout(step.timeout_s) or f"  {_until(step)}"
            return f"{step.target}{_matching(step.fields)}{end}".rstrip()
    return ""


def _timeout(timeout_s: float | None) -> str:
    return f"  (timeout {format_duration(timeout_s)})" if timeout_s is not None else ""


def _until(step: Wait | WaitFor) -> str:
    return f"until {step.until.source}" if step.until is not None else ""


def _source(expression: Expression | None) -> str | None:
    return None if expression is None else expression.source


def _matching(fields: tuple[str, ...]) -> str:
    return f" of the same {', '.join(fields)}" if fields else ""


def _as_json(plan: Plan) -> dict[str, object]:
    return {
        "project": plan.project,
        "exchanges": [{"name": e.name, "type": e.type} for e in plan.topology.exchanges],
        "queues": [{"name": q.name, "arguments": dict(q.arguments)} for q in plan.topology.queues],
        "bindings": [{"exchange": b.exchange, "queue": b.queue, "pattern": b.pattern} for b in plan.topology.bindings],
        "commands": [{"name": c.name, "handler": c.handler, "timeout_s": c.timeout_s} for c in plan.commands.values()],
        "schedules": [
            {"name": s.name, "cron": s.cron, "timezone": s.timezone, "emit": s.event, "catch_up": s.catch_up}
            for s in plan.schedules
        ],
        "projections": [{"name": p.name, "events": list(p.folds)} for p in plan.projections.values()],
        "ingress": [
            {"name": e.name, "method": e.method, "path": e.path, "emit": e.event, "command": e.command}
            for e in plan.ingress
        ],
        "programs": [_program_json(program) for program in plan.programs.values()],
    }


def _program_json(program: Program) -> dict[str, object]:
    return {
        "name": program.name,
        "plan_hash": program.plan_hash,
        "queue": program.queue,
        "command": program.command,
        "concurrency": program.concurrency,
        "timeout_s": program.timeout_s,
        "traffic": list(_traffic(program)),
        "cancel_on": [{"event": cancel.event, "match": list(cancel.fields)} for cancel in program.cancel_on],
        "routes": [{"events": sorted(route.events), "when": _source(route.when)} for route in program.routes],
        "steps": [_step_json(step) for step in program.steps],
        "on_failure": [_step_json(step) for step in program.on_failure],
    }


def _step_json(step: Step) -> dict[str, object]:
    described: dict[str, object] = {"id": step.id, "action": step.action, "place": str(step.span)}
    match step:
        case Use():
            described |= {
                "use": step.handler,
                "timeout_s": step.timeout_s,
                "max_attempts": step.retry.max_attempts,
            }
        case Send():
            described |= {
                "command": step.command,
                "timeout_s": step.timeout_s,
                "max_attempts": step.retry.max_attempts,
            }
        case Emit():
            described |= {"emit": step.event}
        case Wait():
            described |= {"duration_s": step.duration_s, "until": _source(step.until)}
        case WaitFor():
            described |= {
                "events": list(step.events),
                "match": list(step.fields),
                "count": step.count,
                "timeout_s": step.timeout_s,
                "until": _source(step.until),
            }
        case Switch():
            described |= {"branches": [[_step_json(s) for s in branch.steps] for branch in step.branches]}
        case Parallel():
            branches = {name: [_step_json(s) for s in steps] for name, steps in step.branches.items()}
            described |= {"branches": branches, "wait": step.wait, "timeout_s": step.timeout_s}
        case Foreach():
            described |= {
                "in": step.items.source,
                "as": step.item,
                "concurrency": step.concurrency,
                "until": _source(step.until),
                "timeout_s": step.timeout_s,
                "do": [_step_json(s) for s in step.steps],
            }
    if step.undo:
        described["compensate"] = [
            {"if": "attempted" if undo.attempted else "completed", **_step_json(undo.step)} for undo in step.undo
        ]
    if isinstance(step, Use | Send | Emit):
        described["pivot"] = step.pivot
    if step.catches:
        described["catch"] = [
            {"on": list(c.types) if c.types is not None else None, "do": [_step_json(s) for s in c.steps]}
            for c in step.catches
        ]
    return described
