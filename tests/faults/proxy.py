"""A TCP port before a server, whose network can fail: cut, reset, half open, one way, slow. For AMQP and PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from services import free_port
from yarl import URL

CHUNK = 65_536
ANSWER_S = 10.0
Direction = Literal["to_server", "from_server"]
BOTH: tuple[Direction, ...] = ("to_server", "from_server")


@dataclass(eq=False)
class _Connection:
    """A client's connection and ours to the server."""

    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    pumps: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        """RST to both ends: with a linger of 0 s, closing says nothing else."""
        for writer in self.writers:
            with contextlib.suppress(OSError, AttributeError):  # closed already
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class FaultProxy:
    """Forwards a port of its own to `server`, a URL, until it is told to fail.

    It lives on an event loop in a thread of its own, so that blocking tests can drive it. What cannot be forwarded
    stays with the sender: the proxy stops reading. A fault lasts until `heal`, or until the next fault.
    """

    def __init__(self, server: str) -> None:
        self._server_url = URL(server)
        self._port = free_port()
        self._delay_s = 0.0
        self.accepted = 0
        """How many connections clients have made so far."""
        self._connections: set[_Connection] = set()
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._flowing: dict[Direction, asyncio.Event] = {direction: asyncio.Event() for direction in BOTH}

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self.heal()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._refuse())
        self._do(self._reset())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """The server's URL, by way of this proxy."""
        return str(self._server_url.with_host("127.0.0.1").with_port(self._port))

    def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        self._do(self._refuse())
        self._do(self._reset())

    def reset(self) -> None:
        """Reset the present connections; new ones are welcome."""
        self._do(self._reset())

    def half_open(self) -> None:
        """Forward nothing in either direction, and say nothing of it; new connections are taken and stay silent."""
        self._do(self._flow())

    def one_way(self, direction: Direction) -> None:
        """Only what goes in this direction arrives."""
        self._do(self._flow(direction))

    def delay(self, seconds: float) -> None:
        """Every chunk arrives so much later, in order."""
        self._delay_s = seconds

    def heal(self) -> None:
        """Forward everything at once. What was held arrives, if its connection still stands."""
        self._delay_s = 0.0
        self._do(self._flow(*BOTH))
        self._do(self._listen())

    # --- on the loop

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_S)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _reset(self) -> None:
        pumps = [pump for connection in self._connections for pump in connection.pumps]
        for connection in self._connections:
            connection.reset()
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

    async def _flow(self, *directions: Direction) -> None:
        for direction, flowing in self._flowing.items():
            flowing.set() if direction in directions else flowing.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            there = await asyncio.open_connection(self._server_url.host, self._server_url.port)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection((writer, there[1]))
        self._connections.add(connection)
        for direction, source, target in zip(BOTH, (reader, there[0]), (there[1], writer), strict=True):
            connection.pumps.append(asyncio.create_task(self._pump(direction, source, target)))
        await asyncio.gather(*connection.pumps, return_exceptions=True)
        self._connections.discard(connection)

    async def _pump(self, direction: Direction, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with _closing(target):
            while data := await source.read(CHUNK):
                await asyncio.sleep(self._delay_s)
                await self._flowing[direction].wait()
                target.write(data)
                await target.drain()
            await self._flowing[direction].wait()  # the end travels no faster than the data


@contextlib.contextmanager
def _closing(writer: asyncio.StreamWriter) -> Iterator[None]:
    try:
        yield
    except ConnectionError:
        pass
    finally:
        writer.close()
