"""What requests send to the broker: together, whatever there is once the last batch is confirmed."""

from __future__ import annotations

import asyncio
import logging

from runner.errors import TransportError
from runner.message import Outgoing
from runner.ports import Transport
from runner.web.refusal import Refusal

BATCH = 50
SEND_TIMEOUT_S = 10.0
"""A broker that takes nothing for the time being must not keep requests waiting for ever."""

_log = logging.getLogger("flowrun.http")


class Sender:
    """Publishes for many requests. Safe from many tasks, while `run` is running."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._waiting: list[tuple[Outgoing, asyncio.Future[str | None]]] = []
        self._wake = asyncio.Event()

    async def send(self, message: Outgoing) -> str | None:
        """None once the broker has it, else why it would not take it. Raises Refusal: then it may have it all the
        same, so it is to be sent again under its id."""
        future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((message, future))
        self._wake.set()
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                return await future
        except TimeoutError:
            raise Refusal.unavailable("the broker takes no messages now") from None
        except TransportError as error:
            _log.warning("a request is turned away: %s", error)
            raise Refusal.unavailable("the broker is away") from None

    async def run(self) -> None:
        """Publish what is to be sent, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                await self._publish([(message, future) for message, future in batch if not future.done()])

    async def _publish(self, batch: list[tuple[Outgoing, asyncio.Future[str | None]]]) -> None:
        try:
            results = await self._transport.publish([message for message, _ in batch])
        except Exception as error:  # whatever it is, later requests must be served
            if not isinstance(error, TransportError):
                _log.exception("internal error, please report it")
            for _, future in batch:
                if not future.done():
                    future.set_exception(TransportError(f"{error}"))
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
