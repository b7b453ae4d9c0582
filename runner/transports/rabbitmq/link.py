"""One connection to whichever broker of a list answers, made anew when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

from aio_pika.abc import AbstractConnection
from aiormq import exceptions as amqp
from aiormq.abc import AbstractChannel
from yarl import URL

from runner.errors import SettingsError, TransportError
from runner.transports.rabbitmq.faults import CONNECT_TIMEOUT_S, LOST, TLS_FILES, connect_fault, faults
from runner.transports.rabbitmq.unreadable import install
from runner.transports.rabbitmq.wire import MessageChannel, OnConfirm, OnMessage, WiredConnection

HEARTBEAT_S = 8
"""aiormq gives a dead link up after three of them and three seconds, and looks now and then: within about 31 s."""
BLOCKED_TIMEOUT_S = 1.0

_log = logging.getLogger("flowrun.rabbitmq")
# Recovery is ours and says what it does; the libraries' own warnings would say it twice, with stacks.
for _name in ("aio_pika", "aiormq"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
install()


@dataclass(slots=True)
class Link:
    """One connection to whichever broker of the list answers."""

    urls: tuple[URL, ...]
    name: str
    connection: WiredConnection | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def open(self) -> WiredConnection:
        """The live connection, made anew if need be. Raises TransportError."""
        async with self.lock:
            if self.connection is not None and _is_open(self.connection):
                return self.connection
            if self.connection is not None:
                await discard(self.connection)
            fault: TransportError | None = None
            for url in self.urls:
                try:
                    self.connection = await self._connect(url)
                    return self.connection
                except TransportError as error:
                    fault = error
            assert fault is not None
            raise fault

    async def _connect(self, url: URL) -> WiredConnection:
        full = url.update_query(heartbeat=HEARTBEAT_S, name=self.name)
        connection = WiredConnection(full)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.connect()
        except (amqp.AMQPError, OSError, TimeoutError, RuntimeError) as error:
            await discard(connection)
            raise connect_fault(url, error) from error
        return connection

    async def unblocked(self) -> None:
        """Return unless the broker takes no messages for now (`connection.blocked`): what is sent all the same would
        pile up before the socket, and again with each try. Raises TransportError."""
        transport = (await self.open()).transport
        assert transport is not None
        try:
            async with asyncio.timeout(BLOCKED_TIMEOUT_S):
                await transport.connection.ready()
        except TimeoutError:
            raise TransportError(
                "the broker takes no messages for now: it is short of memory or disk (connection.blocked)"
            ) from None

    async def channel(self, *, confirms: bool = False) -> AbstractChannel:
        """A new channel. Raises TransportError."""
        return await _channel(await self.open(), confirms=confirms)

    async def message_channel(self, on_message: OnMessage, on_confirm: OnConfirm | None = None) -> MessageChannel:
        """A new channel for messages, with confirms if there is somebody to take them. Raises TransportError."""
        connection = await self.open()
        channel = await _channel(connection, confirms=on_confirm is not None)
        return MessageChannel(channel, connection.wire, on_message=on_message, on_confirm=on_confirm)

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self.connection is not None and not self.connection.is_closed:
            with faults("closing"):
                await self.connection.close()


def parse_url(text: str) -> URL:
    """A broker's URL. Raises SettingsError, which never shows the password, nor what may be a piece of it."""
    try:
        url = URL(text)
        port = url.port
        if url.fragment:
            raise ValueError
    except ValueError:
        raise SettingsError(
            "the broker's URL cannot be read: its host or port is wrong, or its password has a character that a URL "
            "must write as %2F (/), %3A (:), %40 (@), %23 (#) and so on",
            hint=_URL_HINT,
        ) from None
    if url.scheme not in ("amqp", "amqps") or not url.host:
        shown = f'"{url.with_password(None)}"' if url.host else "what is given" if "@" in text else f'"{text}"'
        raise SettingsError(f"{shown} is not a broker's URL", hint=_URL_HINT)
    if port == 15672:
        raise SettingsError("port 15672 is RabbitMQ's management page", hint="messages go to port 5672")
    return url


def with_files_in(folder: Path, url: URL) -> URL:
    """The URL, its certificates' paths made relative to that folder."""
    return url.update_query({name: str(folder / url.query[name]) for name in TLS_FILES if name in url.query})


_URL_HINT = "write embedded: or amqp://user:password@host:5672/vhost"


async def _channel(connection: AbstractConnection, *, confirms: bool) -> AbstractChannel:
    with faults("no channel to the broker"):
        channel = connection.channel(publisher_confirms=confirms, on_return_raises=confirms)
        await channel.initialize(timeout=CONNECT_TIMEOUT_S)
        return await channel.get_underlay_channel()


def _is_open(connection: AbstractConnection) -> bool:
    """`AbstractConnection.is_closed` says only whether *we* closed it; the one below knows of the broker's end."""
    transport = connection.transport
    return not connection.is_closed and transport is not None and not transport.connection.is_closed


async def discard(connection: AbstractConnection) -> None:
    """Close what is broken or never opened: aio-pika would do so when it is collected, maybe after the loop's end."""
    with contextlib.suppress(*LOST, amqp.AMQPError, RuntimeError):
        await connection.close()


async def close_message_channel(channel: MessageChannel) -> None:
    """Close it, if it is open. Nothing is sent on it meanwhile: for a frame behind the one that closes it the broker
    ends the whole connection."""
    channel.end()
    await close_channel(channel.amqp)


async def close_channel(channel: AbstractChannel) -> None:
    """Close it, if it is open; one that is lost meanwhile is closed as well."""
    if channel.is_closed:
        return
    try:
        with faults("closing a channel"):
            await channel.close()
    except TransportError as error:
        _log.debug("%s", error)
