"""The socket of a connection, on which messages pass aiormq by.

aiormq makes a task of each delivery, and a future, a timer and queued frames of each publication: most of what a
message costs. So the connection's `Wire` reads the socket before it. Frames of messages on a `MessageChannel` go to
that channel at once, in their order; all others go on to aiormq, which keeps what it is good at: the handshake,
heartbeats, channels, declarations and errors. Frames are those of AMQP 0-9-1, 2.3.5 and 4.2.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import aio_pika
from aiormq.abc import AbstractChannel
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError, ChannelInvalidStateError
from yarl import URL

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME = struct.Struct(">BHI")
"""Before a frame's payload: its type, its channel and the payload's size."""
FRAME_END = b"\xce"
DEFAULT_FRAME_MAX = 131_072
"""RabbitMQ's, where it says that it has no limit."""
FRAME_OVERHEAD = FRAME.size + len(FRAME_END)

OnMessage = Callable[[bytes, bytes, bytes], None]
"""Takes the payloads of Basic.Deliver or Basic.Return, of the content header, and the body. An exception ends the
connection."""
OnConfirm = Callable[[int, bool, bool], None]
"""Takes a delivery tag, whether it stands for all before it too, and whether the broker accepts: Basic.Ack or Nack."""

_TYPES = frozenset((METHOD, HEADER, BODY, HEARTBEAT))
_DELIVER, _RETURN, _ACK, _NACK = (struct.pack(">HH", 60, method) for method in (60, 50, 80, 120))
_CLOSES = (struct.pack(">HH", 20, 40), struct.pack(">HH", 20, 41))
"""Channel.Close and Channel.CloseOk: after either the channel's number may be another's."""
_CONFIRM = struct.Struct(">QB")
_BODY_SIZE = struct.Struct(">Q")
_HEARTBEAT = FRAME.pack(HEARTBEAT, 0, 0) + FRAME_END
_HEARTBEAT_EVERY_S = 1.0


class WiredConnection(aio_pika.Connection):
    """aio-pika's plain connection, over a wire."""

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        self.wire = Wire()
        self.kwargs["transport_factory"] = self.wire


class Wire(TransportFactory):
    """Opens a connection's socket for aiormq, and reads it first."""

    def __init__(self) -> None:
        self.channels: dict[int, MessageChannel] = {}
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """See `TransportFactory.create`."""
        loop = asyncio.get_running_loop()
        certificates = kwargs.pop("ssl_context_provider")
        context = await certificates.get_context() if url.scheme == "amqps" else None
        reader = asyncio.StreamReader(loop=loop)
        protocol = _Protocol(reader, Frames(self.channels))
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol, str(url.host), int(url.port or 0), ssl=context, **kwargs
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        self._writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        return reader, self._writer

    def write(self, frames: bytes) -> None:
        """Send whole frames, behind what was sent before. Raises ConnectionError."""
        assert self._writer is not None
        if self._writer.is_closing():
            raise ConnectionResetError("the connection to the broker was lost")
        self._writer.write(frames)

    async def drain(self) -> None:
        """Return once the socket takes more. Raises ConnectionError."""
        assert self._writer is not None
        await self._writer.drain()


class MessageChannel:
    """A channel whose messages go by the wire. `amqp` is aiormq's, for all but messages."""

    def __init__(
        self, amqp: AbstractChannel, wire: Wire, *, on_message: OnMessage, on_confirm: OnConfirm | None = None
    ) -> None:
        self.amqp = amqp
        self.number = amqp.number
        self.frame_max = amqp.connection.connection_tune.frame_max or DEFAULT_FRAME_MAX
        self._wire = wire
        self._on_message = on_message
        self._on_confirm = on_confirm
        self._is_closed = False
        self._method = self._header = b""
        self._body: list[bytes] = []
        self._missing = 0
        wire.channels[self.number] = self

    @property
    def is_closed(self) -> bool:
        """Whether nothing may be sent on it any more; known here before aiormq has heard of it."""
        return self._is_closed or self.amqp.is_closed

    def write(self, frames: bytes) -> None:
        """See `Wire.write`. Raises ConnectionError or ChannelInvalidStateError."""
        if self.is_closed:  # the broker ends the connection over a frame on a closed channel
            raise ChannelInvalidStateError("the channel is closed")
        self._wire.write(frames)

    async def drain(self) -> None:
        """See `Wire.drain`."""
        await self._wire.drain()

    def end(self) -> None:
        """Send nothing more, and drop what still comes: the broker has closed it, or is about to be asked to."""
        self._is_closed = True

    def take(self, kind: int, payload: bytes) -> bool:
        """Take a frame of this channel; False if it is none of a message's."""
        if kind == METHOD:
            return self._take_method(payload)
        if not self._method:
            return False
        if kind == HEADER:
            self._header = payload
            (self._missing,) = _BODY_SIZE.unpack_from(payload, 4)
        else:
            self._body.append(payload)
            self._missing -= len(payload)
        if self._missing <= 0:
            method, body = self._method, b"".join(self._body)
            self._method = b""
            self._body.clear()
            if not self._is_closed:
                self._on_message(method, self._header, body)
        return True

    def _take_method(self, payload: bytes) -> bool:
        method = payload[:4]
        if method in (_DELIVER, _RETURN):
            self._method = payload
            return True
        if method in (_ACK, _NACK) and self._on_confirm is not None:
            tag, bits = _CONFIRM.unpack_from(payload, 4)
            self._on_confirm(tag, bool(bits & 1), method == _ACK)
            return True
        return False


class Frames:
    """Cuts what a socket gives into frames, and hands those of messages to their channels."""

    def __init__(self, channels: dict[int, MessageChannel]) -> None:
        self._channels = channels
        self._rest = b""
        self._is_foreign = False

    def take(self, data: bytes) -> bytes:
        """The whole frames in it that are aiormq's; and from where it is no AMQP on, everything, for aiormq to say
        so."""
        if self._is_foreign:
            return data
        data = self._rest + data
        at, end, others = 0, len(data), []
        while at < end:
            if data[at] not in _TYPES:
                self._is_foreign = True
                break
            if end - at < FRAME_OVERHEAD:
                break
            kind, number, size = FRAME.unpack_from(data, at)
            after = at + size + FRAME_OVERHEAD
            if after > end:
                break
            if data[after - 1] != FRAME_END[0]:
                self._is_foreign = True
                break
            channel = self._channels.get(number)
            if channel is None or not channel.take(kind, data[at + FRAME.size : after - 1]):
                others.append(data[at:after])
                self._mind_close(kind, number, data[at + FRAME.size : at + FRAME.size + 4])
            at = after
        if self._is_foreign:
            others.append(data[at:])
        self._rest = data[at:]
        return b"".join(others)

    def _mind_close(self, kind: int, number: int, method: bytes) -> None:
        if kind == METHOD and method in _CLOSES and (channel := self._channels.pop(number, None)) is not None:
            channel.end()


class _Protocol(asyncio.StreamReaderProtocol):
    """Feeds aiormq's reader with the frames that are its own. Where all are ours, it gets a heartbeat now and then:
    RabbitMQ sends none while it sends messages, and aiormq takes silence for a dead connection."""

    def __init__(self, reader: asyncio.StreamReader, frames: Frames) -> None:
        super().__init__(reader)
        self.frames = frames
        self.clock = asyncio.get_running_loop().time
        self.fed_at = self.clock()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        others = self.frames.take(data)
        now = self.clock()
        if not others and now - self.fed_at >= _HEARTBEAT_EVERY_S:
            others = _HEARTBEAT
        if others:
            self.fed_at = now
            super().data_received(others)
