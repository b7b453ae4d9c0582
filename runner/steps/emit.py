"""`emit`: an event, ready for the event log and the outbox."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.errors import ExpressionError
from runner.message import MAX_BODY_BYTES, Meta, Outgoing, encode_json, event_message, new_id
from runner.plan import Event
from runner.records import EventRecord
from runner.values import as_text

MAX_HEADER_BYTES = 32 * 1024
"""All headers must fit one AMQP frame, or the broker closes the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitter:
    """Who publishes: `source` is `/flowrun/<project>/<flow>`; `cause` is what began the run `run_id`, which emits."""

    project: str
    source: str
    cause: Meta | None = None
    trace: Mapping[str, str] | None = None
    run_id: str | None = None


def subject_of(event: Event, data: Any, now: str) -> str | None:
    """The object that an event with this payload is about. Raises ExpressionError."""
    if event.subject is None:
        return None
    value = event.subject({"event": data, "now": lambda: now, "uuid": new_id})
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return as_text(value)
    raise ExpressionError(f"the subject of {event.name} must be text")


class PayloadError(Exception):
    """The payload does not fit the event's schema."""


def build(
    event: Event,
    data: Any,
    emitter: Emitter,
    now: str,
    *,
    ident: str | None = None,
    subject: str | None = None,
) -> tuple[EventRecord, Outgoing]:
    """The event as record and as message. Raises PayloadError, ExpressionError (its subject)."""
    try:
        body = encode_json(data)
    except (TypeError, ValueError) as error:
        raise PayloadError(f"the payload of {event.name} is no JSON value: {error}") from None
    misfit = event.check(data)
    if misfit is not None:
        raise PayloadError(f"{event.name} does not fit its schema: {misfit}")
    if subject is None:
        subject = subject_of(event, data, now)
    event_id = new_id() if ident is None else ident
    cause = emitter.cause
    meta = Meta(
        id=event_id,
        type=event.name,
        source=emitter.source,
        subject=subject,
        time=now,
        correlation_id=cause.correlation_id if cause is not None else event_id,
        causation_id=cause.id if cause is not None else None,
    )
    outgoing = event_message(meta=meta, data=body, project=emitter.project, mandatory=event.routed, trace=emitter.trace)
    if len(body) > MAX_BODY_BYTES:
        raise PayloadError(f"the payload of {event.name} has {len(body)} bytes, the limit is {MAX_BODY_BYTES}")
    size = sum(len(name.encode()) + len(str(value).encode()) for name, value in outgoing.properties.headers.items())
    if size > MAX_HEADER_BYTES:
        raise PayloadError(f"the attributes of {event.name} have {size} bytes, the limit is {MAX_HEADER_BYTES}")
    return EventRecord(meta=meta, data=body, run_id=emitter.run_id), outgoing
