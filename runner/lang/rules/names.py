"""FR203: a name is declared once: flows, events, the steps of a handler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from runner.diagnostics import Diagnostic, Related
from runner.lang.declare import all_steps
from runner.lang.project import Declarations
from runner.source import Span


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Names that are declared a second time."""
    yield from _twice("flow", ((flow.name, flow.node.span) for flow in project.flows))
    yield from _twice("event", ((e.name, e.node.span) for flow in project.flows for e in flow.events))
    for flow in project.flows:
        for handler in flow.handlers:
            ids = (
                (step.id, step.id_node.span)
                for step in all_steps(handler.steps + handler.on_failure)
                if step.id_node is not None
            )
            yield from _twice("step", ids)


def _twice(kind: str, named: Iterable[tuple[str, Span]]) -> Iterator[Diagnostic]:
    first: dict[str, Span] = {}
    for name, span in named:
        if name in first:
            yield Diagnostic(
                code="FR203",
                summary=f'{kind} "{name}" is declared twice',
                span=span,
                related=(Related("the first one is here", first[name]),),
            )
        first.setdefault(name, span)
