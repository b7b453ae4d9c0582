"""FR220, FR224 to FR226: who makes which event, and whom it reaches, over all files."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

from runner.diagnostics import Diagnostic, Related, Severity
from runner.lang import traffic
from runner.lang.declare import HandlerDecl, StepDecl, all_steps
from runner.lang.project import Declarations
from runner.source import ScalarNode, Span


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Handlers that nothing reaches, events that cannot come, and loops that nothing ends."""
    if not project.complete:
        return
    made, taken = dict(_made(project)), dict(_taken(project))
    for handler in project.handlers.values():
        yield from _unreached(project, handler)
    for name, event in project.events.items():
        if event.external or event.keys or name in made:
            continue
        if name in taken:
            related = (Related("it is waited for here", taken[name]),)
            help = "emit it, or say external: true if another program makes it"
            yield _warning("FR224", f'nobody makes the event "{name}"', event.node.span, help, related)
        else:
            yield _warning("FR225", f'the event "{name}" is neither made nor taken', event.node.span, None)
    yield from _loops(project)


def _warning(code: str, summary: str, span: Span, help: str | None, related: tuple[Related, ...] = ()) -> Diagnostic:
    return Diagnostic(code=code, summary=summary, span=span, severity=Severity.WARNING, help=help, related=related)


def _made(project: Declarations) -> Iterator[tuple[str, Span]]:
    for _, _, step in project.steps():
        if step.action == "emit" and step.name is not None:
            yield step.name, step.target.span
    for flow in project.flows:
        for event in (*(s.event for s in flow.schedules), *(endpoint.event for endpoint in flow.ingress)):
            if event is not None:
                yield str(event.value), event.span
    for handler in project.handlers.values():
        if (event := traffic.feedback_event(handler)) is not None:
            yield str(event.value), event.span


def _taken(project: Declarations) -> Iterator[tuple[str, Span]]:
    for flow in project.flows:
        for route in flow.routes:
            for node in route.patterns:
                yield from ((name, node.span) for name in project.matching(str(node.value)))
        for projection in flow.projections:
            yield from ((str(fold.event.value), fold.event.span) for fold in projection.folds)
    for _, _, step in project.steps():
        yield from ((str(node.value), node.span) for node in step.awaited)
    for handler in project.handlers.values():
        yield from ((str(cancel.event.value), cancel.event.span) for cancel in handler.cancel_on)


def _unreached(project: Declarations, handler: HandlerDecl) -> Iterator[Diagnostic]:
    if project.commands_of(handler) or project.seems_to_do_a_command(handler):
        return
    if project.routes_to(handler):
        return
    help = f"add a route: {{on: …, to: {handler.name}}}, or name it in a command: handler: {handler.name}"
    yield _warning("FR220", f'nothing leads to the handler "{handler.name}"', handler.node.span, help)


# --- loops -------------------------------------------------------------------------------------------------


def _loops(project: Declarations) -> Iterator[Diagnostic]:
    """Events that bring about themselves, over steps and routes that nothing can hold up: one such loop."""
    after: dict[str, dict[str, ScalarNode]] = {}
    for flow in project.flows:
        for route in flow.routes:
            if route.when is not None:
                continue
            handlers = [project.target(flow, str(to.value)) for to in route.to]
            emitted = [node for handler in handlers if handler is not None for node in _always_emits(handler.steps)]
            for pattern in route.patterns:
                for name in project.matching(str(pattern.value)):
                    after.setdefault(name, {}).update({str(node.value): node for node in emitted})
    try:
        TopologicalSorter({name: list(nexts) for name, nexts in after.items()}).prepare()
    except CycleError as error:
        loop = list(reversed(error.args[1]))
        first, second = loop[0], loop[1]
        node = after[first][second] if second in after.get(first, {}) else next(iter(after[first].values()))
        summary = f"a loop that nothing ends: {' → '.join(loop)}"
        help = "give a route or a step of it a when, or let it wait"
        yield _warning("FR226", summary, node.span, help)


def _always_emits(steps: tuple[StepDecl, ...]) -> Iterator[ScalarNode]:
    """What is emitted whatever comes, before anything that may end or hold up the run."""
    for step in steps:
        if step.when is None and step.action == "emit" and isinstance(step.target, ScalarNode):
            yield step.target
        ends = {inner.action for inner in all_steps((step,))} & {"wait", "wait_for", "stop", "fail"}
        if ends:
            return
