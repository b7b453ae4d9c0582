"""FR112, FR113, FR212, FR326: a projection's entries have keys, and folding them again gives the same."""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import nodes

from runner.diagnostics import Diagnostic, did_you_mean, respelt
from runner.expressions import ExpressionSyntaxError, parse_template
from runner.lang.declare import FoldDecl, ProjectionDecl, StepDecl, scalars
from runner.lang.project import Declarations
from runner.source import MappingNode, ScalarNode, plain

_OF_THE_MOMENT = {"now": "meta.time is when the event was", "uuid": "meta.id tells one event from another"}


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Read models that could not be folded, or not twice alike, and reads of such as there are none."""
    for flow in project.flows:
        for projection in flow.projections:
            for fold in projection.folds:
                yield from _key(projection, fold)
                yield from _operations(fold)
                yield from _of_the_moment(fold)
    if project.complete:
        for _, _, step in project.steps():
            yield from _reading(project, step)


def _key(projection: ProjectionDecl, fold: FoldDecl) -> Iterator[Diagnostic]:
    if fold.key is None:
        summary = f'which entry of "{projection.name}" does {fold.event.value} change?'
        help = 'give the projection a key, such as key: "{{ event.order_id }}", or the event one of its own'
        yield Diagnostic(code="FR112", summary=summary, span=fold.event.span, help=help)


def _operations(fold: FoldDecl) -> Iterator[Diagnostic]:
    if plain(fold.body.get("delete")) is True:
        for _, key, _ in fold.body.items():
            if key.text not in ("key", "delete"):
                summary = f'"{key.text}" does nothing beside delete: true, which takes the whole entry away'
                help = f"leave {key.text} out, or write remove: [names] to take fields away"
                yield Diagnostic(code="FR113", summary=summary, span=key.span, help=help)
    increment = fold.body.get("increment")
    for name, _, value in increment.items() if isinstance(increment, MappingNode) else ():
        if isinstance(value, ScalarNode) and isinstance(value.value, str) and "{{" not in value.value:
            help = f"write set: {{{name}: …}} to give it a value"
            yield Diagnostic(code="FR103", summary=f'"{name}" is incremented by a number', span=value.span, help=help)


def _of_the_moment(fold: FoldDecl) -> Iterator[Diagnostic]:
    values = [fold.key] if fold.key is not None else []
    for name in ("set", "increment", "append"):
        values += scalars(fold.body.get(name))
    for node in values:
        try:
            pieces = parse_template(str(node.value)).pieces
        except ExpressionSyntaxError:
            continue  # another rule's
        for called in (call.node for piece in pieces for call in _calls(piece)):
            if isinstance(called, nodes.Name) and called.name in _OF_THE_MOMENT:
                summary = f"{called.name}() would give another value whenever the projection is folded again"
                span = node.part(called.lineno, len(called.name))
                yield Diagnostic(code="FR326", summary=summary, span=span, help=_OF_THE_MOMENT[called.name])


def _calls(piece: nodes.Node) -> Iterator[nodes.Call]:
    if isinstance(piece, nodes.Call):
        yield piece
    yield from piece.find_all(nodes.Call)


def _reading(project: Declarations, step: StepDecl) -> Iterator[Diagnostic]:
    if step.action != "use" or step.name != "projection.get" or not isinstance(step.inputs, MappingNode):
        return
    name = step.inputs.get("name")
    if not isinstance(name, ScalarNode) or not isinstance(name.value, str) or "{{" in name.value:
        return
    if name.value not in project.projections:
        help = did_you_mean(name.value, project.projections) or "declare it under projections:"
        fix = respelt(name, name.value, project.projections)
        summary = f'no projection named "{name.value}"'
        yield Diagnostic(code="FR212", summary=summary, span=name.span, help=help, fix=fix)
