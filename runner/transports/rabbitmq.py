"""RabbitMQ over aio-pika: confirms, mandatory publishing, quorum queues, and a recovery of our own.

Plain connections, not robust ones: those come back without consumers, and declare old arguments for ever
(aio-pika #231, #379, #334). Publishing and consuming have a connection each, because a memory alarm blocks
the one that publishes and must not block acknowledgements.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import re
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import unquote

import aio_pika
from aio_pika.abc import AbstractConnection
from aiormq import exceptions as amqp
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic
from yarl import URL

from runner.errors import SettingsError, TopologyError, TransportError
from runner.message import Delivery, Outgoing, Properties
from runner.plan import BrokerFacts, Difference, Exchange, Queue, Topology
from runner.ports import Deliver
from runner.transports import unreadable

HEARTBEAT_S = 8
"""aiormq gives a dead link up after three of them and three seconds, and looks now and then: within about 31 s."""
CONNECT_TIMEOUT_S = 5.0
PUBLISH_TIMEOUT_S = 10.0
BLOCKED_TIMEOUT_S = 1.0
MAX_ARGUMENTS = 30
UNSEEN = "it is there; how it was made, the broker tells only a user with the configure right"
SUPERVISE_S = 1.0
COUNT_CONSUMERS_EVERY = 5
MAX_BACKOFF_S = 5.0

Change = Literal["none", "additive", "needs drain", "destructive", "unknown"]

_log = logging.getLogger("flowrun.rabbitmq")
# Recovery is ours and says what it does; the libraries' own warnings would say it twice, with stacks.
for _name in ("aio_pika", "aiormq"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
unreadable.install()

_NACKED = "the broker did not take it"
_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<arg>[^']+)' for (?P<what>\w+) '(?P<name>[^']+)'.*?: "
    r"received (?P<plan>.+?)(?: of type '\w+')? but current is (?P<live>.+?)(?: of type '\w+')?$"
)
_LOST = (
    amqp.AMQPConnectionError,
    ConnectionError,
    OSError,
    asyncio.TimeoutError,
    amqp.ChannelInvalidStateError,
)


@dataclass(slots=True, eq=False)
class _Consumer:
    """A queue's consumer, as it should be; `channel` and `tag` are the present ones."""

    queue: str
    prefetch: int
    deliver: Deliver
    channel: AbstractChannel | None = None
    tag: str = ""
    cancelled: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Receipt:
    """What a delivery is settled by. `unsettled` are the tags of its channel for which that is still to be done:
    RabbitMQ closes a channel on which one is settled twice."""

    channel: AbstractChannel
    tag: int
    unsettled: set[int]


