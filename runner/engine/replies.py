"""Replies to the callers of commands."""

from __future__ import annotations

from typing import Any

import msgspec

from runner.message import Outgoing, encode_json, reply_message
from runner.records import Caller, Error, ReplySent


def reply_to(caller: Caller, reply: ReplySent | None, project: str) -> Outgoing | None:
    """The reply as a message; None if nobody waits for it."""
    if caller.reply_to is None or reply is None:
        return None
    return reply_message(
        command=caller.command,
        reply_to=caller.reply_to,
        correlation_id=caller.correlation_id,
        body=encode_json(reply.result if reply.error is None else _shown(reply.error)),
        failed=reply.error is not None,
        project=project,
    )


def _shown(error: Error) -> dict[str, Any]:
    """`{type, message, retryable, details}`: the callee's step is none of the caller's business."""
    shown = msgspec.structs.asdict(error)
    del shown["step"]
    return shown
