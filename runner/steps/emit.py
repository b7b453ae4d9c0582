"""`emit`: an event, ready for the event log and the outbox."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.errors import ExpressionError
from runner.message import Meta, Outgoing, encode_json, event_message, new_id
from runner.plan import Event
from runner.records import EventRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitter:
    """Who publishes: `source` is `/flowrun/<project>/<flow>`; the new event is caused by `cause`."""

    project: str
    source: str
    cause: Meta | None = None
    trace: Mapping[str, str] | None = None


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
    if subject is None and event.subject is not None:
        value = event.subject({"event": data})
        if not isinstance(value, str):
            raise ExpressionError(f"the subject of {event.name} must be text")
        subject = value
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
    return EventRecord(meta=meta, data=body), outgoing
