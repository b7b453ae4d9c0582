"""FR107, FR201, FR334, FR515: limits of nothing, and the event of a feedback."""

from __future__ import annotations

from collections.abc import Iterator

from runner.diagnostics import Diagnostic, Related, did_you_mean, respelt
from runner.lang import traffic
from runner.lang.declare import HandlerDecl
from runner.lang.policies import duration_s
from runner.lang.project import Declarations
from runner.source import MappingNode, ScalarNode

SAMPLES = tuple(
    {"handler": "orders.place", "state": state, "lag": lag, "rate": 12.5}
    for state, lag in (("high", 10_000), ("normal", 0))
)


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Periods in which nothing can be counted, and events that cannot tell what they are to."""
    for handler in project.handlers.values():
        for key in ("throttle", "rate_limit", "circuit_breaker"):
            yield from _period(handler, key)
        yield from _feedback(project, handler)


def _period(handler: HandlerDecl, key: str) -> Iterator[Diagnostic]:
    limit = handler.body.get(key)
    period = limit.get("period") if isinstance(limit, MappingNode) else None
    if isinstance(period, ScalarNode) and duration_s(period) == 0:
        yield Diagnostic(code="FR107", summary="a period of nothing has no limit", span=period.span)


def _feedback(project: Declarations, handler: HandlerDecl) -> Iterator[Diagnostic]:
    node = traffic.feedback_event(handler)
    above, below = traffic.lag(handler, "above"), traffic.lag(handler, "below")
    if above is not None and below is not None and _number(below) > _number(above):
        yield Diagnostic(
            code="FR515",
            summary=f"a lag of {below.text} is told as normal, and one above {above.text} as high",
            span=below.span,
            help=f"let below be at most {above.text}",
            related=(Related("high begins here", above.span),),
        )
    if node is None or not project.complete:
        return
    name = str(node.value)
    if name not in project.events:
        help = did_you_mean(name, project.events) or "declare it under events:"
        fix = respelt(node, name, project.events)
        yield Diagnostic(code="FR201", summary=f'no event named "{name}"', span=node.span, help=help, fix=fix)
        return
    for sample in SAMPLES:
        if (misfit := project.payloads[name].check(sample)) is not None:
            yield Diagnostic(
                code="FR334",
                summary=f'what a feedback says does not fit "{name}": {misfit}',
                span=node.span,
                help="its payload is {handler: text, state: high or normal, lag: whole number, rate: number}",
                related=(Related("it is declared here", project.events[name].node.span),),
            )
            return


def _number(node: ScalarNode) -> float:
    return node.value if isinstance(node.value, int | float) else 0
