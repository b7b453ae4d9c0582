"""FR510 to FR513: times that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from runner.diagnostics import Diagnostic, Related, Severity
from runner.lang.declare import CommandDecl, HandlerDecl, StepDecl, all_steps
from runner.lang.policies import duration_s
from runner.lang.project import Declarations
from runner.source import MappingNode, Node, ScalarNode


@dataclass(frozen=True, slots=True)
class _Limit:
    """How long what stands inside may take: a `timeout`, and whose."""

    seconds: float
    node: Node
    whose: str


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Times that can never come, or that leave no time."""
    for handler in project.handlers.values():
        limits = list(_limits(handler.body.get("timeout"), "the run's"))
        yield from _steps(handler.steps, limits)
        yield from _retry(handler.body.get("retry"), limits)
        for command in project.commands_of(handler):
            yield from _waits_of(project, handler, command)
    for _, _, step in project.steps():
        yield from _nothing(step.node.get("timeout"))
    for command in project.commands.values():
        yield from _nothing(command.body.get("timeout"))


def _steps(steps: tuple[StepDecl, ...], limits: list[_Limit]) -> Iterator[Diagnostic]:
    for step in steps:
        for node, what in _times(step):
            yield from _too_long(node, what, limits)
        yield from _retry(step.node.get("retry"), limits)
        inner = [*limits]
        if step.action in ("parallel", "foreach"):
            inner += _limits(step.node.get("timeout"), f"the {step.action}'s")
        for branch in step.branches:
            yield from _steps(branch.steps, inner)
        for catch in step.catches:
            yield from _steps(catch.steps, limits)


def _times(step: StepDecl) -> Iterator[tuple[Node, str]]:
    """The times that a step says it may take, or takes."""
    if (timeout := step.node.get("timeout")) is not None:
        yield timeout, "this timeout"
    if step.action == "wait" and isinstance(step.target, ScalarNode):
        yield step.target, "this wait"
    if step.action == "wait_for" and isinstance(step.target, MappingNode):
        timeout = step.target.get("timeout")
        if timeout is not None:
            yield timeout, "this timeout"


def _limits(node: Node | None, whose: str) -> Iterator[_Limit]:
    seconds = duration_s(node)
    if node is not None and seconds is not None:
        yield _Limit(seconds, node, whose)


def _too_long(node: Node, what: str, limits: list[_Limit]) -> Iterator[Diagnostic]:
    seconds = duration_s(node)
    over = next((limit for limit in limits if seconds is not None and seconds > limit.seconds), None)
    if over is not None:
        related = (Related(f"{over.whose} timeout is here", over.node.span),)
        summary = f"{what} is longer than {over.whose}: it never comes to its end"
        yield Diagnostic(code="FR510", summary=summary, span=node.span, related=related)


def _retry(node: Node | None, limits: list[_Limit]) -> Iterator[Diagnostic]:
    if not isinstance(node, MappingNode):
        return
    delay, most = node.get("delay"), node.get("max_delay")
    seconds, cap = duration_s(delay), duration_s(most)
    if delay is not None and seconds is not None and cap is not None and seconds > cap:
        assert most is not None
        related = (Related("the longest is here", most.span),)
        summary = "this delay is longer than max_delay, which is the longest that there is"
        yield Diagnostic(code="FR511", summary=summary, span=delay.span, related=related)
    jitter = node.get("jitter")
    if isinstance(jitter, MappingNode):
        low, high = duration_s(jitter.get("from")), duration_s(jitter.get("to"))
        if low is not None and high is not None and low > high:
            yield Diagnostic(code="FR511", summary="this jitter ends before it begins", span=jitter.span)
        return
    is_exact = isinstance(jitter, ScalarNode) and jitter.value == "none"
    over = next((limit for limit in limits if seconds is not None and is_exact and seconds > limit.seconds), None)
    if delay is not None and over is not None:
        related = (Related(f"{over.whose} timeout is here", over.node.span),)
        summary = f"this delay is longer than {over.whose} timeout: there is never a second attempt"
        yield Diagnostic(code="FR511", summary=summary, span=delay.span, related=related)


def _waits_of(project: Declarations, handler: HandlerDecl, command: CommandDecl) -> Iterator[Diagnostic]:
    """FR512: a command is done by who waits longer than anyone here waits for it; other programs may be patient."""
    declared = command.body.get("timeout")
    if declared is None or (patience := duration_s(declared)) is None:
        return
    callers = [step.node.get("timeout") for _, step in project.senders_of(command)]
    patience = max([patience, *(seconds for node in callers if (seconds := duration_s(node)) is not None)])
    for step in all_steps(handler.steps):
        for node, what in _times(step) if step.action in ("wait", "wait_for") else ():
            seconds = duration_s(node)
            if seconds is not None and seconds > patience:
                related = (Related("its callers' timeout is here", declared.span),)
                summary = f'{what} is longer than the callers of "{command.name}" wait'
                yield Diagnostic(
                    code="FR512", summary=summary, span=node.span, severity=Severity.WARNING, related=related
                )


def _nothing(node: Node | None) -> Iterator[Diagnostic]:
    if node is not None and duration_s(node) == 0:
        yield Diagnostic(code="FR513", summary="a timeout of nothing leaves no time at all", span=node.span)