class _ChannelLost(Exception):
    """The channel was closed before a message was confirmed; `reason` is the broker's, if it gave one."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class _Link:
    """One connection to whichever broker of the list answers."""

    urls: tuple[URL, ...]
    name: str
    connection: AbstractConnection | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def open(self) -> AbstractConnection:
        """The live connection, made anew if need be. Raises TransportError."""
        async with self.lock:
            if self.connection is not None and _is_open(self.connection):
                return self.connection
            if self.connection is not None:
                await _discard(self.connection)
            fault: TransportError | None = None
            for url in self.urls:
                try:
                    self.connection = await self._connect(url)
                    return self.connection
                except TransportError as error:
                    fault = error
            assert fault is not None
            raise fault

    async def _connect(self, url: URL) -> AbstractConnection:
        full = url.update_query(heartbeat=HEARTBEAT_S, name=self.name)
        connection = aio_pika.Connection(full)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.connect()
        except (amqp.AMQPError, OSError, TimeoutError, RuntimeError) as error:
            await _discard(connection)
            raise _connect_fault(url, error) from error
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
        connection = await self.open()
        with _faults("no channel to the broker"):
            channel = connection.channel(publisher_confirms=confirms, on_return_raises=confirms)
            await channel.initialize(timeout=CONNECT_TIMEOUT_S)
            return await channel.get_underlay_channel()

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self.connection is not None and not self.connection.is_closed:
            with _faults("closing"):
                await self.connection.close()


class RabbitTransport:
    """`Transport` on RabbitMQ ≥ 3.10. `urls` are tried in order; `name` is shown in the management page. Files that
    a URL names (`cafile`, `certfile`, `keyfile`) are relative to `folder`."""

    def __init__(self, urls: Sequence[str], *, name: str = "flowrun", folder: Path = Path()) -> None:
        parsed = tuple(_with_files_in(folder, parse_url(url)) for url in urls)
        self._publishing = _Link(parsed, f"{name}:pub")
        self._consuming = _Link(parsed, f"{name}:sub")
        self._publisher: AbstractChannel | None = None
        self._publish_lock = asyncio.Lock()
        self._consumers: list[_Consumer] = []
        self._topology: Topology | None = None
        self._supervisor: asyncio.Task[None] | None = None

    async def __aenter__(self) -> RabbitTransport:
        await self._publishing.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        for link in (self._consuming, self._publishing):
            try:
                await link.close()
            except TransportError as fault:
                _log.debug("%s", fault)

    # --- topology

    async def declare(self, topology: Topology) -> None:
        """See `Transport.declare`."""
        self._topology = topology
        channel = await self._asking.channel()
        with _faults("the topology cannot be declared"):
            try:
                await _declare(channel, topology)
            except amqp.ChannelPreconditionFailed as error:
                raise _drift(error) from error
            except amqp.ChannelAccessRefused as error:
                raise TransportError(
                    f"the broker refuses to declare: {_reason(error)}", hint="grant the user the configure right"
                ) from error
        await _close(channel)

    async def depth(self, queues: Sequence[str]) -> int:
        """See `Transport.depth`."""
        total = 0
        for queue in queues:
            found = await self._inspect(queue)
            total += found.message_count or 0 if found is not None else 0
        return total

    async def _inspect(self, queue: str) -> Any:
        """The broker's answer to a passive declare; None if there is no such queue."""
        channel = await self._asking.channel()
        with _faults(f'"{queue}" cannot be looked at'):
            try:
                found = await channel.queue_declare(queue, passive=True, timeout=CONNECT_TIMEOUT_S)
            except amqp.ChannelNotFoundEntity:
                return None
        await _close(channel)
        return found

    @property
    def _asking(self) -> _Link:
        """The connection for questions. Once we consume, not the publishing one: an alarm blocks that whole."""
        return self._consuming if self._consuming.connection is not None else self._publishing

    async def compare(self, topology: Topology) -> Sequence[Difference]:
        """See `TopologyReader.compare`. Over AMQP a broker tells no bindings, and arguments only to a user who may
        declare; declaring what stands already changes nothing."""
        found = [await self._compare_exchange(exchange) for exchange in topology.exchanges]
        found += [await self._compare_queue(queue) for queue in topology.queues]
        there = {difference.name for difference in found if difference.change != "additive"}
        for binding in topology.bindings:
            stands = binding.exchange in there and binding.queue in there
            detail = "AMQP does not show bindings; start makes it again" if stands else ""
            found.append(
                Difference(kind="binding", name=str(binding), change="unknown" if stands else "additive", detail=detail)
            )
        return found

    async def facts(self, name: str) -> BrokerFacts:
        """See `TopologyReader.facts`."""
        connection = await self._publishing.open()
        transport = connection.transport
        assert transport is not None
        said = transport.connection.server_properties
        clock = asyncio.get_running_loop().time
        began = clock()
        await self._inspect(name)
        round_trip_s = clock() - began
        try:
            await self._publishing.unblocked()
        except TransportError:
            blocked = True
        else:
            blocked = False
        may_configure, may_publish = (False, False) if blocked else await self._try_out(name)
        return BrokerFacts(
            product=str(said.get("product", "an AMQP broker")),
            version=str(said.get("version", "?")),
            may_configure=may_configure,
            may_publish=may_publish,
            blocked=blocked,
            round_trip_s=round_trip_s,
        )

    async def _try_out(self, name: str) -> tuple[bool, bool]:
        """Whether we may make a queue, and publish. The queue is exclusive: it is gone with the connection at the
        latest."""
        channel = await self._publishing.channel(confirms=True)
        with _faults("the permissions cannot be tried out"):
            try:
                await channel.queue_declare(name, exclusive=True, auto_delete=True, timeout=CONNECT_TIMEOUT_S)
            except amqp.ChannelAccessRefused:
                return False, True
            try:
                await channel.basic_publish(b"", routing_key=name, timeout=CONNECT_TIMEOUT_S)
                await channel.queue_delete(name, timeout=CONNECT_TIMEOUT_S)
            except amqp.ChannelAccessRefused:
                return True, False
        await _close(channel)
        return True, True

    async def _compare_exchange(self, exchange: Exchange) -> Difference:
        def difference(change: Change, detail: str = "") -> Difference:
            return Difference(kind="exchange", name=exchange.name, change=change, detail=detail)

        if not await self._ask(lambda c: c.exchange_declare(exchange.name, passive=True)):
            return difference("additive", "it is not there")
        try:
            await self._ask(lambda c: c.exchange_declare(exchange.name, exchange_type=exchange.type, durable=True))
        except amqp.ChannelPreconditionFailed as error:
            return difference("destructive", f"{_drift(error)}; deleting it takes its bindings with it")
        except amqp.ChannelAccessRefused:
            return difference("none", UNSEEN)
        return difference("none")

    async def _compare_queue(self, queue: Queue) -> Difference:
        found = await self._inspect(queue.name)
        if found is None:
            return Difference(kind="queue", name=queue.name, change="additive", detail="it is not there")
        change: Change = "none"
        faults: list[str] = []
        arguments: dict[str, Any] = dict(queue.arguments)
        for _ in range(MAX_ARGUMENTS):  # the broker names one argument a try
            try:
                await self._ask(lambda c: c.queue_declare(queue.name, durable=True, arguments=arguments))
            except amqp.ChannelAccessRefused:
                faults.append(UNSEEN)
            except amqp.ChannelPreconditionFailed as error:
                change = "needs drain"
                faults.append(str(_drift(error)))
                if _take_over(arguments, error):
                    continue
            break
        return Difference(
            kind="queue",
            name=queue.name,
            change=change,
            detail="; ".join(faults),
            messages=found.message_count,
        )

    async def _ask(self, question: Callable[[AbstractChannel], Awaitable[Any]]) -> bool:
        """Whether the broker agrees, False for what is not there. Each on a channel of its own: a no closes it.

        Raises ChannelPreconditionFailed, ChannelAccessRefused or TransportError.
        """
        channel = await self._asking.channel()
        try:
            await question(channel)
        except amqp.ChannelNotFoundEntity:
            return False
        except (amqp.ChannelPreconditionFailed, amqp.ChannelAccessRefused):
            raise
        except (*_LOST, amqp.AMQPError, RuntimeError) as error:
            raise TransportError(f"the topology cannot be looked at: {_reason(error)}") from error
        await _close(channel)
        return True

    # --- publishing

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[str | None]:
        """See `Transport.publish`."""
        results: list[str | None] = []
        async with self._publish_lock:
            await self._publishing.unblocked()
            for batch in _without_repeats(messages):
                results += await self._publish_batch(batch)
        return results

    async def _publish_batch(self, batch: Sequence[Outgoing]) -> list[str | None]:
        """A channel that has met a quorum queue between two leaders may be nacked for ever (3.10.8), so what is nacked
        is offered once more, on a channel of its own."""
        results = await self._publish_once(batch)
        nacked = [place for place, result in enumerate(results) if result is not None and result.startswith(_NACKED)]
        if nacked:
            await self._drop_publisher()
            again = await self._publish_once([batch[place] for place in nacked])
            for place, result in zip(nacked, again, strict=True):
                results[place] = result
            if any(result is not None and result.startswith(_NACKED) for result in again):
                await self._drop_publisher()
        return results

    async def _drop_publisher(self) -> None:
        channel, self._publisher = self._publisher, None
        if channel is not None:
            await _close(channel)

    async def _publish_once(self, batch: Sequence[Outgoing]) -> list[str | None]:
        channel = await self._publisher_channel()
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
        those behind it: only the culprit is to bear the reason."""
        channel = await self._publisher_channel()
        try:
            return await _publish(channel, message)
        except _ChannelLost as lost:
            if lost.reason is None:
                raise TransportError("the connection to the broker was lost") from lost
            return f"the broker refused it: {lost.reason}"

    async def _publisher_channel(self) -> AbstractChannel:
        if self._publisher is None or self._publisher.is_closed:
            self._publisher = await self._publishing.channel(confirms=True)
        return self._publisher

    # --- consuming

    async def consume(self, queue: str, prefetch: int, deliver: Deliver) -> Callable[[], Awaitable[None]]:
        """See `Transport.consume`."""
        consumer = _Consumer(queue, prefetch, deliver)
        await self._begin(consumer)
        self._consumers.append(consumer)
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._supervise())

        async def cancel() -> None:
            # The channel stays: what has been handed over can still be settled.
            consumer.cancelled = True
            if consumer in self._consumers:
                self._consumers.remove(consumer)
                await _cancel(consumer)

        return cancel

    @contextlib.asynccontextmanager
    async def private_queue(self, name: str, deliver: Deliver) -> AsyncIterator[str]:
        """See `ReplyQueues.private_queue`: exclusive, so that it is gone with the connection at the latest."""
        channel = await self._consuming.channel()

        async def received(message: DeliveredMessage) -> None:
            deliver(_delivery(name, channel, message, set()))

        with _faults("no queue for replies"):
            await channel.queue_declare(name, exclusive=True, auto_delete=True, timeout=CONNECT_TIMEOUT_S)
            await channel.basic_consume(name, received, no_ack=True, timeout=CONNECT_TIMEOUT_S)
        try:
            yield name
        finally:
            await _close(channel)

    async def settle(self, deliveries: Sequence[Delivery], *, accept: bool = True) -> None:
        """See `Transport.settle`."""
        for delivery in deliveries:
            receipt: _Receipt = delivery.receipt
            if receipt.channel.is_closed or receipt.tag not in receipt.unsettled:
                continue  # from before a reconnection: it comes again, and the store knows it
            receipt.unsettled.discard(receipt.tag)
            try:
                with _faults("lost before it was settled, it comes again"):
                    if accept:
                        await receipt.channel.basic_ack(receipt.tag)
                    else:
                        await receipt.channel.basic_nack(receipt.tag, requeue=True)
            except TransportError as fault:
                _log.debug("%s: %s", delivery.queue, fault)

    async def _begin(self, consumer: _Consumer) -> None:
        channel = await self._consuming.channel()
        unsettled: set[int] = set()

        async def received(message: DeliveredMessage) -> None:
            delivery = _delivery(consumer.queue, channel, message, unsettled)
            unsettled.add(delivery.receipt.tag)
            consumer.deliver(delivery)

        with _faults(f'"{consumer.queue}" cannot be consumed'):
            try:
                await channel.basic_qos(prefetch_count=consumer.prefetch, timeout=CONNECT_TIMEOUT_S)
                answer = await channel.basic_consume(consumer.queue, received, timeout=CONNECT_TIMEOUT_S)
            except amqp.ChannelNotFoundEntity as error:
                raise TransportError(f'there is no queue "{consumer.queue}"') from error
            except BaseException:
                await _close(channel)
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
            if self._topology is not None:
                await self.declare(self._topology)
        except TopologyError as error:
            fault = error
        await self._consuming.open()
        again: list[str] = []
        for consumer in missing:
            if consumer.channel is not None:
                await _close(consumer.channel)
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
        found = await self._inspect(consumer.queue)
        return found is None or found.consumer_count == 0


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


def _with_files_in(folder: Path, url: URL) -> URL:
    return url.update_query({name: str(folder / url.query[name]) for name in _TLS_FILES if name in url.query})


_TLS_FILES = ("cafile", "capath", "certfile", "keyfile")
_URL_HINT = "write embedded: or amqp://user:password@host:5672/vhost"


def _is_open(connection: AbstractConnection) -> bool:
    """`AbstractConnection.is_closed` says only whether *we* closed it; the one below knows of the broker's end."""
    transport = connection.transport
    return not connection.is_closed and transport is not None and not transport.connection.is_closed


