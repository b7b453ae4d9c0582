"""What a request says of its message besides the payload: a plain one nothing but an id, a CloudEvent more.

The HTTP binding of CloudEvents: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from runner.errors import EnvelopeError
from runner.message import MAX_SHORT_BYTES, decode_json, structured_event
from runner.times import parse_time, rfc3339
from runner.web.received import STRUCTURED, Received
from runner.web.refusal import Refusal

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_MAX_TRACESTATE = 512
"""https://www.w3.org/TR/trace-context/: what must be handed on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A message's attributes, those that the request gives, and its body's JSON value."""

    body: Any
    id: str | None
    source: str | None = None
    subject: str | None = None
    time: str | None = None


def open_command(received: Received, webhook_id: str | None) -> Envelope:
    """Of a request for a command. Raises Refusal."""
    if received.content_type == STRUCTURED:
        raise Refusal(415, "unsupported_media_type", "a command is no CloudEvent: send application/json")
    return Envelope(body=received.json(), id=_the_id(_key(received), webhook_id))


def open_event(received: Received, webhook_id: str | None) -> Envelope:
    """Of a request for an event: plain JSON, or a CloudEvent in binary or structured mode. Raises Refusal."""
    if received.content_type == STRUCTURED:
        received.mind_the_type()
        attributes, body = _structured(received.body)
    else:
        attributes = {name[3:]: unquote(value) for name, value in received.headers.items() if name.startswith("ce-")}
        body = received.json()
    version = attributes.get("specversion", "1.0")
    if version != "1.0":
        raise Refusal(400, "bad_envelope", f'CloudEvents has no version "{version}" that is known here')
    kind, wanted = attributes.get("type"), received.endpoint.event
    if kind is not None and kind != wanted:
        raise Refusal(422, "invalid_input", f'this endpoint takes {wanted}, and the CloudEvent is of type "{kind}"')
    return Envelope(
        body=body,
        id=_the_id(_key(received), webhook_id, attributes.get("id")),
        source=attributes.get("source") or None,
        subject=attributes.get("subject") or None,
        time=_time(attributes.get("time")),
    )


def trace_of(headers: Mapping[str, str]) -> dict[str, str]:
    """The W3C trace that the request belongs to."""
    parent, state = headers.get("traceparent", ""), headers.get("tracestate", "")
    if not _TRACEPARENT.fullmatch(parent):
        return {}
    return (
        {"traceparent": parent, "tracestate": state} if 0 < len(state) <= _MAX_TRACESTATE else {"traceparent": parent}
    )


def _structured(body: bytes) -> tuple[dict[str, str], Any]:
    try:
        attributes, data = structured_event(body)
        return attributes, decode_json(data)
    except EnvelopeError as error:
        raise Refusal(400, error.reason, str(error)) from None
    except ValueError as error:
        raise Refusal(400, "invalid_json", f"the CloudEvent's data is not JSON: {error}") from None


def _key(received: Received) -> str | None:
    return received.headers.get("idempotency-key")


def _the_id(*given: str | None) -> str | None:
    """The one id that the request gives, if it does."""
    ids = {ident for ident in given if ident is not None}
    if len(ids) > 1:
        raise Refusal(400, "bad_envelope", "the request has two different ids (Idempotency-Key, ce-id or webhook-id)")
    ident = ids.pop() if ids else None
    if ident is not None and not 0 < len(ident.encode()) <= MAX_SHORT_BYTES:
        raise Refusal(400, "bad_envelope", f"an id has 1 to {MAX_SHORT_BYTES} bytes")
    return ident


def _time(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return rfc3339(parse_time(text))
    except ValueError:
        raise Refusal(400, "bad_envelope", f'the CloudEvent\'s time "{text}" is not RFC 3339') from None
