"""Messages on the wire ↔ ours: AMQP 0-9-1's methods and content headers, read and written as bytes.

What is there with nearly every message, texts, is read and written here; values of other types by pamqp.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pamqp import decode, encode

from runner.message import MAX_SHORT_BYTES, UNREADABLE, Delivery, Outgoing, Properties
from runner.transports.rabbitmq.wire import BODY, FRAME, FRAME_END, FRAME_OVERHEAD, HEADER, METHOD, MessageChannel

_CLASS, _PUBLISH, _ACK, _NACK = 60, 40, 80, 120
_METHOD = struct.Struct(">HH")
_TAGGED = struct.Struct(">HHQB")
_CONTENT = struct.Struct(">HHQH")
"""A content header up to its flags: class, weight, the body's size, and which properties follow."""
_FLAGS = struct.Struct(">H")
_DELIVERED = struct.Struct(">QB")
_SIZE = struct.Struct(">I")
_TEXT = struct.Struct(">BI")
_TEXT_TYPE = ord("S")
_SHORT_SIZES = tuple(bytes((size,)) for size in range(MAX_SHORT_BYTES + 1))
_PERSISTENT = b"\x02"
_REQUEUE = 2


@dataclass(frozen=True, slots=True, eq=False)
class Receipt:
    """What a delivery is settled by. `unsettled` are the tags of its channel for which that is still to be done:
    RabbitMQ closes a channel on which one is settled twice."""

    channel: MessageChannel
    tag: int
    unsettled: set[int]


# --- written -----------------------------------------------------------------------------------------------


def ack(number: int, tag: int, *, multiple: bool = False) -> bytes:
    """The frame that acknowledges a delivery, or all up to it, on the channel of that number."""
    return _frame(METHOD, number, _TAGGED.pack(_CLASS, _ACK, tag, multiple))


def nack(number: int, tag: int) -> bytes:
    """The frame that gives a delivery back to its queue."""
    return _frame(METHOD, number, _TAGGED.pack(_CLASS, _NACK, tag, _REQUEUE))


def publication(number: int, message: Outgoing, frame_max: int) -> bytes:
    """The frames that publish a message, persistent, on the channel of that number; `frame_max` is the connection's.

    Raises ValueError, TypeError, OverflowError or struct.error for what AMQP cannot carry.
    """
    method = _publish_method(message.exchange, message.routing_key, message.mandatory)
    header = _content_header(message.properties, len(message.body))
    frames = _frame(METHOD, number, method) + _frame(HEADER, number, header)
    size = frame_max - FRAME_OVERHEAD
    pieces = (message.body[at : at + size] for at in range(0, len(message.body), size))
    return frames + b"".join(_frame(BODY, number, piece) for piece in pieces)


def _frame(kind: int, number: int, payload: bytes) -> bytes:
    return FRAME.pack(kind, number, len(payload)) + payload + FRAME_END


@lru_cache(maxsize=1024)
def _publish_method(exchange: str, routing_key: str, mandatory: bool) -> bytes:
    return _METHOD.pack(_CLASS, _PUBLISH) + b"\0\0" + _short(exchange) + _short(routing_key) + bytes((mandatory,))


def _content_header(properties: Properties, body_size: int) -> bytes:
    """Properties come in the order of their flags, and only those that there are."""
    flags = 0x1000
    parts = []
    if properties.content_type:
        flags |= 0x8000
        parts.append(_known_short(properties.content_type))
    if properties.headers:
        flags |= 0x2000
        parts.append(_table(properties.headers))
    parts.append(_PERSISTENT)
    if properties.correlation_id:
        flags |= 0x0400
        parts.append(_short(properties.correlation_id))
    if properties.reply_to:
        flags |= 0x0200
        parts.append(_short(properties.reply_to))
    if properties.message_id:
        flags |= 0x0080
        parts.append(_short(properties.message_id))
    if properties.timestamp is not None:
        flags |= 0x0040
        parts.append(encode.timestamp(properties.timestamp))
    if properties.type:
        flags |= 0x0020
        parts.append(_known_short(properties.type))
    if properties.app_id:
        flags |= 0x0008
        parts.append(_known_short(properties.app_id))
    return _CONTENT.pack(_CLASS, 0, body_size, flags) + b"".join(parts)


def _table(headers: Mapping[str, Any]) -> bytes:
    parts = []
    for name, value in headers.items():
        parts.append(_known_short(name))
        if type(value) is str:
            text = value.encode()
            parts.append(_TEXT.pack(_TEXT_TYPE, len(text)))
            parts.append(text)
        else:
            parts.append(encode.encode_table_value(value))
    table = b"".join(parts)
    return _SIZE.pack(len(table)) + table


