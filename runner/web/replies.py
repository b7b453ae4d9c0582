"""Replies to the commands that requests send: over one private queue a process, which is made anew when it is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runner.engine.intake import read_answer, says_too_late
from runner.errors import EnvelopeError, TransportError
from runner.message import Delivery, Outgoing, Properties, new_id
from runner.ports import ReplyQueues
from runner.records import Answer, Error
from runner.web.refusal import Refusal
from runner.web.sending import Sender

PROBE_S = 1.0
OPEN_TIMEOUT_S = 2.0

_log = logging.getLogger("flowrun.http")


@dataclass(frozen=True, slots=True, eq=False)
class _Queue:
    """The present queue; `lost` is done once there is none of that name any more."""

    name: str
    lost: asyncio.Future[None]


@dataclass(frozen=True, slots=True, eq=False)
class _Asking:
    """A request that waits for the reply to its command."""

    command: str
    reply: asyncio.Future[Answer]

    def is_meant(self, delivery: Delivery) -> bool:
        """Two commands may have one id; a reply says in its type whose it is. One that does not is taken at its id."""
        kind = delivery.properties.type or ""
        return kind == f"{self.command}.reply" or not kind.endswith(".reply")


class Replies:
    """Sends commands and waits for their replies. Safe from many tasks, while `run` is running."""

    def __init__(self, queues: ReplyQueues, sender: Sender, project: str) -> None:
        self._queues = queues
        self._sender = sender
        self._project = project
        self._present: _Queue | None = None
        self._opened = asyncio.Event()
        self._waiting: dict[str, list[_Asking]] = {}
        self._said = ""

    async def ask(self, command: str, ident: str, build: Callable[[str], Outgoing], timeout_s: float) -> Answer:
        """The reply to the command with the id `ident`, which `build` makes, given the queue for its reply.

        When that queue is lost, the command goes out once more with the next one: it is executed once, and answered
        alike. Raises Refusal if the broker is away.
        """
        asking = _Asking(command, asyncio.get_running_loop().create_future())
        ends: tuple[asyncio.Future[Any], ...]
        self._waiting.setdefault(ident, []).append(asking)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    queue = await self._queue()
                    reason = await self._sender.send(build(queue.name))
                    if reason is not None:
                        return _nobody(ident, reason)
                    ends = (asking.reply, queue.lost)
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                    if asking.reply.done():
                        return asking.reply.result()
        except TimeoutError:
            late = Error(type="timeout", message=f"no reply within {timeout_s:g} s", retryable=True)
            return Answer(command_id=ident, error=late)
        finally:
            asking.reply.cancel()
            self._waiting[ident].remove(asking)
            if not self._waiting[ident]:
                del self._waiting[ident]

    def give_up(self) -> None:
        """Whoever waits for a reply is told that it will not come here."""
        for asking in [each for waiting in self._waiting.values() for each in waiting]:
            if not asking.reply.done():
                asking.reply.set_exception(
                    Refusal.unavailable("this process stops; send it again with its Idempotency-Key")
                )

    async def run(self) -> None:
        """Hold a queue, for ever."""
        while True:
            try:
                await self._hold_one()
            except TransportError as error:
                if str(error) != self._said:
                    self._said = str(error)
                    _log.warning("%s; no queue for replies", error)
            except Exception:  # whatever it is, later replies must come
                _log.exception("internal error, please report it")
            await asyncio.sleep(PROBE_S)

    async def _hold_one(self) -> None:
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with self._queues.private_queue(f"{self._project}.http.{new_id()}", self._came) as name:
            self._present, self._said = _Queue(name, lost), ""
            self._opened.set()
            try:
                await self._until_lost(name)
            finally:
                self._opened.clear()
                lost.set_result(None)

    async def _until_lost(self, name: str) -> None:
        """Nobody says that a queue is gone: while replies are waited for, it is sent something that it must take."""
        probe = Outgoing(exchange="", routing_key=name, body=b"", properties=Properties(), mandatory=True)
        while True:
            await asyncio.sleep(PROBE_S)
            try:
                if self._waiting and await self._sender.send(probe) is not None:
                    return
            except Refusal:
                return

    async def _queue(self) -> _Queue:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._opened.wait()
        except TimeoutError:
            raise Refusal.unavailable("there is no queue for the reply: the broker is away") from None
        assert self._present is not None
        return self._present

    def _came(self, delivery: Delivery) -> None:
        waiting = self._waiting.get(delivery.properties.correlation_id or "", ())
        meant = [asking.reply for asking in waiting if asking.is_meant(delivery)]
        if not meant:
            return  # a probe, or a reply that nobody waits for any more
        try:
            answer = read_answer(delivery)
        except EnvelopeError as fault:
            ident = str(delivery.properties.correlation_id)
            error = Error(type="internal", message=f"the reply cannot be read: {fault}", retryable=True)
            answer = Answer(command_id=ident, error=error)
        if says_too_late(answer):
            return  # our own clock says when, and the command may have gone out again since
        for reply in meant:
            if not reply.done():
                reply.set_result(answer)


def _nobody(ident: str, reason: str) -> Answer:
    if not reason.startswith("unroutable"):
        raise Refusal.unavailable(f"the broker would not take it: {reason}")
    error = Error(type="no_handler", message="no queue takes this command", retryable=False)
    return Answer(command_id=ident, error=error)
