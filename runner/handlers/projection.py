"""`projection.get`: an entry of a read model, as of now."""

from __future__ import annotations

from typing import Any

from runner.errors import NotFoundError, NotReadyError, RetryableError, StoreError, TerminalError
from runner.handler import Context, handler


@handler("projection.get", effect=False)
async def get(ctx: Context, *, name: str, key: str | int | float) -> Any:
    """The entry of the projection `name` under `key`, or null if there is none.

    It has every event that was in the log when the step ran. Fails with `projection.unknown`, and with
    `projection.building`, retryable, while the projection is folded for the first time.
    """
    if ctx.projections is None:
        raise TerminalError("projection.unknown", "there are no read models here")
    try:
        return await ctx.projections.get(name, key)
    except NotFoundError as error:
        raise TerminalError("projection.unknown", error.message, name=name) from None
    except ValueError as error:
        raise TerminalError("invalid_input", str(error)) from None
    except NotReadyError as error:
        raise RetryableError("projection.building", error.message, retry_after_s=1.0, name=name) from None
    except StoreError as error:
        raise RetryableError("internal", error.message) from None
