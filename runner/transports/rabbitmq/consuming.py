"""Consumers, and the supervisor that brings them back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from aiormq import exceptions as amqp
from aiormq.abc import DeliveredMessage

from runner.errors import TopologyError, TransportError
from runner.message import Delivery
from runner.ports import Deliver
from runner.transports.rabbitmq.faults import CONNECT_TIMEOUT_S, faults
from runner.transports.rabbitmq.link import Link, close_message_channel
from runner.transports.rabbitmq.messages import Receipt, ack, delivery_of, nack
from runner.transports.rabbitmq.wire import MessageChannel

SUPERVISE_S = 1.0
COUNT_CONSUMERS_EVERY = 5
MAX_BACKOFF_S = 5.0

_log = logging.getLogger("flowrun.rabbitmq")


@dataclass(slots=True, eq=False)
class _Consumer:
    """A queue's consumer, as it should be; `channel` and `tag` are the present ones."""

    queue: str
    prefetch: int
    deliver: Deliver
    channel: MessageChannel | None = None
    unsettled: set[int] = field(default_factory=set)
    tag: str = ""
    cancelled: bool = False


class Consumers:
    """The consuming half of a transport. `declare_again` makes the topology stand before consumers are rebuilt;
    `count` asks the broker how many consumers a queue has, None if there is no such queue."""

    def __init__(
        self,
        link: Link,
        *,
        declare_again: Callable[[], Awaitable[None]],
        count: Callable[[str], Awaitable[int | None]],
    ) -> None:
        self._link = link
        self._declare_again = declare_again
        self._count = count
        self._consumers: list[_Consumer] = []
        self._left: dict[MessageChannel, set[int]] = {}
        """The channels of cancelled consumers, with what was handed over and is still to be settled."""
        self._supervisor: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Bring nothing back any more."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)

    async def consume(self, queue: str, prefetch: int, deliver: Deliver) -> Callable[[], Awaitable[None]]:
        """See `Transport.consume`."""
        consumer = _Consumer(queue, prefetch, deliver)
        await self._begin(consumer)
        self._consumers.append(consumer)
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._supervise())

        async def cancel() -> None:
            # The channel stays until what has been handed over is settled.
            consumer.cancelled = True
            if consumer in self._consumers:
                self._consumers.remove(consumer)
                await _cancel(consumer)
                if consumer.channel is not None:
                    self._left[consumer.channel] = consumer.unsettled
                    await self._close_if_settled(consumer.channel)

        return cancel

    @contextlib.asynccontextmanager
    async def private_queue(self, name: str, deliver: Deliver) -> AsyncIterator[str]:
        """See `ReplyQueues.private_queue`: exclusive, so that it is gone with the connection at the latest."""
        channel = await self._channel(name, deliver, set(), no_ack=True)
        with faults("no queue for replies"):
            await channel.amqp.queue_declare(name, exclusive=True, auto_delete=True, timeout=CONNECT_TIMEOUT_S)
            await channel.amqp.basic_consume(name, _astray, no_ack=True, timeout=CONNECT_TIMEOUT_S)
        try:
            yield name
        finally:
            await close_message_channel(channel)

    async def settle(self, deliveries: Sequence[Delivery], *, accept: bool = True) -> None:
        """See `Transport.settle`."""
        frames: dict[MessageChannel, list[bytes]] = defaultdict(list)
        if accept and len(deliveries) > 1 and (last := _end_of_prefix(deliveries)) is not None:
            last.unsettled.difference_update([tag for tag in last.unsettled if tag <= last.tag])
            frames[last.channel].append(ack(last.channel.number, last.tag, multiple=True))
        for delivery in deliveries:
            receipt: Receipt = delivery.receipt
            if receipt.channel.is_closed or receipt.tag not in receipt.unsettled:
                continue  # from before a reconnection: it comes again, and the store knows it
            receipt.unsettled.discard(receipt.tag)
            channel, tag = receipt.channel, receipt.tag
            frames[channel].append(ack(channel.number, tag) if accept else nack(channel.number, tag))
        for channel, words in frames.items():
            try:
                with faults("lost before they were settled, messages come again"):
                    channel.write(b"".join(words))
                    await channel.drain()
            except TransportError as fault:
                _log.debug("%s", fault)
            await self._close_if_settled(channel)

    async def _close_if_settled(self, channel: MessageChannel) -> None:
        """Close the channel of a cancelled consumer that nothing waits for: a connection has 2,047."""
        if not self._left.get(channel, {None}):
            del self._left[channel]
            await close_message_channel(channel)

    async def _channel(
        self, queue: str, deliver: Deliver, unsettled: set[int], *, no_ack: bool = False
    ) -> MessageChannel:
        """A channel that hands a queue's messages over; with `no_ack` they are settled by that."""

        def received(method: bytes, header: bytes, body: bytes) -> None:
            delivery = delivery_of(queue, channel, method, header, body, unsettled)
            if not no_ack:
                unsettled.add(delivery.receipt.tag)
            try:
                deliver(delivery)
            except Exception:  # it would end the connection, and come again with the next
                _log.exception("internal error, please report it")

        channel = await self._link.message_channel(received)
        return channel

    async def _begin(self, consumer: _Consumer) -> None:
        consumer.unsettled = set()
        channel = await self._channel(consumer.queue, consumer.deliver, consumer.unsettled)
        with faults(f'"{consumer.queue}" cannot be consumed'):
            try:
                await channel.amqp.basic_qos(prefetch_count=consumer.prefetch, timeout=CONNECT_TIMEOUT_S)
                answer = await channel.amqp.basic_consume(consumer.queue, _astray, timeout=CONNECT_TIMEOUT_S)
            except amqp.ChannelNotFoundEntity as error:
                raise TransportError(f'there is no queue "{consumer.queue}"') from error
            except BaseException:
                await close_message_channel(channel)
                raise
        consumer.channel, consumer.tag = channel, str(answer.consumer_tag)
        if consumer.cancelled:  # while it was being begun again
            await _cancel(consumer)

    async def _supervise(self) -> None:
        """Compare the consumers that there are with those that there should be, and rebuild what is missing."""
        failures = rounds = 0
        while True:
            await asyncio.sleep(SUPERVISE_S)
            rounds += 1
            try:
                missing = [c for c in list(self._consumers) if not _is_consuming(c)]
                if not missing and rounds % COUNT_CONSUMERS_EVERY == 0:
                    missing = [c for c in list(self._consumers) if await self._is_unknown_to_broker(c)]
                if missing:
                    await self._rebuild(missing)
                failures = 0
            except Exception as error:  # whatever it is, nobody else would bring the consumers back
                failures += 1
                delay_s = random.uniform(0, min(MAX_BACKOFF_S, 2.0 ** min(failures, 10)))  # noqa: S311 full jitter
                unforeseen = None if isinstance(error, TransportError) else error
                _log.warning("%s; trying again in %.1f s", error, delay_s, exc_info=unforeseen)
                await asyncio.sleep(delay_s)

    async def _rebuild(self, missing: list[_Consumer]) -> None:
        """Begin them again; one that cannot be does not keep the others from it. Raises TransportError."""
        fault: TransportError | None = None
        try:
            await self._declare_again()
        except TopologyError as error:
            fault = error
        await self._link.open()
        again: list[str] = []
        for consumer in missing:
            if consumer.channel is not None:
                await close_message_channel(consumer.channel)
            try:
                await self._begin(consumer)
                again.append(consumer.queue)
            except TransportError as error:
                fault = error
        if again:
            _log.warning("consuming again: %s", ", ".join(again))
        if fault is not None:
            raise fault

    async def _is_unknown_to_broker(self, consumer: _Consumer) -> bool:
        return not await self._count(consumer.queue)


