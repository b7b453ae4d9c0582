"""The wire: which frames are a channel's messages, and which are aiormq's; and what of aiormq it rests on."""

from __future__ import annotations

import asyncio
import inspect
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import aio_pika
import aiormq
import pytest
from aiormq.connection import FrameReceiver
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat
from yarl import URL

from runner.transports.rabbitmq import wire as wires
from runner.transports.rabbitmq.wire import Frames, MessageChannel, Wire, WiredConnection


class Ours:
    """A channel whose messages are ours, and what it got."""

    def __init__(self, wire: Wire, number: int) -> None:
        self.bodies: list[bytes] = []
        self.confirms: list[tuple[int, bool, bool]] = []
        tune = SimpleNamespace(connection_tune=SimpleNamespace(frame_max=4096))
        amqp: Any = SimpleNamespace(number=number, is_closed=False, connection=tune)
        self.channel = MessageChannel(
            amqp,
            wire,
            on_message=lambda method, header, body: self.bodies.append(body),
            on_confirm=lambda *confirm: self.confirms.append(confirm),
        )


def message(number: int, method: Any, *pieces: bytes) -> bytes:
    size = sum(len(piece) for piece in pieces)
    return b"".join(frame.marshal(f, number) for f in (method, ContentHeader(0, size), *map(ContentBody, pieces)))


def delivered(number: int, *pieces: bytes) -> bytes:
    return message(number, Basic.Deliver("tag", 1, False, "", "q"), *pieces)


DECLARED = frame.marshal(Channel.OpenOk(), 1)
STREAM = b"".join(
    [
        Heartbeat().marshal(),
        delivered(1, b"a"),
        DECLARED,
        delivered(1),
        delivered(2, b"another's"),
        delivered(1, b"b" * 300, b"c"),
        frame.marshal(Basic.Ack(1, True), 1),
        frame.marshal(Basic.Nack(2, False, True), 1),
        message(1, Basic.Return(312, "NO_ROUTE", "", "q"), b"back"),
    ]
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_however_the_stream_is_cut_messages_are_ours_and_the_rest_is_aiormqs(cuts: list[int]) -> None:
    wire = Wire()
    ours, frames = Ours(wire, 1), Frames(wire.channels)
    places = [0, *sorted(cuts), len(STREAM)]
    rest = b"".join(frames.take(STREAM[begin:end]) for begin, end in pairwise(places))
    assert rest == Heartbeat().marshal() + DECLARED + delivered(2, b"another's")
    assert ours.bodies == [b"a", b"", b"b" * 300 + b"c", b"back"]
    assert ours.confirms == [(1, True, True), (2, False, False)]


@given(st.binary(max_size=60), st.integers(1, 20))
def test_nothing_of_what_is_no_amqp_is_lost(junk: bytes, step: int) -> None:
    data = DECLARED + b"HTTP/1.1 400 Bad Request" + junk
    frames = Frames({})
    assert b"".join(frames.take(data[at : at + step]) for at in range(0, len(data), step)) == data


def test_a_frame_without_its_end_is_for_aiormq_to_complain_of() -> None:
    wire = Wire()
    ours, data = Ours(wire, 1), delivered(1, b"x")
    cut = data[:-1] + b"!" + DECLARED
    assert Frames(wire.channels).take(cut) == frame.marshal(ContentBody(b"x"), 1)[:-1] + b"!" + DECLARED
    assert ours.bodies == []


def test_what_still_comes_on_a_channel_that_we_are_closing_is_dropped() -> None:
    wire = Wire()
    ours = Ours(wire, 1)
    ours.channel.end()
    assert Frames(wire.channels).take(delivered(1, b"x") + DECLARED) == DECLARED
    assert ours.bodies == []


@pytest.mark.parametrize("end", [Channel.Close(404, "gone", 0, 0), Channel.CloseOk()])
def test_nothing_is_sent_on_a_channel_that_the_broker_has_closed(end: Any) -> None:
    wire = Wire()
    ours = Ours(wire, 1)
    assert not ours.channel.is_closed
    assert Frames(wire.channels).take(frame.marshal(end, 1)) == frame.marshal(end, 1)
    assert ours.channel.is_closed
    assert wire.channels == {}
    with pytest.raises(aiormq.exceptions.ChannelInvalidStateError):
        ours.channel.write(b"")


async def test_aiormq_hears_of_a_broker_that_sends_nothing_but_messages() -> None:
    wire = Wire()
    ours = Ours(wire, 1)
    reader = asyncio.StreamReader()
    protocol = wires._Protocol(reader, Frames(wire.channels))
    now = protocol.fed_at
    protocol.clock = lambda: now
    for after_s in (0.5, 0.9, 1.0, 1.1, 2.0):
        now = protocol.fed_at + after_s if after_s < 1 else now + after_s
        protocol.data_received(delivered(1, b"x"))
    reader.feed_eof()
    assert ours.bodies == [b"x"] * 5
    assert await reader.read() == Heartbeat().marshal() * 3


# --- what an upgrade of aio-pika or aiormq may break --------------------------------------------------------


async def test_aio_pika_hands_the_transport_factory_on_to_aiormq(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: dict[str, Any] = {}

    async def connect(url: URL, **kwargs: Any) -> None:
        handed.update(kwargs)
        raise ConnectionError

    monkeypatch.setattr(aiormq, "connect", connect)
    connection = WiredConnection(URL("amqp://localhost"))
    with pytest.raises(ConnectionError):
        await connection.connect()
    assert handed["transport_factory"] is connection.wire, "aio_pika.Connection.kwargs no longer goes to aiormq.connect"
    assert isinstance(connection, aio_pika.Connection)


def test_aiormq_connects_by_the_transport_factory() -> None:
    connecting = inspect.getsource(aiormq.Connection.connect)
    assert "self._transport_factory.create(" in connecting, "aiormq opens its socket in another way"
    assert "ssl_context_provider=" in connecting, "aiormq hands its TLS context on under another name"
    assert "FrameReceiver(reader)" in connecting, "aiormq reads its socket in another way"
    assert "readexactly(" in inspect.getsource(FrameReceiver.get_frame)


def test_aiormqs_channel_has_what_we_read_of_it() -> None:
    made = inspect.getsource(aiormq.Channel.__init__)
    for name in ("connection", "consumers", "number"):
        assert f"self.{name}" in made, f"aiormq.Channel has no {name} any more"
    assert isinstance(aiormq.Channel.closing, property), "aiormq.Channel.closing is no future any more"
    assert "self.connection_tune = " in inspect.getsource(aiormq.Connection.connect), "what was tuned is elsewhere"
    assert "spec.Confirm.Select()" in inspect.getsource(aiormq.Channel.open), "a new channel does not confirm yet"
