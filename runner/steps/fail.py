"""`fail`: the error that a flow raises itself."""

from __future__ import annotations

from runner.expressions import Scope
from runner.outcome import Failed
from runner.plan import Fail
from runner.records import Error
from runner.values import as_text


def build(step: Fail, key: str, scope: Scope) -> Failed:
    """The failure, with its message evaluated. Raises ExpressionError."""
    message = as_text(step.message(scope)) or step.type
    return Failed(Error(type=step.type, message=message, retryable=False, step=key))