def _is_consuming(consumer: _Consumer) -> bool:
    channel = consumer.channel
    return channel is not None and not channel.is_closed and consumer.tag in channel.amqp.consumers  # type: ignore[attr-defined]


async def _cancel(consumer: _Consumer) -> None:
    channel = consumer.channel
    if channel is None or channel.is_closed:
        return
    try:
        with faults("cancelling"):
            await channel.amqp.basic_cancel(consumer.tag, timeout=CONNECT_TIMEOUT_S)
    except TransportError as error:
        _log.debug("the consumer of %s: %s", consumer.queue, error)


def _end_of_prefix(deliveries: Sequence[Delivery]) -> Receipt | None:
    """The last of these up to which one acknowledgement is of these and no others; None if that is of one or none."""
    receipts: list[Receipt] = [delivery.receipt for delivery in deliveries]
    channel, unsettled = receipts[-1].channel, receipts[-1].unsettled
    ours = {receipt.tag: receipt for receipt in receipts if receipt.channel is channel and receipt.tag in unsettled}
    others_begin = min(unsettled - ours.keys(), default=max(ours, default=0) + 1)
    prefix = [tag for tag in ours if tag < others_begin]
    return ours[max(prefix)] if len(prefix) > 1 and not channel.is_closed else None


async def _astray(message: DeliveredMessage) -> None:
    """aiormq wants to know by whom a queue is consumed; the message itself reaches him by the wire."""
    _log.error("internal error, please report it: aiormq got %r", message.delivery)
