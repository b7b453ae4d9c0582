"""FR320 to FR325: expressions parse, and read only names that can exist where they stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from runner.diagnostics import Diagnostic, Related, did_you_mean, respelt
from runner.expressions import Expression, ExpressionSyntaxError, Read, parse_expression, parse_template
from runner.lang import traffic
from runner.lang.declare import FlowDecl, HandlerDecl, IngressDecl, ProjectionDecl, StepDecl, all_steps, scalars
from runner.lang.expression_syntax import explain
from runner.lang.project import Declarations
from runner.source import MappingNode, ScalarNode

_META = frozenset({"id", "type", "source", "subject", "time", "correlation_id", "causation_id"})
_LOGGED = _META | {"version"}
_RUN = frozenset({"id", "started_at"})
_STEP = frozenset({"output", "state", "error", "attempts", "event"})
_ERROR = frozenset({"type", "message", "retryable", "details", "step"})
_GUARD = frozenset({"env", "secrets"})
_META_ONLY = frozenset({"event", "meta"})
_ROUTE = _META_ONLY | {"env"}
_IN_STEPS = _ROUTE | {"steps", "vars", "run", "secrets"}
_REQUEST = frozenset({"body", "headers", "query", "path", "client_ip"})
_FIELDS = {"meta": _META, "run": _RUN, "error": _ERROR, "request": _REQUEST}


@dataclass(frozen=True, slots=True)
class _Place:
    """What can be seen where an expression stands."""

    flow: FlowDecl
    names: frozenset[str]
    steps: dict[str, StepDecl] = field(default_factory=dict)
    variables: set[str] = field(default_factory=set)
    later: dict[str, StepDecl] = field(default_factory=dict)
    blocks: dict[str, StepDecl] = field(default_factory=dict)
    """The outermost `parallel` or `foreach` around each step that stands in one."""
    parameters: tuple[str, ...] = ()
    """Of the path of an endpoint."""
    meta: frozenset[str] = _META


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Faults of every expression and template of every flow."""
    for flow in project.flows:
        for event in flow.events:
            if event.subject is not None:
                yield from _template(event.subject, _Place(flow, frozenset({"event"})))
        for route in flow.routes:
            yield from _bare(route.when, _Place(flow, _ROUTE))
        for schedule in flow.schedules:
            for node in scalars(schedule.inputs):
                yield from _template(node, _Place(flow, frozenset({"slot", "env"})))
        for endpoint in flow.ingress:
            yield from _endpoint(endpoint, flow)
        for projection in flow.projections:
            yield from _projection(projection, flow)
        for handler in flow.handlers:
            is_command = bool(project.commands_of(handler)) or project.seems_to_do_a_command(handler)
            yield from _handler(flow, handler, is_command=is_command)


def _endpoint(endpoint: IngressDecl, flow: FlowDecl) -> Iterator[Diagnostic]:
    seeing = _Place(flow, frozenset({"request", "env", "secrets"}), parameters=endpoint.parameters)
    limit = endpoint.body.get("rate_limit")
    key = limit.get("key") if isinstance(limit, MappingNode) else None
    for value in (endpoint.inputs, key):
        for node in scalars(value):
            yield from _template(node, seeing)
    for guard in ("auth", "verify"):
        for node in scalars(endpoint.body.get(guard)):
            yield from _template(node, _Place(flow, _GUARD))


def _projection(projection: ProjectionDecl, flow: FlowDecl) -> Iterator[Diagnostic]:
    folding = _Place(flow, _META_ONLY | {"state"}, meta=_LOGGED)
    for key in dict.fromkeys(fold.key for fold in projection.folds if fold.key is not None):
        yield from _template(key, _Place(flow, _META_ONLY, meta=_LOGGED))
    for fold in projection.folds:
        for operation in ("set", "increment", "append"):
            for node in scalars(fold.body.get(operation)):
                yield from _template(node, folding)
    for node in scalars(projection.body.get("auth")):
        yield from _template(node, _Place(flow, _GUARD))


