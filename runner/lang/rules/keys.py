"""FR514: an idempotency key that is free again while a caller still tries.

While a run goes on it holds its key, one that is undone sets it free, and a command that goes out again after a timeout
is known by its id for ever. What is left for a `ttl` is a run that failed and could not take back what it did, and a
caller that sends a new command for the failed reply.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

from runner.delays import attempts
from runner.diagnostics import Diagnostic, Related, Severity
from runner.lang.declare import CommandDecl, HandlerDecl, all_steps
from runner.lang.policies import DEFAULT_REPLY_S, duration_s, retry_policy, send_policy, undo_policy
from runner.lang.project import Declarations
from runner.plan import RetryPolicy
from runner.source import MappingNode, Span
from runner.times import format_duration

MOST_ATTEMPTS = 10_000
"""Of a policy with more, so many are counted: they outlast any `ttl` that there is a doubt about."""


def check(project: Declarations) -> Iterator[Diagnostic]:
    """A `ttl` that is shorter than the retries of those who send the command."""
    for handler in project.handlers.values():
        for command in project.commands_of(handler):
            yield from _forgotten(project, handler, command)


def _forgotten(project: Declarations, handler: HandlerDecl, command: CommandDecl) -> Iterator[Diagnostic]:
    idempotency, why = handler.body.get("idempotency"), _what_stays(handler)
    node = idempotency.get("ttl") if isinstance(idempotency, MappingNode) else None
    ttl_s = duration_s(node)
    longest_s, place = max(_callers(project, command), key=lambda caller: caller[0], default=(0.0, None))
    if node is None or ttl_s is None or place is None or why is None or longest_s <= ttl_s:
        return
    until, help = "without end", "let the attempts end: max_duration"
    if not math.isinf(longest_s):
        until, help = f"for up to {format_duration(longest_s)}", "a longer ttl, or fewer attempts"
    yield Diagnostic(
        code="FR514",
        summary=f'"{command.name}" is tried again {until}, and a key is kept for {format_duration(ttl_s)} only',
        span=node.span,
        severity=Severity.WARNING,
        help=f"a run that {why} would be done a second time: {help}",
        related=(Related("it is tried again here", place),),
    )


def _what_stays(handler: HandlerDecl) -> str | None:
    """How a run can fail and still have done something; None if it cannot, as far as it says."""
    if any(step.node.get("pivot") is not None for step in handler.steps):
        return "failed past its pivot"
    if handler.on_failure or any(step.undo for step in all_steps(handler.steps)):
        return "could not be undone"
    return None


def _callers(project: Declarations, command: CommandDecl) -> Iterator[tuple[float, Span]]:
    """For how long each step that sends the command may send a new one after the first has failed."""
    for handler, step in project.senders_of(command):
        undos = {id(undo) for each in all_steps(handler.steps + handler.on_failure) for undo in each.undo}
        retry = step.node.get("retry")
        defaults = retry_policy(RetryPolicy(), handler.body.get("retry"))
        policy = undo_policy(retry) if id(step) in undos else send_policy(retry, defaults)
        given_s = (duration_s(step.node.get("timeout")), duration_s(command.body.get("timeout")), DEFAULT_REPLY_S)
        timeout_s = next(seconds for seconds in given_s if seconds is not None)
        yield _again_s(policy, timeout_s), (step.target if retry is None else retry).span


def _again_s(policy: RetryPolicy, timeout_s: float) -> float:
    """From a first attempt that fails at once until the last one begins, at the latest."""
    if policy.max_attempts is None:
        return math.inf if policy.max_duration_s is None else policy.max_duration_s
    *_, last = islice(attempts(policy, timeout_s), MOST_ATTEMPTS)
    return max(0.0, last.begins_s[1] - timeout_s)
