"""FR203: a name is declared once: flows, events, commands, the steps of a handler. FR210: a name that a block gives
hides none that is there already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from runner.diagnostics import Diagnostic, Related
from runner.lang.declare import StepDecl, all_steps
from runner.lang.project import Declarations
from runner.source import ScalarNode, Span

_TAKEN = frozenset({"event", "command", "meta", "steps", "vars", "run", "env", "secrets", "error", "output", "index"})


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Names that are declared a second time, or that would hide another."""
    yield from _twice(("flow", flow.name, flow.node.span) for flow in project.flows)
    declared = [("event", e.name, e.node.span) for flow in project.flows for e in flow.events]
    declared += [("command", c.name, c.node.span) for flow in project.flows for c in flow.commands]
    declared += [("projection", p.name, p.node.span) for flow in project.flows for p in flow.projections]
    yield from _twice(declared)
    for flow in project.flows:
        for handler in flow.handlers:
            yield from _twice(
                ("step", step.id, step.id_node.span)
                for step in all_steps(handler.steps + handler.on_failure)
                if step.id_node is not None
            )
    for _, _, step in project.steps():
        yield from _hiding(step)


def _hiding(step: StepDecl) -> Iterator[Diagnostic]:
    name = step.item
    if isinstance(name, ScalarNode) and name.value in _TAKEN:
        summary = f'as: {name.value} would hide the "{name.value}" that every step sees'
        yield Diagnostic(code="FR210", summary=summary, span=name.span, help="choose another name, such as item")
    for branch in step.branches:
        if branch.name is not None and branch.name.value == "winner":
            summary = 'no branch can be called "winner": the output says under that name which one it was'
            yield Diagnostic(code="FR210", summary=summary, span=branch.name.span, help="choose another name")


def _twice(named: Iterable[tuple[str, str, Span]]) -> Iterator[Diagnostic]:
    first: dict[str, Span] = {}
    for kind, name, span in named:
        if name in first:
            yield Diagnostic(
                code="FR203",
                summary=f'{kind} "{name}" is declared twice',
                span=span,
                related=(Related("the first one is here", first[name]),),
            )
        first.setdefault(name, span)