def _handler(flow: FlowDecl, handler: HandlerDecl, *, is_command: bool) -> Iterator[Diagnostic]:
    seen = frozenset({"command" if is_command else "event"})
    for _, key in traffic.keys(handler):
        yield from _template(key, _Place(flow, _ROUTE - {"event"} | seen))
    for cancel in handler.cancel_on:
        for node in scalars(cancel.match):
            yield from _template(node, _Place(flow, _ROUTE - {"event"} | seen))
    every = {step.id: step for step in all_steps(handler.steps + handler.on_failure)}
    place = _Place(flow, _IN_STEPS - {"event"} | seen, {}, set(), every, dict(_blocks(handler)))
    yield from _steps(handler.steps, place)
    for node in scalars(handler.body.get("reply")):
        yield from _template(node, place)
    # In on_failure every step of the handler may be read: it may have run, or not.
    yield from _steps(handler.on_failure, replace(place, names=place.names | {"error"}))


def _blocks(handler: HandlerDecl) -> Iterator[tuple[str, StepDecl]]:
    for step in all_steps(handler.steps + handler.on_failure):
        if step.action in ("parallel", "foreach"):
            inner = all_steps(tuple(inner for branch in step.branches for inner in branch.steps))
            yield from ((each.id, step) for each in inner)


def _steps(steps: tuple[StepDecl, ...], place: _Place) -> Iterator[Diagnostic]:
    for step in steps:
        yield from _step(step, place)


def _step(step: StepDecl, place: _Place) -> Iterator[Diagnostic]:
    yield from _bare(step.when, place)
    yield from _bare(step.items, place)
    if step.action != "foreach":
        yield from _bare(step.until, place)
    yield from _values(step, place)
    for branch in step.branches:
        inside = _inside(step, place)
        yield from _bare(branch.when, place)
        yield from _steps(branch.steps, inside)
        if step.action == "foreach":
            yield from _bare(step.until, inside)
    if step.action == "set" and isinstance(step.target, MappingNode):
        place.variables.update(name for name, _, _ in step.target.items())
    place.steps[step.id] = step
    undoing = replace(place, names=place.names | {"error", "output"})
    for undo in step.undo:
        yield from _bare(undo.when, undoing)
        yield from _values(undo, undoing)
    for catch in step.catches:
        yield from _steps(catch.steps, replace(place, names=place.names | {"error"}))


def _inside(step: StepDecl, place: _Place) -> _Place:
    """What the steps in a branch see. What those of a `parallel` or a `foreach` give is not seen outside of it."""
    if step.action == "switch":
        return place
    own = {"index", "item" if step.item is None else str(step.item.value)} if step.action == "foreach" else set()
    return replace(place, names=place.names | own, steps=dict(place.steps), variables=set(place.variables))


def _values(step: StepDecl, place: _Place) -> Iterator[Diagnostic]:
    for node in scalars(step.inputs):
        yield from _template(node, place)
    if step.expected_version is not None:
        yield from _template(step.expected_version, place)


def _bare(node: ScalarNode | None, place: _Place) -> Iterator[Diagnostic]:
    if node is not None and isinstance(node.value, str):
        yield from _parsed(node, place, bare=True)


def _template(node: ScalarNode, place: _Place) -> Iterator[Diagnostic]:
    if isinstance(node.value, str):
        yield from _parsed(node, place, bare=False)


def _parsed(node: ScalarNode, place: _Place, *, bare: bool) -> Iterator[Diagnostic]:
    text = str(node.value)
    try:
        expression: Expression = parse_expression(text) if bare else parse_template(text)
    except ExpressionSyntaxError as error:
        yield explain(error, node)
        return
    for read in expression.reads:
        yield from _read(read, node, place)