async def _discard(connection: AbstractConnection) -> None:
    """Close what is broken or never opened: aio-pika would do so when it is collected, maybe after the loop's end."""
    with contextlib.suppress(*_LOST, amqp.AMQPError, RuntimeError):
        await connection.close()


def _is_consuming(consumer: _Consumer) -> bool:
    channel = consumer.channel
    return channel is not None and not channel.is_closed and consumer.tag in channel.consumers  # type: ignore[attr-defined]


async def _declare(channel: AbstractChannel, topology: Topology) -> None:
    for exchange in topology.exchanges:
        await channel.exchange_declare(exchange.name, exchange_type=exchange.type, durable=True)
    for queue in topology.queues:
        await channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
    for binding in topology.bindings:
        await channel.queue_bind(binding.queue, binding.exchange, binding.pattern)


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
    with _faults("the broker has not confirmed"):
        try:
            await channel.basic_publish(
                message.body,
                exchange=message.exchange,
                routing_key=message.routing_key,
                properties=_to_amqp(message.properties),
                mandatory=message.mandatory,
                timeout=PUBLISH_TIMEOUT_S,
            )
        except amqp.PublishError:
            return f'unroutable: no queue takes "{message.routing_key}"'
        except amqp.DeliveryError as error:
            return f"{_NACKED}: {error}"
        except amqp.ChannelClosed as error:
            raise _ChannelLost(_reason(error)) from error
        except amqp.ChannelInvalidStateError as error:
            raise _ChannelLost(None) from error
        except (ValueError, TypeError, OverflowError, struct.error) as error:
            return f"AMQP cannot carry it: {error}"
    return None


