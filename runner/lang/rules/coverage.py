"""FR504 to FR506: what a saga does and could not take back.

A step has an effect unless its plugin or its command says otherwise, or it is a bundled one that only reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from runner.diagnostics import Diagnostic, Related, Severity
from runner.lang.declare import HandlerDecl, StepDecl, all_steps
from runner.lang.insertion import with_key
from runner.lang.project import Declarations
from runner.source import Document, MappingNode, ScalarNode, Span, plain

_READING = frozenset({"GET", "HEAD"})


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Effects without an undo, failures after the point of no return, races that cannot be taken back."""
    if project.signatures is None or not project.signatures_complete:
        return
    documents = {flow.name: flow.document for flow in project.flows}
    for handler in project.handlers.values():
        pivot = next((n for n, step in enumerate(handler.steps) if _says(step, "pivot")), None)
        before = handler.steps if pivot is None else handler.steps[:pivot]
        may_end = handler.body.get("timeout") is not None or bool(handler.cancel_on)
        yield from _uncovered(project, documents[handler.flow], before, handler.steps, may_end=may_end)
        if pivot is not None:
            yield from _after_pivot(project, handler, pivot)
        for step in all_steps(handler.steps):
            if isinstance(step.target, MappingNode) and plain(step.target.get("wait")) == "any":
                yield from _races(project, step)


def _uncovered(
    project: Declarations,
    document: Document,
    steps: tuple[StepDecl, ...],
    later: tuple[StepDecl, ...],
    *,
    may_end: bool,
) -> Iterator[Diagnostic]:
    """FR504, of these steps and all inside them; `later` begins with them."""
    for number, step in enumerate(steps):
        fails = next((each for each in later[number + 1 :] if _may_fail(project, each)), None)
        for block in (*(branch.steps for branch in step.branches), *(catch.steps for catch in step.catches)):
            yield from _uncovered(project, document, block, (*block, *later[number + 1 :]), may_end=may_end)
        if not (_has_effect(project, step) and (fails is not None or may_end)):
            continue
        if step.undo or _says(step, "irreversible") or _says(step, "pivot"):
            continue
        related = (Related("this can still fail then", _first_word(fails)),) if fails is not None else ()
        warning = _warning(
            "FR504",
            f'"{step.name}" has an effect that nothing undoes, and the run can still fail after it',
            step.target.span,
            "say compensate: …, or irreversible: true if it needs no undo",
            related,
        )
        yield replace(warning, fix=with_key(document, step.node, "irreversible: true"))


def _after_pivot(project: Declarations, handler: HandlerDecl, pivot: int) -> Iterator[Diagnostic]:
    """FR505: past the pivot nothing is undone, so that nothing may fail for good."""
    related = (Related("the pivot is here", _first_word(handler.steps[pivot])),)
    for step in handler.steps[pivot + 1 :]:
        if _may_fail(project, step) and not _goes_on_trying(step):
            summary = "this can fail for good, and after the pivot nothing is undone any more"
            help = "retry: {max_attempts: unlimited}, or a catch without on"
            yield _warning("FR505", summary, _first_word(step), help, related)


def _races(project: Declarations, block: StepDecl) -> Iterator[Diagnostic]:
    """FR506: what a branch that loses has done is undone."""
    for branch in block.branches:
        for step in all_steps(branch.steps):
            if _has_effect(project, step) and not step.undo and not _is_undo(block, step):
                summary = f'if another branch comes first, nothing undoes "{step.name}"'
                help = "say compensate: …, or let it be done after the parallel"
                yield _warning("FR506", summary, step.target.span, help)


def _warning(code: str, summary: str, span: Span, help: str, related: tuple[Related, ...] = ()) -> Diagnostic:
    return Diagnostic(code=code, summary=summary, span=span, severity=Severity.WARNING, help=help, related=related)


def _has_effect(project: Declarations, step: StepDecl) -> bool:
    name = step.name or ""
    if step.action == "command":
        command = project.commands.get(name)
        return command is not None and plain(command.body.get("effect")) is not False
    if step.action != "use":
        return False
    if name == "http.request" and isinstance(step.inputs, MappingNode):
        method = step.inputs.get("method")
        return not (isinstance(method, ScalarNode) and str(method.value).upper() in _READING)
    signature = (project.signatures or {}).get(name)
    return signature is not None and signature.effect


def _may_fail(project: Declarations, step: StepDecl) -> bool:
    """Whether it, or something inside it, can fail the run; what it catches whatever it is, it does not let through."""
    if any(catch.types is None and not any(_may_fail(project, each) for each in catch.steps) for catch in step.catches):
        return False
    match step.action:
        case "use" | "command" | "wait_for" | "fail":
            return True
        case "switch" | "parallel" | "foreach":
            return any(_may_fail(project, each) for branch in step.branches for each in branch.steps)
    return False


def _goes_on_trying(step: StepDecl) -> bool:
    inner: Iterable[StepDecl] = [each for each in all_steps((step,)) if each.action in ("use", "command")]
    retries = [each.node.get("retry") for each in inner]
    unlimited = [isinstance(r, MappingNode) and plain(r.get("max_attempts")) == "unlimited" for r in retries]
    return all(unlimited) and not any(each.action in ("fail", "wait_for") for each in all_steps((step,)))


def _is_undo(block: StepDecl, step: StepDecl) -> bool:
    return any(step in each.undo for each in all_steps((block,)))


def _says(step: StepDecl, key: str) -> bool:
    return plain(step.node.get(key)) is True


def _first_word(step: StepDecl) -> Span:
    return step.action_node.span