def _read(read: Read, node: ScalarNode, place: _Place) -> Iterator[Diagnostic]:
    root, *rest = read.path
    if root not in place.names:
        yield _at(read, 0, node, "FR321", f'"{root}" is not known here', _why_not(root, place), known=place.names)
    elif not rest:
        return
    elif root == "steps":
        yield from _step_read(read, node, place)
    elif root == "vars" and rest[0] not in place.variables:
        help = did_you_mean(rest[0], place.variables) or "no set before this step makes it"
        yield _at(read, 1, node, "FR323", f'there is no variable "{rest[0]}" here', help, known=place.variables)
    elif root in ("env", "secrets"):
        declared = place.flow.env if root == "env" else place.flow.secrets
        if rest[0] not in declared:
            help = did_you_mean(rest[0], declared) or f"list it at the top: uses: {{{root}: [{rest[0]}]}}"
            yield _at(read, 1, node, "FR324", f'{root} "{rest[0]}" is not declared', help, known=declared)
    elif root in _FIELDS and rest[0] not in (fields := place.meta if root == "meta" else _FIELDS[root]):
        help = did_you_mean(rest[0], fields) or f"it has: {', '.join(sorted(fields))}"
        yield _at(read, 1, node, "FR325", f'"{root}" has no "{rest[0]}"', help, known=fields)
    elif root == "request" and rest[0] == "path" and len(rest) > 1 and rest[1] not in place.parameters:
        names = ", ".join(f"{{{name}}}" for name in place.parameters)
        help = did_you_mean(rest[1], place.parameters) or f"the path names: {names or 'nothing'}"
        yield _at(read, 2, node, "FR325", f'"request.path" has no "{rest[1]}"', help, known=place.parameters)


def _step_read(read: Read, node: ScalarNode, place: _Place) -> Iterator[Diagnostic]:
    name = read.path[1]
    if name not in place.steps:
        if name in place.later:
            related = (Related("it stands here", place.later[name].node.span),)
            block, summary, help = place.blocks.get(name), f'step "{name}" does not stand before this one', None
            if block is not None and block.id in place.steps:
                summary = f'step "{name}" is not seen outside of its {block.action}'
                help = f"only the block's output is: steps.{block.id}.output"
            yield _at(read, 1, node, "FR322", summary, help, related)
        else:
            help = did_you_mean(name, place.steps) or "only steps that stand before this one can be read"
            yield _at(read, 1, node, "FR322", f'there is no step "{name}"', help, known=place.steps)
    elif len(read.path) > 2 and read.path[2] not in _STEP:
        help = did_you_mean(read.path[2], _STEP) or f"its result is steps.{name}.output"
        yield _at(read, 2, node, "FR325", f'a step has no "{read.path[2]}"', help, known=_STEP)


def _why_not(root: str, place: _Place) -> str | None:
    if root == "event" and "command" in place.names:
        return "this handler does a command: write command"
    if root == "command":
        return "no command names this handler: write event" if "env" in place.names else "write event"
    if root == "slot":
        return "slot is seen in schedules"
    if root == "state":
        return "state is seen in the operations of a projection"
    if root in ("env", "secrets") and place.names >= _META_ONLY and "env" not in place.names:
        return "an entry is folded from events alone, so that folding them again gives the same"
    if root == "request":
        return "a request cannot say what it must bear" if place.names == _GUARD else "request is seen in ingress"
    if root == "error":
        return "error is seen in catch, compensate and on_failure"
    if root == "output":
        return "output is seen in compensate; elsewhere write steps.<id>.output"
    if root == "secrets":
        return "secrets are seen in steps and ingress only"
    if root in ("item", "index"):
        return f"{root} is seen in a foreach"
    return did_you_mean(root, place.names) or f"known here: {', '.join(sorted(place.names))}"


def _at(
    read: Read,
    segment: int,
    node: ScalarNode,
    code: str,
    summary: str,
    help: str | None,
    related: tuple[Related, ...] = (),
    *,
    known: Iterable[str] = (),
) -> Diagnostic:
    """`known` are the words of which one may have been meant."""
    word, at = read.path[segment], read.offsets[segment]
    fix = respelt(node, word, known, at)
    span = node.part(at, len(word))
    return Diagnostic(code=code, summary=summary, span=span, help=help, related=related, fix=fix)
