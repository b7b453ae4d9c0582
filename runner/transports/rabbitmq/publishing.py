"""Publishing with confirms: many in flight, one result a message."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Sequence

from aiormq import exceptions as amqp
from aiormq.abc import AbstractChannel

from runner.errors import TransportError
from runner.message import Outgoing
from runner.transports.rabbitmq.faults import faults, reason
from runner.transports.rabbitmq.link import Link, close_channel
from runner.transports.rabbitmq.messages import to_amqp

PUBLISH_TIMEOUT_S = 10.0

_NACKED = "the broker did not take it"
_log = logging.getLogger("flowrun.rabbitmq")


class _ChannelLost(Exception):
    """The channel was closed before a message was confirmed; `reason` is the broker's, if it gave one."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(reason)
        self.reason = reason


class Publisher:
    """The publishing half of a transport, over a link of its own: an alarm blocks that whole."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._channel: AbstractChannel | None = None
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
        nacked = [place for place, result in enumerate(results) if result is not None and result.startswith(_NACKED)]
        if nacked:
            await self._drop_channel()
            again = await self._publish_once([batch[place] for place in nacked])
            for place, result in zip(nacked, again, strict=True):
                results[place] = result
            if any(result is not None and result.startswith(_NACKED) for result in again):
                await self._drop_channel()
        return results

    async def _drop_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await close_channel(channel)

    async def _publish_once(self, batch: Sequence[Outgoing]) -> list[str | None]:
        channel = await self._open_channel()
        answers = await asyncio.gather(*(_publish(channel, message) for message in batch), return_exceptions=True)
        results: list[str | None] = []
        for message, answer in zip(batch, answers, strict=True):
            if isinstance(answer, _ChannelLost):
                results.append(await self._publish_alone(message))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                results.append(answer)
        return results

    async def _publish_alone(self, message: Outgoing) -> str | None:
        """The broker closes the channel over a message that it cannot take, e.g. to an unknown exchange, and drops
        those behind it: only the culprit is to bear the reason.

        What was sent on the channel after its end costs the whole connection, which may be a moment later: then this
        meets it, and is tried once more on the next one.
        """
        try:
            return await self._publish_on_a_new_channel(message)
        except TransportError as error:
            _log.debug("%s; once more", error)
            return await self._publish_on_a_new_channel(message)

    async def _publish_on_a_new_channel(self, message: Outgoing) -> str | None:
        channel = await self._open_channel()
        try:
            return await _publish(channel, message)
        except _ChannelLost as lost:
            if lost.reason is None:
                raise TransportError("the connection to the broker was lost") from lost
            return f"the broker refused it: {lost.reason}"

    async def _open_channel(self) -> AbstractChannel:
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._link.channel(confirms=True)
        return self._channel


def _without_repeats(messages: Sequence[Outgoing]) -> list[list[Outgoing]]:
    """Batches in which no message id comes twice: aiormq matches returned messages by their id."""
    batches: list[list[Outgoing]] = [[]]
    seen: set[str | None] = set()
    for message in messages:
        ident = message.properties.message_id
        if ident is not None and ident in seen:
            batches.append([])
            seen.clear()
        seen.add(ident)
        batches[-1].append(message)
    return batches


async def _publish(channel: AbstractChannel, message: Outgoing) -> str | None:
    """What `Transport.publish` says of a message. Raises TransportError or _ChannelLost."""
    with faults("the broker has not confirmed"):
        try:
            await channel.basic_publish(
                message.body,
                exchange=message.exchange,
                routing_key=message.routing_key,
                properties=to_amqp(message.properties),
                mandatory=message.mandatory,
                timeout=PUBLISH_TIMEOUT_S,
            )
        except amqp.PublishError:
            return f'unroutable: no queue takes "{message.routing_key}"'
        except amqp.DeliveryError as error:
            return f"{_NACKED}: {error}"
        except amqp.ChannelClosed as error:
            raise _ChannelLost(reason(error)) from error
        except amqp.ChannelInvalidStateError as error:
            raise _ChannelLost(None) from error
        except (ValueError, TypeError, OverflowError, struct.error) as error:
            return f"AMQP cannot carry it: {error}"
    return None
