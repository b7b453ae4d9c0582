"""`command`: a request to its one receiver, and what the answer means for the step."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from runner.message import MAX_BODY_BYTES, Meta, Outgoing, command_message, encode_json
from runner.outcome import Done, Failed
from runner.plan import Command
from runner.records import Answer, Error
from runner.steps.emit import Emitter, PayloadError
from runner.times import rfc3339


def build(
    command: Command, data: Any, emitter: Emitter, ident: str, now: datetime, deadline: datetime, reply_to: str
) -> Outgoing:
    """The command as message, under the id `ident`. Raises PayloadError."""
    try:
        body = encode_json(data)
    except (TypeError, ValueError) as error:
        raise PayloadError(f"the request of {command.name} is no JSON value: {error}") from None
    misfit = command.check(data)
    if misfit is not None:
        raise PayloadError(f"{command.name} does not fit its schema: {misfit}")
    if len(body) > MAX_BODY_BYTES:
        raise PayloadError(f"the request of {command.name} has {len(body)} bytes, the limit is {MAX_BODY_BYTES}")
    cause = emitter.cause
    meta = Meta(
        id=ident,
        type=command.name,
        source=emitter.source,
        subject=None,
        time=rfc3339(now),
        correlation_id=cause.correlation_id if cause is not None else ident,
        causation_id=cause.id if cause is not None else None,
    )
    return command_message(
        meta=meta,
        data=body,
        project=emitter.project,
        expires_at=rfc3339(deadline),
        reply_to=reply_to,
        trace=emitter.trace,
    )


def outcome(command: Command, answer: Answer, step_id: str) -> Done | Failed:
    """What an answer makes of the step that waited for it."""
    error = answer.error
    if error is not None:
        return Failed(
            Error(
                type=error.type,
                message=error.message,
                retryable=error.retryable,
                details=error.details,
                step=step_id,
            )
        )
    misfit = command.check_reply(answer.result)
    if misfit is not None:
        text = f"the reply of {command.name} does not fit its schema: {misfit}"
        return Failed(Error(type="invalid_output", message=text, retryable=False, step=step_id), unknown=True)
    return Done(answer.result)


def unanswered(command: Command, step_id: str, timeout_s: float) -> Failed:
    """Nobody answered in time: it may have been done, or not."""
    text = f"no reply to {command.name} within {timeout_s:g} s"
    return Failed(Error(type="timeout", message=text, retryable=True, step=step_id), unknown=True)
