"""Publishing with confirms: many in flight, one result a message."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from aiormq import exceptions as amqp

from runner.errors import TransportError
from runner.message import Outgoing
from runner.transports.rabbitmq.faults import faults, reason
from runner.transports.rabbitmq.link import Link, close_message_channel
from runner.transports.rabbitmq.messages import properties_of, publication
from runner.transports.rabbitmq.wire import MessageChannel

PUBLISH_TIMEOUT_S = 10.0

_NACKED = "the broker did not take it"
_log = logging.getLogger("flowrun.rabbitmq")


class Publisher:
    """The publishing half of a transport, over a link of its own: an alarm blocks that whole."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._channel: _ConfirmingChannel | None = None
        self._lock = asyncio.Lock()

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[str | None]:
        """See `Transport.publish`."""
        results: list[str | None] = []
        async with self._lock:
            await self._link.unblocked()
            for batch in _without_repeats(messages):
                results += await self._publish_batch(batch)
        return results

    async def _publish_batch(self, batch: Sequence[Outgoing]) -> list[str | None]:
        """A channel that has met a quorum queue between two leaders may be nacked for ever (3.10.8), so what is nacked
        is offered once more, on a channel of its own."""
        results = await self._publish_once(batch)
        nacked = [place for place, result in enumerate(results) if result == _NACKED]
        if nacked:
            await self._drop_channel()
            again = await self._publish_once([batch[place] for place in nacked])
            for place, result in zip(nacked, again, strict=True):
                results[place] = result
            if _NACKED in again:
                await self._drop_channel()
        return results

    async def _drop_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _publish_once(self, batch: Sequence[Outgoing]) -> list[str | None]:
        channel = await self._open_channel()
        answers = await channel.publish(batch)
        results: list[str | None] = []
        for message, answer in zip(batch, answers, strict=True):
            results.append(await self._publish_alone(message) if isinstance(answer, _ChannelLost) else answer)
        return results

    async def _publish_alone(self, message: Outgoing) -> str | None:
        """The broker closes the channel over a message that it cannot take, e.g. to an unknown exchange, and drops
        those behind it: only the culprit is to bear the reason."""
        channel = await self._open_channel()
        (answer,) = await channel.publish([message])
        if isinstance(answer, _ChannelLost):
            if answer.reason is None:
                raise TransportError("the connection to the broker was lost")
            return f"the broker refused it: {answer.reason}"
        return answer

    async def _open_channel(self) -> _ConfirmingChannel:
        if self._channel is None or self._channel.is_closed:
            self._channel = await _ConfirmingChannel.open(self._link)
        return self._channel


@dataclass(frozen=True, slots=True)
class _ChannelLost:
    """The channel was closed before a message was confirmed; `reason` is the broker's, if it gave one."""

    reason: str | None


_Answer = str | _ChannelLost | None
"""What `Transport.publish` says of a message, or that the channel is gone."""


class _Flight:
    """Messages that were sent together, the first under the delivery tag `first`, and what became of each."""

    def __init__(self, first: int) -> None:
        self.answers: list[_Answer] = []
        self.first = first
        """No message before it is without an answer."""
        self.places: dict[int, int] = {}
        """By delivery tag, the places of the answers that are still to come."""
        self.mandatory: dict[str | None, tuple[int, str]] = {}
        """By message id, the delivery tag and the routing key of each message that may come back."""
        self.error: BaseException | None = None
        self.done = asyncio.Event()
        """Every message has its answer, or the channel ended with `error`."""

    def answer(self, tag: int, answer: str | None) -> None:
        """Note what became of a message, unless that is known."""
        place = self.places.pop(tag, None)
        if place is not None:
            self.answers[place] = answer
            if not self.places:
                self.done.set()

    def fail(self, error: BaseException) -> None:
        """Nothing more will be known."""
        self.error = error
        self.done.set()

    def lose(self, reason: str | None) -> None:
        """What has no answer was lost with the channel."""
        for place in self.places.values():
            self.answers[place] = _ChannelLost(reason)


class _ConfirmingChannel:
    """A channel in confirm mode, for one batch at a time. RabbitMQ numbers what is sent on it, from one on."""

    _channel: MessageChannel

    def __init__(self) -> None:
        self._sent = 0
        self._flight: _Flight | None = None

    @classmethod
    async def open(cls, link: Link) -> _ConfirmingChannel:
        """A new one. Raises TransportError."""
        self = cls()
        self._channel = await link.message_channel(self._returned, self._confirmed)
        self._channel.amqp.closing.add_done_callback(self._ended)
        return self

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can be sent on it."""
        return self._channel.is_closed

    async def close(self) -> None:
        """Close it, if it is open."""
        await close_message_channel(self._channel)

    async def publish(self, batch: Sequence[Outgoing]) -> Sequence[_Answer]:
        """Send these, no two with one id, and wait for what becomes of each. Raises TransportError."""
        flight = self._flight = _Flight(self._sent + 1)
        frames = self._frames(batch, flight)
        if not flight.places:
            return flight.answers
        with faults("the broker has not confirmed"):
            try:
                async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                    self._channel.write(frames)
                    await self._channel.drain()
                    await flight.done.wait()
                if flight.error is not None:
                    raise flight.error
            except amqp.ChannelClosed as error:
                flight.lose(reason(error))
            except amqp.ChannelInvalidStateError:
                flight.lose(None)
        return flight.answers

    def _frames(self, batch: Sequence[Outgoing], flight: _Flight) -> bytes:
        frames = []
        for message in batch:
            try:
                frames.append(publication(self._channel.number, message, self._channel.frame_max))
            except (ValueError, TypeError, OverflowError, struct.error) as error:
                flight.answers.append(f"AMQP cannot carry it: {error}")
                continue
            self._sent += 1
            flight.places[self._sent] = len(flight.answers)
            flight.answers.append(None)
            if message.mandatory:
                flight.mandatory[_ident(message)] = (self._sent, message.routing_key)
        return b"".join(frames)

    def _confirmed(self, tag: int, multiple: bool, accepted: bool) -> None:
        flight = self._flight
        if flight is None:
            return
        for each in range(flight.first if multiple else tag, tag + 1):
            flight.answer(each, None if accepted else _NACKED)
        if multiple:
            flight.first = max(flight.first, tag + 1)

    def _returned(self, method: bytes, header: bytes, body: bytes) -> None:
        flight, ident = self._flight, properties_of(header).message_id
        if flight is not None and ident in flight.mandatory:
            tag, routing_key = flight.mandatory[ident]
            flight.answer(tag, f'unroutable: no queue takes "{routing_key}"')

    def _ended(self, closing: asyncio.Future[None]) -> None:
        error = None if closing.cancelled() else closing.exception()
        if self._flight is not None:
            lost = ConnectionResetError("the connection to the broker was lost")
            self._flight.fail(error if isinstance(error, amqp.AMQPError) else lost)


def _without_repeats(messages: Sequence[Outgoing]) -> list[list[Outgoing]]:
    """Batches in which no message id comes twice: a message that comes back is known by its id."""
    batches: list[list[Outgoing]] = [[]]
    seen: set[str | None] = set()
    for message in messages:
        ident = _ident(message)
        if ident in seen:
            batches.append([])
            seen.clear()
        seen.add(ident)
        batches[-1].append(message)
    return batches


def _ident(message: Outgoing) -> str | None:
    return message.properties.message_id or None