@contextlib.contextmanager
def _faults(what: str) -> Iterator[None]:
    """Turn the library's errors into TransportError."""
    try:
        yield
    except (*_LOST, amqp.AMQPError, RuntimeError) as error:
        raise TransportError(f"{what}: {_reason(error)}") from error
    except asyncio.CancelledError:
        # aiormq cancels whoever waits on a connection that it gives up for dead.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise TransportError(f"{what}: the connection to the broker was lost") from None


def _to_amqp(properties: Properties) -> Basic.Properties:
    return Basic.Properties(
        message_id=properties.message_id,
        message_type=properties.type,
        app_id=properties.app_id,
        content_type=properties.content_type,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        timestamp=properties.timestamp,
        headers=dict(properties.headers),
        delivery_mode=2,
    )


def _delivery(queue: str, channel: AbstractChannel, message: DeliveredMessage, unsettled: set[int]) -> Delivery:
    properties, frame = message.header.properties, message.delivery
    assert isinstance(frame, Basic.Deliver)
    return Delivery(
        queue=queue,
        exchange=frame.exchange or "",
        routing_key=frame.routing_key or "",
        body=message.body,
        properties=Properties(
            message_id=properties.message_id or None,
            type=properties.message_type or None,
            app_id=properties.app_id or None,
            content_type=properties.content_type or None,
            correlation_id=properties.correlation_id or None,
            reply_to=properties.reply_to or None,
            timestamp=_utc(properties.timestamp),
            headers=dict(properties.headers or {}),
        ),
        redelivered=bool(frame.redelivered),
        receipt=_Receipt(channel, frame.delivery_tag or 0, unsettled),
    )


