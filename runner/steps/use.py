"""`use`: one attempt at calling a handler plugin."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from runner.errors import HandlerError, RetryableError
from runner.handler import Context
from runner.outcome import Done, Failed
from runner.ports import Handler
from runner.records import Error


async def attempt(handler: Handler, context: Context, inputs: Mapping[str, Any], timeout_s: float) -> Done | Failed:
    """Call once. A result that comes after `timeout_s` is ignored; whatever the handler raises is a value here."""
    try:
        async with asyncio.timeout(timeout_s) as limit:
            return Done(await handler(context, inputs))
    except TimeoutError:
        if limit.expired():
            return _failed("timeout", f"no result within {timeout_s:g} s", context, retryable=True)
        return _failed("internal", "TimeoutError", context, retryable=True)
    except HandlerError as error:
        retry_after_s = error.retry_after_s if isinstance(error, RetryableError) else None
        kept = Error(
            type=error.type,
            message=error.message,
            retryable=error.retryable,
            details=error.details,
            step=context.step_id,
        )
        return Failed(kept, retry_after_s)
    except asyncio.CancelledError:
        if _is_ours():
            raise
        return _failed("internal", "the handler cancelled itself", context, retryable=True)
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {error}".rstrip(": ")
        context.logger.exception("%s failed", context.step_id)
        return _failed("internal", text, context, retryable=True)


def _is_ours() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _failed(kind: str, message: str, context: Context, *, retryable: bool) -> Failed:
    return Failed(Error(type=kind, message=message, retryable=retryable, step=context.step_id))
