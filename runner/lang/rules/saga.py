"""FR501, FR502: where a saga's point of no return may stand."""

from __future__ import annotations

from collections.abc import Iterator

from runner.diagnostics import Diagnostic, Related
from runner.lang.declare import HandlerDecl, StepDecl, all_steps
from runner.lang.project import Declarations
from runner.source import ScalarNode, Span, plain


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Pivots that are not on the handler's own list, and second ones."""
    for flow in project.flows:
        for handler in flow.handlers:
            yield from _pivots(handler)


def _pivots(handler: HandlerDecl) -> Iterator[Diagnostic]:
    own = {id(step) for step in handler.steps}
    first: Span | None = None
    for step in all_steps(handler.steps):
        place = _pivot(step)
        if place is None:
            continue
        if id(step) not in own:
            summary = "a pivot must be a step of the handler's own list, not inside another step"
            help = "a run is past its pivot or it is not: that cannot hang on a branch"
            yield Diagnostic(code="FR501", summary=summary, span=place, help=help)
        elif first is not None:
            related = (Related("the first one is here", first),)
            summary = f'handler "{handler.name}" has a second pivot'
            yield Diagnostic(code="FR502", summary=summary, span=place, related=related)
        else:
            first = place


def _pivot(step: StepDecl) -> Span | None:
    node = step.node.get("pivot")
    return node.span if isinstance(node, ScalarNode) and plain(node) is True else None
