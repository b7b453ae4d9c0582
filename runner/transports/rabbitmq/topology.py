"""Exchanges, queues and bindings: made to stand, and looked at without touching."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from aiormq import exceptions as amqp
from aiormq.abc import AbstractChannel

from runner.errors import TransportError
from runner.plan import BrokerFacts, Difference, Exchange, Queue, Topology
from runner.transports.rabbitmq.faults import CONNECT_TIMEOUT_S, LOST, drift, faults, reason, take_over
from runner.transports.rabbitmq.link import Link, close_channel

MAX_ARGUMENTS = 30
UNSEEN = "it is there; how it was made, the broker tells only a user with the configure right"

Change = Literal["none", "additive", "needs drain", "destructive", "unknown"]


class Inspector:
    """What one may ask of a broker. `asking` is the connection for questions: once we consume, not the publishing
    one, because an alarm blocks that whole."""

    def __init__(self, publishing: Link, consuming: Link) -> None:
        self._publishing = publishing
        self._consuming = consuming

    async def declare(self, topology: Topology) -> None:
        """See `Transport.declare`."""
        channel = await self._asking.channel()
        with faults("the topology cannot be declared"):
            try:
                await _make(channel, topology)
            except amqp.ChannelPreconditionFailed as error:
                raise drift(error) from error
            except amqp.ChannelAccessRefused as error:
                raise TransportError(
                    f"the broker refuses to declare: {reason(error)}", hint="grant the user the configure right"
                ) from error
        await close_channel(channel)

    async def depth(self, queues: Sequence[str]) -> int:
        """See `Transport.depth`."""
        total = 0
        for queue in queues:
            found = await self.inspect(queue)
            total += found.message_count or 0 if found is not None else 0
        return total

    async def inspect(self, queue: str) -> Any:
        """The broker's answer to a passive declare; None if there is no such queue."""
        channel = await self._asking.channel()
        with faults(f'"{queue}" cannot be looked at'):
            try:
                found = await channel.queue_declare(queue, passive=True, timeout=CONNECT_TIMEOUT_S)
            except amqp.ChannelNotFoundEntity:
                return None
        await close_channel(channel)
        return found

    async def consumers(self, queue: str) -> int | None:
        """How many consumers a queue has; None if there is no such queue. Raises TransportError."""
        found = await self.inspect(queue)
        return None if found is None else found.consumer_count or 0

    @property
    def _asking(self) -> Link:
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
        await self.inspect(name)
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
        with faults("the permissions cannot be tried out"):
            try:
                await channel.queue_declare(name, exclusive=True, auto_delete=True, timeout=CONNECT_TIMEOUT_S)
            except amqp.ChannelAccessRefused:
                return False, True
            try:
                await channel.basic_publish(b"", routing_key=name, timeout=CONNECT_TIMEOUT_S)
                await channel.queue_delete(name, timeout=CONNECT_TIMEOUT_S)
            except amqp.ChannelAccessRefused:
                return True, False
        await close_channel(channel)
        return True, True

    async def _compare_exchange(self, exchange: Exchange) -> Difference:
        def difference(change: Change, detail: str = "") -> Difference:
            return Difference(kind="exchange", name=exchange.name, change=change, detail=detail)

        if not await self._ask(lambda c: c.exchange_declare(exchange.name, passive=True)):
            return difference("additive", "it is not there")
        try:
            await self._ask(lambda c: c.exchange_declare(exchange.name, exchange_type=exchange.type, durable=True))
        except amqp.ChannelPreconditionFailed as error:
            return difference("destructive", f"{drift(error)}; deleting it takes its bindings with it")
        except amqp.ChannelAccessRefused:
            return difference("none", UNSEEN)
        return difference("none")

    async def _compare_queue(self, queue: Queue) -> Difference:
        found = await self.inspect(queue.name)
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
                faults.append(str(drift(error)))
                if take_over(arguments, error):
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
        except (*LOST, amqp.AMQPError, RuntimeError) as error:
            raise TransportError(f"the topology cannot be looked at: {reason(error)}") from error
        await close_channel(channel)
        return True


async def _make(channel: AbstractChannel, topology: Topology) -> None:
    for exchange in topology.exchanges:
        await channel.exchange_declare(exchange.name, exchange_type=exchange.type, durable=True)
    for queue in topology.queues:
        await channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
    for binding in topology.bindings:
        await channel.queue_bind(binding.queue, binding.exchange, binding.pattern)
