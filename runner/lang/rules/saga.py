"""FR501, FR502: where a saga's point of no return may stand. FR503: what an undo of the unknown cannot name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from runner.diagnostics import Diagnostic, Related, Severity
from runner.lang.declare import HandlerDecl, StepDecl, all_steps, scalars
from runner.lang.project import Declarations
from runner.source import ScalarNode, Span, plain

_OUTPUT = re.compile(r"(?<![.\w])output\b")
_GUARD = re.compile(r"\bdefault\b|\bdefined\b")


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Pivots that are not on the handler's own list, and second ones; undos that need what may not be there."""
    for flow in project.flows:
        for handler in flow.handlers:
            yield from _pivots(handler)
            for step in all_steps(handler.steps):
                for undo in step.undo:
                    yield from _needs_output(undo)


def _needs_output(undo: StepDecl) -> Iterator[Diagnostic]:
    """A step whose result nobody knows has no `output`: an undo that names it would fail just then."""
    condition = undo.node.get("if")
    if condition is None or plain(condition) != "attempted":
        return
    if undo.when is not None and _GUARD.search(str(undo.when.value)):
        return
    for text in scalars(undo.inputs):
        written = str(text.value)
        if "{{" in written and _OUTPUT.search(written) and not _GUARD.search(written):
            yield Diagnostic(
                code="FR503",
                severity=Severity.WARNING,
                summary="with if: attempted there is no output where nobody knows the result: this undo fails then",
                span=text.span,
                help="name the thing by what the step was given, or say when: output is defined",
            )


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
