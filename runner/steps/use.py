"""`use`: one attempt at calling a handler plugin."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from runner.errors import HandlerError, RetryableError
from runner.handler import Context
from runner.message import decode_json, encode_json
from runner.outcome import Done, Failed
from runner.ports import Handler
from runner.records import Error


async def attempt(handler: Handler, context: Context, inputs: Mapping[str, Any], timeout_s: float) -> Done | Failed:
    """Call once. A result that comes after `timeout_s` is ignored; whatever the handler raises is a value here."""
    limit = asyncio.timeout(timeout_s)
    outcome: Done | Failed
    try:
        async with limit:
            outcome = Done(await handler(context, inputs))
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and _is_ours():
            raise
        outcome = _raised(error, context, log=not limit.expired())
    # A handler may have swallowed its cancellation: whatever it says then is late.
    if limit.expired():
        return _unknown("timeout", f"no result within {timeout_s:g} s", context)
    return outcome


def _raised(error: BaseException, context: Context, *, log: bool) -> Failed:
    if isinstance(error, HandlerError):
        after_s = error.retry_after_s if isinstance(error, RetryableError) else None
        kept = Error(
            type=_text(error.type),
            message=_text(error.message),
            retryable=error.retryable,
            details=_plain(error.details),
            step=context.step_id,
        )
        return Failed(kept, after_s if isinstance(after_s, int | float) and after_s >= 0 else None)
    if isinstance(error, asyncio.CancelledError):
        return _unknown("internal", "the handler cancelled itself", context)
    if log:
        context.logger.error("%s failed", context.step_id, exc_info=error)
    return _unknown("internal", f"{type(error).__name__}: {_text(error)}".rstrip(": "), context)


def _text(value: object) -> str:
    """As text that JSON can carry, whatever the object's own `__str__` does."""
    try:
        return str(value).encode("utf-8", "backslashreplace").decode()
    except Exception:
        return f"({type(value).__name__} without a text)"


def _plain(details: Mapping[str, Any]) -> dict[str, Any]:
    """The details as JSON values; what JSON cannot carry becomes its text."""
    plain = {}
    for name, value in details.items():
        try:
            plain[_text(name)] = decode_json(encode_json(value))
        except (TypeError, ValueError, RecursionError):
            plain[_text(name)] = _text(value)
    return plain


def _is_ours() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _unknown(kind: str, message: str, context: Context) -> Failed:
    """No answer of the handler's own: it may have done what it should, or not."""
    return Failed(Error(type=kind, message=message, retryable=True, step=context.step_id), unknown=True)
