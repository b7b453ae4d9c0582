"""RabbitMQ over aio-pika: confirms, mandatory publishing, quorum queues, and a recovery of our own.

Plain connections, not robust ones: those come back without consumers, and declare old arguments for ever
(aio-pika #231, #379, #334). Publishing and consuming have a connection each, because a memory alarm blocks
the one that publishes and must not block acknowledgements."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType

from runner.errors import TransportError
from runner.message import Delivery, Outgoing
from runner.plan import BrokerFacts, Difference, Topology
from runner.ports import Deliver
from runner.transports.rabbitmq.consuming import Consumers
from runner.transports.rabbitmq.link import Link, parse_url, with_files_in
from runner.transports.rabbitmq.publishing import Publisher
from runner.transports.rabbitmq.topology import Inspector

_log = logging.getLogger("flowrun.rabbitmq")


class RabbitTransport:
    """`Transport` on RabbitMQ ≥ 3.10. `urls` are tried in order; `name` is shown in the management page. Files that
    a URL names (`cafile`, `certfile`, `keyfile`) are relative to `folder`."""

    def __init__(self, urls: Sequence[str], *, name: str = "flowrun", folder: Path = Path()) -> None:
        parsed = tuple(with_files_in(folder, parse_url(url)) for url in urls)
        self._publishing = Link(parsed, f"{name}:pub")
        self._consuming = Link(parsed, f"{name}:sub")
        self._publisher = Publisher(self._publishing)
        self._inspector = Inspector(self._publishing, self._consuming)
        self._consumers = Consumers(self._consuming, declare_again=self._declare_again, count=self._inspector.consumers)
        self._topology: Topology | None = None

    async def __aenter__(self) -> RabbitTransport:
        await self._publishing.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._consumers.close()
        for link in (self._consuming, self._publishing):
            try:
                await link.close()
            except TransportError as fault:
                _log.debug("%s", fault)

    async def declare(self, topology: Topology) -> None:
        """See `Transport.declare`."""
        self._topology = topology
        await self._inspector.declare(topology)

    async def _declare_again(self) -> None:
        if self._topology is not None:
            await self._inspector.declare(self._topology)

    async def depth(self, queues: Sequence[str]) -> int:
        """See `Transport.depth`."""
        return await self._inspector.depth(queues)

    async def compare(self, topology: Topology) -> Sequence[Difference]:
        """See `TopologyReader.compare`."""
        return await self._inspector.compare(topology)

    async def facts(self, name: str) -> BrokerFacts:
        """See `TopologyReader.facts`."""
        return await self._inspector.facts(name)

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[str | None]:
        """See `Transport.publish`."""
        return await self._publisher.publish(messages)

    async def consume(self, queue: str, prefetch: int, deliver: Deliver) -> Callable[[], Awaitable[None]]:
        """See `Transport.consume`."""
        return await self._consumers.consume(queue, prefetch, deliver)

    def private_queue(self, name: str, deliver: Deliver) -> AbstractAsyncContextManager[str]:
        """See `ReplyQueues.private_queue`."""
        return self._consumers.private_queue(name, deliver)

    async def settle(self, deliveries: Sequence[Delivery], *, accept: bool = True) -> None:
        """See `Transport.settle`."""
        await self._consumers.settle(deliveries, accept=accept)
