"""FR203: a name is declared once: flows, events, commands, the steps of a handler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from runner.diagnostics import Diagnostic, Related
from runner.lang.declare import all_steps
from runner.lang.project import Declarations
from runner.source import Span


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Names that are declared a second time."""
    yield from _twice(("flow", flow.name, flow.node.span) for flow in project.flows)
    declared = [("event", e.name, e.node.span) for flow in project.flows for e in flow.events]
    declared += [("command", c.name, c.node.span) for flow in project.flows for c in flow.commands]
    yield from _twice(declared)
    for flow in project.flows:
        for handler in flow.handlers:
            yield from _twice(
                ("step", step.id, step.id_node.span)
                for step in all_steps(handler.steps + handler.on_failure)
                if step.id_node is not None
            )


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
