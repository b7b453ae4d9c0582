"""Small answers that several rooms of the engine give alike."""

from __future__ import annotations

from typing import Any

from runner.engine.run import Run
from runner.errors import ExpressionError
from runner.message import decode_json, encode_json
from runner.outcome import Failed
from runner.records import Error, RunState


class NotOurs(Exception):
    """The first commit found the run standing already: another delivery of the same message began it."""


async def commit(run: Run, state: RunState | None = None, **how: Any) -> None:
    """Make durable what the run noted. Raises NotOurs, StoreError."""
    if not await run.commit(state, **how):
        raise NotOurs


def own(value: Any) -> Any:
    """A copy of an expression's value: `vars` and `steps` change as the run goes on, and a handler may do as it
    likes with what it got. Raises ExpressionError."""
    try:
        return decode_json(encode_json(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ExpressionError(f"the result is no JSON value: {error}") from None


def cancelled(run: Run, key: str) -> Failed:
    """The failure of a run that a person, or an event, cancels."""
    assert run.cancel is not None
    why = f": {run.cancel.reason}" if run.cancel.reason else ""
    error = Error(type="cancelled", message=f"cancelled by {run.cancel.by}{why}", retryable=False, step=key)
    return Failed(error, over="")


def expression_failed(error: ExpressionError, step_id: str | None = None) -> Failed:
    """The failure of an expression."""
    return Failed(Error(type="expression", message=str(error), retryable=False, step=step_id))