def _utc(moment: datetime | None) -> datetime | None:
    if moment is None or moment.tzinfo is not None:
        return moment
    return moment.replace(tzinfo=UTC)


async def _cancel(consumer: _Consumer) -> None:
    channel = consumer.channel
    if channel is None or channel.is_closed:
        return
    try:
        with _faults("cancelling"):
            await channel.basic_cancel(consumer.tag, timeout=CONNECT_TIMEOUT_S)
    except TransportError as error:
        _log.debug("the consumer of %s: %s", consumer.queue, error)


async def _close(channel: AbstractChannel) -> None:
    if channel.is_closed:
        return
    try:
        with _faults("closing a channel"):
            await channel.close()
    except TransportError as error:
        _log.debug("%s", error)


def _reason(error: BaseException) -> str:
    """What the broker said, without the library's frame around it."""
    text = str(error.args[0]) if error.args and isinstance(error.args[0], str) else str(error)
    return text or type(error).__name__


def _drift(error: BaseException) -> TopologyError:
    text = _reason(error)
    match = _INEQUIVALENT.search(text)
    if match is None:
        return TopologyError(f"the broker's objects differ from the plan: {text}")
    live, plan = (match[side].replace("the value ", "").replace("'", '"') for side in ("live", "plan"))
    return TopologyError(
        f'{match["what"]} "{match["name"]}" stands with {match["arg"]} {live}, the plan says {plan}',
        hint="drain and delete it, or name another project",
    )


