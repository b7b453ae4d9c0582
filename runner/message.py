"""Messages: what is on the wire, what a flow sees of it, and what becomes of it.

The wire form is CloudEvents 1.0 in binary mode over AMQP 0-9-1 (the RabbitMQ binding that CloudEvents lists):
attributes as `ce-…` headers, the payload as body.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import uuid_utils

from runner.errors import EnvelopeError
from runner.times import parse_time, rfc3339

MAX_BODY_BYTES = 1024 * 1024
MAX_SHORT_BYTES = 255
"""Of an AMQP property that is a short string."""
FLOWRUN_STATUS = "flowrun-status"
FAILED = "failed"
"""The header of a reply that is an error, and its value."""
REPLAY = "flowrun-replay"
"""The header of an event that was replayed, and of what came of it: the replay's id."""
REPLAY_ANEW = "flowrun-replay-anew"
"""The header of a replayed event that is to begin another run than before."""
UNREADABLE = "flowrun-unreadable"
"""The header of a delivery whose properties a transport could not read: why not."""
_PREFIXES = ("ce-", "cloudEvents_", "cloudEvents:")
_CARRIED_ON = ("traceparent", "tracestate", REPLAY)
"""Headers that what a run sends has of what began it."""
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Properties:
    """AMQP 0-9-1 message properties that flowrun reads or writes."""

    message_id: str | None = None
    type: str | None = None
    app_id: str | None = None
    content_type: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    timestamp: datetime | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message to publish. With `mandatory`, one that no queue takes is reported, not dropped."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Properties
    mandatory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Delivery:
    """A message as a queue handed it over. `receipt` is the transport's own, for settling it."""

    queue: str
    exchange: str
    routing_key: str
    body: bytes
    properties: Properties
    redelivered: bool
    receipt: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """A message's attributes, as expressions see them under `meta`. Times are RFC 3339."""

    id: str
    type: str
    source: str
    subject: str | None
    time: str
    correlation_id: str
    causation_id: str | None

    def names(self) -> dict[str, str | None]:
        """As expressions see it. Not `asdict`, which takes thirty times as long, for each message."""
        return {
            "id": self.id,
            "type": self.type,
            "source": self.source,
            "subject": self.subject,
            "time": self.time,
            "correlation_id": self.correlation_id,
            "causation_id": self.causation_id,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A delivery, read: its attributes, its payload's bytes as they came, and the trace that it belongs to."""

    meta: Meta
    data: bytes
    expires_at: str | None = None
    """A command's deadline."""
    trace: Mapping[str, str] = field(default_factory=dict)


def new_id() -> str:
    """A UUIDv7: unique, and in the order of time (RFC 9562)."""
    return str(uuid_utils.uuid7())


def decode_json(body: bytes) -> Any:
    """The JSON value of a body. Raises ValueError with the place of the fault."""
    try:
        return _decode(body)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def encode_json(value: Any) -> bytes:
    """A JSON value as bytes. Raises TypeError or ValueError for what JSON cannot carry."""
    return msgspec.json.encode(value)


def read_message(delivery: Delivery, event_type: str, received_at: datetime, *, is_command: bool = False) -> Message:
    """The message in a delivery, in binary or structured mode, or plain JSON.

    `event_type` is what the project calls it. A command's AMQP correlation id is its own: it may serve as its id,
    and says nothing of what it belongs to. Raises EnvelopeError.
    """
    properties = delivery.properties
    if (why := properties.headers.get(UNREADABLE)) is not None:
        raise EnvelopeError("bad_envelope", f"its AMQP properties cannot be read: {why}")
    if _is_structured(properties):
        attributes, data = structured_event(delivery.body)
    else:
        attributes, data = _attributes(properties.headers), delivery.body
    own_id, source = _identity(attributes, properties)
    own = properties.correlation_id
    ident = own_id or (own if is_command else None) or new_id()
    return Message(
        meta=Meta(
            id=ident,
            type=event_type,
            source=source,
            subject=attributes.get("subject"),
            time=_time(attributes.get("time"), properties.timestamp or received_at),
            correlation_id=attributes.get("correlationid") or (None if is_command else own) or ident,
            causation_id=attributes.get("causationid"),
        ),
        data=data,
        expires_at=_time(attributes["expirytime"], received_at) if attributes.get("expirytime") else None,
        trace={key: str(properties.headers[key]) for key in _CARRIED_ON if key in properties.headers},
    )


def claimed_type(delivery: Delivery) -> tuple[str, ...]:
    """The names under which a delivery might be known, best first: routing key, `ce-type`, AMQP `type`."""
    ce_type = _readable_attributes(delivery).get("type")
    return tuple(name for name in (delivery.routing_key, ce_type, delivery.properties.type) if name)


def identity(delivery: Delivery) -> tuple[str | None, str]:
    """The id, if it has one, and the source by which a delivery's duplicates are told, also of a broken one."""
    return _identity(_readable_attributes(delivery), delivery.properties)


def event_message(
    *, meta: Meta, data: bytes, project: str, mandatory: bool, trace: Mapping[str, str] | None = None
) -> Outgoing:
    """An event as it goes to the project's exchange."""
    return Outgoing(
        exchange=f"{project}.events",
        routing_key=meta.type,
        body=data,
        # An id of another program's may be longer than a property; the header has it whole.
        properties=_properties(meta, project, trace, correlation_id=short(meta.correlation_id)),
        mandatory=mandatory,
    )


def replayed_message(*, meta: Meta, data: bytes, project: str, queue: str, replay: str, anew: bool) -> Outgoing:
    """An event of the log as it goes to one queue once more, over the default exchange."""
    properties = _properties(meta, project, {REPLAY: replay}, correlation_id=short(meta.correlation_id))
    headers = {**properties.headers, **({REPLAY_ANEW: "true"} if anew else {})}
    return Outgoing(
        exchange="",
        routing_key=queue,
        body=data,
        properties=replace(properties, message_id=short(meta.id), headers=headers),
        mandatory=True,
    )


def command_message(
    *,
    meta: Meta,
    data: bytes,
    project: str,
    expires_at: str,
    reply_to: str,
    trace: Mapping[str, str] | None = None,
) -> Outgoing:
    """A command as it goes to its one receiver, which may begin it until `expires_at`."""
    properties = _properties(meta, project, trace, correlation_id=meta.id)
    headers = {**properties.headers, "ce-expirytime": expires_at}
    return Outgoing(
        exchange=f"{project}.commands",
        routing_key=meta.type,
        body=data,
        properties=replace(properties, reply_to=reply_to, headers=headers),
        mandatory=True,
    )


def reply_message(
    *, command: str, reply_to: str, correlation_id: str, body: bytes, failed: bool, project: str
) -> Outgoing:
    """A reply, over the default exchange. One that nobody waits for any more is dropped by the broker."""
    return Outgoing(
        exchange="",
        routing_key=reply_to,
        body=body,
        properties=Properties(
            message_id=new_id(),
            type=f"{command}.reply",
            app_id=f"flowrun/{project}",
            content_type="application/json",
            correlation_id=correlation_id,
            headers={FLOWRUN_STATUS: FAILED} if failed else {},
        ),
    )


def _properties(meta: Meta, project: str, trace: Mapping[str, str] | None, *, correlation_id: str | None) -> Properties:
    headers = {
        "ce-specversion": "1.0",
        "ce-id": meta.id,
        "ce-source": meta.source,
        "ce-type": meta.type,
        "ce-time": meta.time,
        "ce-correlationid": meta.correlation_id,
    }
    if meta.subject is not None:
        headers["ce-subject"] = meta.subject
    if meta.causation_id is not None:
        headers["ce-causationid"] = meta.causation_id
    headers.update(trace or {})
    return Properties(
        message_id=meta.id,
        type=meta.type,
        app_id=f"flowrun/{project}",
        content_type="application/json",
        correlation_id=correlation_id,
        timestamp=parse_time(meta.time).replace(microsecond=0),
        headers=headers,
    )


def short(text: str) -> str | None:
    """The text, if an AMQP property can carry it."""
    return text if len(text.encode()) <= MAX_SHORT_BYTES else None


def _is_structured(properties: Properties) -> bool:
    return (properties.content_type or "").lower().startswith("application/cloudevents")


def _readable_attributes(delivery: Delivery) -> dict[str, str]:
    """The attributes of a delivery that may be broken: those of its headers then."""
    if _is_structured(delivery.properties) and len(delivery.body) <= MAX_BODY_BYTES:
        try:
            return structured_event(delivery.body)[0]
        except EnvelopeError:
            pass
    return _attributes(delivery.properties.headers)


def _identity(attributes: Mapping[str, str], properties: Properties) -> tuple[str | None, str]:
    app = properties.app_id
    source = attributes.get("source") or (f"/amqp/{app}" if app else "/amqp")
    return attributes.get("id") or properties.message_id or None, source


def _attributes(headers: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in headers.items():
        for prefix in _PREFIXES:
            if key.startswith(prefix):
                found[key[len(prefix) :].lower()] = _header(value)
                break
    return found


def _header(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, datetime):
        return rfc3339(value if value.tzinfo else value.replace(tzinfo=UTC))
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def structured_event(body: bytes) -> tuple[dict[str, str], bytes]:
    """The attributes and the data of a CloudEvent in structured mode. Raises EnvelopeError."""
    try:
        envelope = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError) as error:
        raise EnvelopeError("invalid_json", f"the CloudEvent is not a JSON object: {error}") from None
    data = envelope.pop("data", None)
    if data is None:
        raise EnvelopeError("bad_envelope", "the CloudEvent has no data")
    attributes = {}
    for key, raw in envelope.items():
        try:
            value = decode_json(bytes(raw))
        except ValueError as error:
            raise EnvelopeError("invalid_json", f'the CloudEvent\'s "{key}" is not JSON: {error}') from None
        if isinstance(value, dict | list):
            raise EnvelopeError("bad_envelope", f'the CloudEvent\'s "{key}" is no text, number or boolean')
        if value is not None:  # null is as good as absent (CloudEvents, JSON format, 3.1)
            attributes[key] = value if isinstance(value, str) else bytes(raw).decode()
    return attributes, bytes(data)


def _time(text: str | None, otherwise: datetime) -> str:
    if text is not None:
        try:
            return rfc3339(parse_time(text))
        except ValueError:
            raise EnvelopeError("bad_envelope", f'"{text}" is not an RFC 3339 time') from None
    return rfc3339(otherwise if otherwise.tzinfo else otherwise.replace(tzinfo=UTC))
