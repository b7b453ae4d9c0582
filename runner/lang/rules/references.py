"""FR201, FR202, FR204, FR205, FR213: what a flow refers to exists: events, handler plugins, handlers of routes,
versions of a subject."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from runner.diagnostics import Diagnostic, Fix, Related, did_you_mean, respelt
from runner.lang.declare import FlowDecl, RouteDecl, StepDecl
from runner.lang.project import Declarations
from runner.source import Node, ScalarNode


def check(project: Declarations) -> Iterator[Diagnostic]:
    """References to what is not there."""
    if project.complete:
        for flow in project.flows:
            for route in flow.routes:
                yield from _route(project, flow, route)
    for flow in project.flows if project.complete else ():
        yield from _events(project, [s.event for s in flow.schedules if s.event is not None])
        yield from _events(project, [fold.event for projection in flow.projections for fold in projection.folds])
    for handler in project.handlers.values() if project.complete else ():
        yield from _events(project, [cancel.event for cancel in handler.cancel_on])
    for _, _, step in project.steps():
        if project.complete and step.action == "emit" and step.name is not None and step.name not in project.events:
            yield Diagnostic(
                code="FR201",
                summary=f'no event named "{step.name}"',
                span=step.target.span,
                help=did_you_mean(step.name, project.events) or _declare_it(project),
                fix=_respelt(step.target, project.events),
            )
        if project.complete:
            yield from _events(project, step.awaited)
        yield from _version(project, step)
        if step.action == "use" and step.name is not None:
            yield from _plugin(project, step.name, step.target)


def _events(project: Declarations, named: Iterable[ScalarNode]) -> Iterator[Diagnostic]:
    for node in named:
        name = str(node.value)
        if name not in project.events:
            help = did_you_mean(name, project.events) or _declare_it(project)
            fix = respelt(node, name, project.events)
            yield Diagnostic(code="FR201", summary=f'no event named "{name}"', span=node.span, help=help, fix=fix)


def _version(project: Declarations, step: StepDecl) -> Iterator[Diagnostic]:
    event = project.events.get(step.name or "")
    if step.expected_version is not None and event is not None and event.subject is None:
        summary = f'"{event.name}" is about nothing: only a subject has versions'
        help = 'give the event a subject, such as subject: "order/{{ event.order_id }}"'
        related = (Related("it is declared here", event.node.span),)
        yield Diagnostic(code="FR213", summary=summary, span=step.expected_version.span, help=help, related=related)


def _route(project: Declarations, flow: FlowDecl, route: RouteDecl) -> Iterator[Diagnostic]:
    for node in route.patterns:
        pattern = str(node.value)
        if project.matching(pattern):
            continue
        if "*" in pattern or "#" in pattern:
            yield Diagnostic(
                code="FR204",
                summary=f'no declared event fits the pattern "{pattern}"',
                span=node.span,
                help="* is one word, # is any number of words",
            )
        else:
            yield Diagnostic(
                code="FR201",
                summary=f'no event named "{pattern}"',
                span=node.span,
                help=did_you_mean(pattern, project.events) or _declare_it(project),
                fix=respelt(node, pattern, project.events),
            )
    for node in route.to:
        name = str(node.value)
        if project.target(flow, name) is None:
            own = [h.name for h in flow.handlers]
            known = own + list(project.handlers)
            yield Diagnostic(
                code="FR205",
                summary=f'no handler named "{name}"',
                span=node.span,
                help=did_you_mean(name, known) or "a handler of another flow is called flow.handler",
                fix=respelt(node, name, project.handlers if "." in name else own),
            )


def _plugin(project: Declarations, name: str, node: Node) -> Iterator[Diagnostic]:
    if project.signatures is None or name in project.signatures:
        return
    if not project.signatures_complete:
        return
    help = did_you_mean(name, project.signatures)
    if help is not None:
        near = help.split('"')[1]
        help = f"{help} ({project.signatures[near].location})"
    yield Diagnostic(
        code="FR202",
        summary=f'no handler named "{name}"',
        span=node.span,
        help=help or "see flowrun plugins list, or write one: flowrun plugins new",
        fix=_respelt(node, project.signatures),
    )


def _respelt(node: Node, known: Iterable[str]) -> Fix | None:
    return respelt(node, str(node.value), known) if isinstance(node, ScalarNode) else None


def _declare_it(project: Declarations) -> str:
    return "declare it under events:" if project.events else "there are no events: declare them under events:"
