"""Messages as bytes: what we write, pamqp reads, and the other way round."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame, header
from pamqp.commands import Basic

from runner.message import UNREADABLE, Outgoing, Properties
from runner.transports.rabbitmq.messages import ack, nack, properties_of, publication

_SHORT = st.text(max_size=60)
_TIME = st.integers(0, 0xFFFFFFFF).map(lambda second: datetime.fromtimestamp(second, UTC))
_VALUE = st.recursive(
    st.text(max_size=300) | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(width=32, allow_nan=False)
    | st.none() | _TIME,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
_HEADERS = st.dictionaries(st.text(max_size=20), _VALUE, max_size=6)
_PROPERTIES = st.builds(
    Properties,
    message_id=st.none() | _SHORT,
    type=st.none() | _SHORT,
    app_id=st.none() | _SHORT,
    content_type=st.none() | _SHORT,
    correlation_id=st.none() | _SHORT,
    reply_to=st.none() | _SHORT,
    timestamp=st.none() | _TIME,
    headers=_HEADERS,
)


def read_all(data: bytes) -> list[Any]:
    """The frames in it, as pamqp reads them, and their channels' numbers."""
    frames = []
    while data:
        size, number, value = frame.unmarshal(data)
        frames.append((number, value))
        data = data[size:]
    return frames


def content_header(properties: Basic.Properties) -> bytes:
    return header.ContentHeader(0, 0, properties).marshal()


@given(_PROPERTIES, st.booleans())
def test_pamqp_reads_what_we_write(properties: Properties, mandatory: bool) -> None:
    message = Outgoing(exchange="ä", routing_key="b.c", body=b"x", properties=properties, mandatory=mandatory)
    (_, method), (_, content), (number, body) = read_all(publication(7, message, 4096))
    assert isinstance(method, Basic.Publish)
    assert (method.exchange, method.routing_key, method.mandatory, method.immediate) == ("ä", "b.c", mandatory, False)
    written = content.properties
    assert (number, content.body_size, body.value, written.delivery_mode) == (7, 1, b"x", 2)
    assert (written.headers or {}) == properties.headers
    for ours, amqp in {"type": "message_type"}.items() | {(n, n) for n in ("message_id", "app_id", "content_type")}:
        assert (getattr(written, amqp) or None) == (getattr(properties, ours) or None)
    assert (written.correlation_id or None) == (properties.correlation_id or None)
    assert (written.reply_to or None) == (properties.reply_to or None)
    assert written.timestamp == properties.timestamp


@given(_PROPERTIES, st.none() | st.integers(0, 255), st.none() | _SHORT, st.none() | _SHORT)
def test_we_read_what_pamqp_writes(
    properties: Properties, priority: int | None, expiration: str | None, user: str | None
) -> None:
    written = Basic.Properties(
        content_encoding=user,
        priority=priority,
        expiration=expiration,
        user_id=user,
        message_id=properties.message_id,
        message_type=properties.type,
        app_id=properties.app_id,
        content_type=properties.content_type,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        timestamp=properties.timestamp,
        headers=dict(properties.headers),
    )
    read = properties_of(content_header(written))
    for name in Properties.__dataclass_fields__:
        assert (getattr(read, name) or None) == (getattr(properties, name) or None)


@given(st.binary(max_size=80), st.integers(0, 0xFFFF))
def test_whatever_the_properties_are_they_are_read_or_said_to_be_unreadable(data: bytes, flags: int) -> None:
    assert isinstance(properties_of(struct.pack(">HHQH", 60, 0, 0, flags) + data), Properties)


@pytest.mark.parametrize(
    ("properties", "why"),
    [
        (struct.pack(">HQ", 0x0040, 300_000_000_000_000_000), "out of range"),
        (struct.pack(">HI", 0x2000, 3) + b"\x02\xff\xfe", "utf-8"),
        (struct.pack(">HI", 0x2000, 300), ""),
        (struct.pack(">HI", 0x2000, 3) + b"\x01kZ", "Unknown type"),
    ],
    ids=["a time after 9999", "a name that is no UTF-8", "a table without its end", "a value of no known type"],
)
def test_properties_that_cannot_be_read_say_so(properties: bytes, why: str) -> None:
    read = properties_of(struct.pack(">HHQ", 60, 0, 0) + properties)
    assert why in read.headers[UNREADABLE]


def test_texts_in_another_encoding_are_read() -> None:
    table = b"\x01kS" + struct.pack(">I", 1) + b"\xff"
    data = struct.pack(">HHQH", 60, 0, 0, 0x2080) + struct.pack(">I", len(table)) + table + b"\x02a\xff"
    assert properties_of(data) == Properties(message_id="a\\xff", headers={"k": b"\xff"})


@pytest.mark.parametrize("size", [0, 1, 92, 93, 1000])
def test_a_body_is_cut_into_frames_of_the_size_agreed_upon(size: int) -> None:
    message = Outgoing(exchange="", routing_key="q", body=bytes(size), properties=Properties())
    _, (_, content), *bodies = read_all(publication(1, message, 100))
    assert content.body_size == size
    assert b"".join(body.value for _, body in bodies) == bytes(size)
    assert all(len(body.value) <= 92 for _, body in bodies)


def test_settling_is_what_pamqp_writes() -> None:
    assert ack(3, 2**40) == frame.marshal(Basic.Ack(2**40, False), 3)
    assert ack(3, 5, multiple=True) == frame.marshal(Basic.Ack(5, True), 3)
    assert nack(3, 5) == frame.marshal(Basic.Nack(5, False, True), 3)
