"""FR602: a secret goes to the plugin that needs it, and nowhere where it would be kept or shown.

Steps are walked as a run goes, with what holds a secret by then. A result of a plugin holds none: the engine masks it
before anybody reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from runner.diagnostics import Diagnostic, Related
from runner.expressions import Expression, ExpressionSyntaxError, Read, parse_expression, parse_template
from runner.lang.declare import HandlerDecl, IngressDecl, StepDecl, scalars
from runner.lang.project import Declarations
from runner.source import MappingNode, Node, ScalarNode, Span

LOG = "log"
"""The plugin whose parameters are shown: the bundled one, which is all that it does."""

Path: TypeAlias = tuple[str, ...]
Held: TypeAlias = dict[Path, Span]
"""What holds a secret, as expressions read it (`("vars", "token")`), and where the secret came in."""


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Secrets that a flow lets into the store, into a message, an error or the log."""
    for flow in project.flows:
        for endpoint in flow.ingress:
            yield from _endpoint(endpoint)
        for handler in flow.handlers:
            yield from _handler(handler)


def _endpoint(endpoint: IngressDecl) -> Iterator[Diagnostic]:
    limit = endpoint.body.get("rate_limit")
    key = limit.get("key") if isinstance(limit, MappingNode) else None
    yield from _leaks(endpoint.inputs, "`emit`" if endpoint.command is None else "`command`", {})
    yield from _leaks(key, "the key of a rate limit", {})


def _handler(handler: HandlerDecl) -> Iterator[Diagnostic]:
    held: Held = {}
    yield from _steps(handler.steps, held)
    yield from _leaks(handler.body.get("reply"), "a reply", held)
    yield from _steps(handler.on_failure, held)


# --- the walk


def _steps(steps: Iterable[StepDecl], held: Held) -> Iterator[Diagnostic]:
    for step in steps:
        yield from _step(step, held)


def _step(step: StepDecl, held: Held) -> Iterator[Diagnostic]:
    before = dict(held)
    yield from _values(step, held)
    match step.action:
        case "set":
            _set(step, before, held)
        case "switch":
            yield from _switch(step, held)
        case "parallel" | "foreach":
            yield from _lines(step, held)
    for undo in step.undo:
        yield from _values(undo, held)
    for catch in step.catches:
        caught = dict(held)
        yield from _steps(catch.steps, caught)
        _move(caught, _last(catch.steps), _output(step))
        held |= caught
    if step.when is not None:
        held |= before  # the step may not have run


def _values(step: StepDecl, held: Held) -> Iterator[Diagnostic]:
    match step.action:
        case "use" if step.name == LOG:
            yield from _leaks(step.inputs, "a log line", held)
        case "emit" | "command" | "set" | "fail" | "wait" | "wait_for":
            yield from _leaks(step.inputs, f"`{step.action}`", held)
    if step.action in ("wait", "wait_for"):
        yield from _leaks(step.until, f"`{step.action}`", held, parse_expression)
    yield from _leaks(step.items, "`foreach`, which keeps its list", held, parse_expression)


def _set(step: StepDecl, before: Held, held: Held) -> None:
    if not isinstance(step.target, MappingNode):
        return
    for name, _, value in step.target.items():
        variable = ("vars", name)
        for path in [path for path in held if path[:2] == variable]:
            del held[path]
        origin = _origin(value, before, parse_template)
        if origin is not None:
            held[variable] = held[(*_output(step), name)] = origin


def _switch(step: StepDecl, held: Held) -> Iterator[Diagnostic]:
    ends: Held = {}
    for branch in step.branches:
        taken = dict(held)
        yield from _steps(branch.steps, taken)
        _move(taken, _last(branch.steps), _output(step))
        ends |= taken
    if all(branch.when is not None for branch in step.branches):
        ends |= held  # none may have held
    held.clear()
    held |= ends


def _lines(step: StepDecl, held: Held) -> Iterator[Diagnostic]:
    """Of branches side by side, and of rounds, only the output is seen outside."""
    item = "item" if step.item is None else str(step.item.value)
    for branch in step.branches:
        inside = dict(held)
        if step.action == "foreach":
            inside = {path: span for path, span in held.items() if path[0] != item}
            origin = _origin(step.items, held, parse_expression)
            inside |= {} if origin is None else {(item,): origin}
        yield from _steps(branch.steps, inside)
        output = _output(step) if branch.name is None else (*_output(step), str(branch.name.value))
        _move(inside, _last(branch.steps), output)
        held |= {path: span for path, span in inside.items() if path[: len(output)] == output}


def _output(step: StepDecl) -> Path:
    return ("steps", step.id, "output")


def _last(steps: tuple[StepDecl, ...]) -> Path | None:
    """The output of a list of steps: its last one's."""
    return _output(steps[-1]) if steps else None


def _move(held: Held, source: Path | None, target: Path) -> None:
    """What is read at `source` is read at `target` as well."""
    if source is not None:
        below = {path[len(source) :]: span for path, span in held.items() if path[: len(source)] == source}
        held |= {(*target, *rest): span for rest, span in below.items()}


# --- one value


def _leaks(
    node: Node | None, what: str, held: Held, parse: Callable[[str], Expression] = parse_template
) -> Iterator[Diagnostic]:
    """What stands at `node` is kept or shown by `what`."""
    for read, span, origin in _flowing(node, held, parse):
        if origin is not None:
            subject = f'"{".".join(read.path)}" holds a secret, which'
        else:
            subject = f'secret "{read.path[1]}"' if len(read.path) > 1 else "a secret"
        yield Diagnostic(
            code="FR602",
            summary=f"{subject} would be stored or shown by {what}",
            span=span,
            help="give it to the plugin that needs it, in its own `with`",
            related=() if origin is None else (Related("the secret comes in here", origin),),
        )


def _flowing(
    node: Node | None, held: Held, parse: Callable[[str], Expression]
) -> Iterator[tuple[Read, Span, Span | None]]:
    """The reads that bring a secret into a value, each with its place, and where the secret came in if not there."""
    for text in scalars(node):
        for read in _reads(text, parse):
            if read.tested:
                continue
            if read.path[0] == "secrets":
                yield read, _place(text, read, 2), None
            elif (known := next((path for path in held if _overlap(path, read.path)), None)) is not None:
                yield read, _place(text, read, len(known)), held[known]


def _origin(node: Node | None, held: Held, parse: Callable[[str], Expression]) -> Span | None:
    """Where the first secret that a value has came in; None if it has none."""
    return next((origin or span for _, span, origin in _flowing(node, held, parse)), None)


def _reads(text: ScalarNode, parse: Callable[[str], Expression]) -> tuple[Read, ...]:
    try:
        return parse(str(text.value)).reads
    except ExpressionSyntaxError:
        return ()  # another rule's


def _place(text: ScalarNode, read: Read, segments: int) -> Span:
    """The last of so many segments of what is read."""
    last = min(segments, len(read.path)) - 1
    return text.part(read.offsets[last], len(read.path[last]))


def _overlap(one: Path, other: Path) -> bool:
    """Whether one is the other, or a part of it."""
    return all(left == right for left, right in zip(one, other, strict=False))