def _short(text: str) -> bytes:
    data = text.encode()
    if len(data) > MAX_SHORT_BYTES:
        raise ValueError(f'"{text[:20]}…" is longer than {MAX_SHORT_BYTES} bytes')
    return _SHORT_SIZES[len(data)] + data


_known_short = lru_cache(maxsize=1024)(_short)
"""Of names, of which there are few."""


# --- read --------------------------------------------------------------------------------------------------


def delivery_of(
    queue: str, channel: MessageChannel, method: bytes, header: bytes, body: bytes, unsettled: set[int]
) -> Delivery:
    """A delivery, from Basic.Deliver, the content header and the body, with the receipt by which it is settled."""
    at = 5 + method[4]  # behind the consumer's tag
    tag, redelivered = _DELIVERED.unpack_from(method, at)
    exchange, routing_key = _route(method[at + _DELIVERED.size :])
    return Delivery(
        queue=queue,
        exchange=exchange,
        routing_key=routing_key,
        body=body,
        properties=properties_of(header),
        redelivered=bool(redelivered),
        receipt=Receipt(channel, tag, unsettled),
    )


def properties_of(header: bytes) -> Properties:
    """The properties in a content header. Those that cannot be read, such as a time after the year 9999 or tables in
    tables without end, become the header `UNREADABLE`: any producer can send them, and the message is to become a
    dead letter rather than come again for ever."""
    try:
        return Properties(**_properties(header))
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, struct.error) as error:
        return Properties(headers={UNREADABLE: str(error)[:200]})


def _properties(header: bytes) -> dict[str, Any]:
    at = _CONTENT.size
    (flags,) = _FLAGS.unpack_from(header, at - _FLAGS.size)
    found = {}
    for name, read in _layout(flags):
        value, at = read(header, at)
        if name is not None:
            found[name] = value
    return found


@lru_cache(maxsize=1024)
def _route(data: bytes) -> tuple[str, str]:
    """An exchange and a routing key, the last of a Basic.Deliver."""
    exchange, at = _read_short(data, 0)
    routing_key, _ = _read_short(data, at)
    return exchange or "", routing_key or ""


def _read_short(data: bytes, at: int) -> tuple[str | None, int]:
    """A text, in whatever encoding; None for an empty one."""
    end = at + 1 + data[at]
    return data[at + 1 : end].decode("utf-8", "backslashreplace") or None, end


def _read_octet(data: bytes, at: int) -> tuple[int, int]:
    return data[at], at + 1


def _read_time(data: bytes, at: int) -> tuple[Any, int]:
    size, moment = decode.timestamp(data[at : at + 8])
    return moment, at + size


def _read_table(data: bytes, at: int) -> tuple[dict[str, Any], int]:
    (size,) = _SIZE.unpack_from(data, at)
    at += _SIZE.size
    end = at + size
    table: dict[str, Any] = {}
    while at < end:
        behind = at + 1 + data[at]
        name = data[at + 1 : behind].decode()
        if data[behind] == _TEXT_TYPE:
            at = behind + _TEXT.size
            (size,) = _SIZE.unpack_from(data, behind + 1)
            table[name] = _text(data[at : at + size])
            at += size
        else:
            size, table[name] = decode.embedded_value(data[behind:end])
            at = behind + size
    return table, end


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


_Read = Callable[[bytes, int], tuple[Any, int]]
_LAYOUT: tuple[tuple[int, str | None, _Read], ...] = (
    (0x8000, "content_type", _read_short),
    (0x4000, None, _read_short),  # content_encoding
    (0x2000, "headers", _read_table),
    (0x1000, None, _read_octet),  # delivery_mode
    (0x0800, None, _read_octet),  # priority
    (0x0400, "correlation_id", _read_short),
    (0x0200, "reply_to", _read_short),
    (0x0100, None, _read_short),  # expiration
    (0x0080, "message_id", _read_short),
    (0x0040, "timestamp", _read_time),
    (0x0020, "type", _read_short),
    (0x0010, None, _read_short),  # user_id
    (0x0008, "app_id", _read_short),
    (0x0004, None, _read_short),  # cluster_id
)
"""AMQP's properties of a message: the flag of each, its name in `Properties` if it is there, and how it is read."""


@lru_cache(maxsize=1024)
def _layout(flags: int) -> tuple[tuple[str | None, _Read], ...]:
    return tuple((name, read) for flag, name, read in _LAYOUT if flags & flag)