def _take_over(arguments: dict[str, Any], error: BaseException) -> bool:
    """Make an argument what the broker says that it is, so that it names the next one; False if that is unclear."""
    match = _INEQUIVALENT.search(_reason(error))
    if match is None or not match["arg"].startswith("x-"):
        return False
    live = match["live"]
    if live == "none":
        return arguments.pop(match["arg"], None) is not None
    value = live.removeprefix("the value ").strip("'")
    arguments[match["arg"]] = int(value) if value.lstrip("-").isdigit() else value
    return True


def _connect_fault(url: URL, error: BaseException) -> TransportError:
    where = f"{url.host}:{url.port or (5671 if url.scheme == 'amqps' else 5672)}"
    user = url.user or "guest"
    if isinstance(error.__cause__, ssl.SSLError):  # an alert of TLS 1.3 comes after the handshake, and aiormq wraps it
        error = error.__cause__
    text = _reason(error)
    if isinstance(error, amqp.AuthenticationError | amqp.ProbableAuthenticationError):
        return TransportError(f'the broker at {where} refused user "{user}": wrong name or password')
    # aiormq does not say why the broker closed instead of answering Connection.Open.
    if isinstance(error, amqp.ConnectionClosed) or "Connection.OpenOk" in text:
        vhost = unquote(url.path[1:]) or "/"
        return TransportError(
            f'the broker at {where} has no vhost "{vhost}", or does not let user "{user}" use it',
            hint="the vhost / is written %2F, or left out",
        )
    if isinstance(error, amqp.AMQPError) and (not isinstance(error, OSError) or error.errno is None):
        return TransportError(
            f"what answers at {where} ends the connection, or does not speak AMQP 0-9-1",
            hint="is it RabbitMQ's port? amqps:// is for its TLS port, amqp:// for the other",
        )
    files = [url.query[name] for name in _TLS_FILES if name in url.query]
    if files and isinstance(error, FileNotFoundError | PermissionError):
        return TransportError(f"no TLS with the broker at {where}: {error.strerror} ({', '.join(files)})")
    return TransportError(
        f"no broker can be reached at {where}: {_why_unreachable(error, text)}",
        hint="is RabbitMQ running? To run without one: --broker embedded:",
    )


def _why_unreachable(error: BaseException, text: str) -> str:
    if isinstance(error, TimeoutError) and error.errno is None:
        return f"no answer within {CONNECT_TIMEOUT_S:g} s"
    if not isinstance(error, OSError) or error.strerror is None:
        return text
    if "ssl" in error.strerror.lower():
        return f"TLS failed: {error.strerror}"
    return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else error.strerror.lower()
