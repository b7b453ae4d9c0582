"""The driver's side of the broker: it fills queues, looks how full they are, and takes what comes out."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import aio_pika
import pika
from pika.adapters.blocking_connection import BlockingChannel

from benchmarks import orders
from benchmarks.rounds import BenchError

PATIENCE_S = 90.0
POLL_S = 0.02
AT_ONCE = 500


@contextmanager
def opened(url: str) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(f"{url}?heartbeat=0"))
    try:
        yield connection.channel()
    finally:
        connection.close()


def declare(url: str, *queues: str, kind: str, arguments: Mapping[str, object] = {}) -> None:
    """Durable queues of a kind: `quorum` or `classic`."""
    with opened(url) as channel:
        for queue in queues:
            channel.queue_declare(queue, durable=True, arguments={**arguments, "x-queue-type": kind})


def bind(url: str, exchange: str, exchange_type: str, bindings: dict[str, str]) -> None:
    """A durable exchange, and the keys under which queues take from it."""
    with opened(url) as channel:
        channel.exchange_declare(exchange, exchange_type, durable=True)
        for queue, key in bindings.items():
            channel.queue_bind(queue, exchange, key)


def publish(url: str, exchange: str, key: str, produced: Iterator[orders.Order]) -> None:
    """Persistent messages, each with an id; returns once all are confirmed: a quorum queue may lose others."""
    asyncio.run(_publish(url, exchange, key, produced))


async def _publish(url: str, exchange: str, key: str, produced: Iterator[orders.Order]) -> None:
    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    target = await channel.get_exchange(exchange)
    pending: set[asyncio.Task[object]] = set()
    while (order := await asyncio.to_thread(next, produced, None)) is not None:
        message = aio_pika.Message(
            orders.encode(order),
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            content_type="application/json",
            message_id=str(uuid.uuid4()),
            type=key,
        )
        pending.add(asyncio.create_task(target.publish(message, key, mandatory=False)))
        if len(pending) == AT_ONCE:
            await asyncio.gather(*pending)
            pending.clear()
    await asyncio.gather(*pending)
    await connection.close()


def wait_for_depth(url: str, queue: str, count: int, check: Callable[[], None]) -> int:
    """Return once so many messages lie in it: how many those are by then. `check` raises when no more will come.

    Raises BenchError.
    """
    found = _wait(url, queue, lambda method: method.message_count >= count, check, f"to hold {count:,} messages")
    return int(found.message_count)


def wait_for_consumer(url: str, queue: str, check: Callable[[], None]) -> None:
    """Return once somebody takes what comes. Raises BenchError."""
    _wait(url, queue, lambda method: method.consumer_count > 0, check, "to have a consumer")


def _wait(url: str, queue: str, holds: Callable[[Any], bool], check: Callable[[], None], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    with opened(url) as channel:
        while True:
            found = channel.queue_declare(queue, passive=True).method
            if holds(found):
                return found
            check()
            if time.monotonic() > deadline:
                raise BenchError(
                    f"{queue} was {PATIENCE_S:.0f} s long awaited {what}; it holds {found.message_count:,} messages"
                )
            time.sleep(POLL_S)


class Arrivals(threading.Thread):
    """Takes what comes to a queue, from its making on, and notes how long each was on its way."""

    def __init__(self, url: str, queue: str, count: int) -> None:
        super().__init__(daemon=True)
        self._url, self._queue, self._count = url, queue, count
        self.latencies_ms: list[float] = []
        self.start()

    def run(self) -> None:
        with opened(self._url) as channel:
            for method, _, body in channel.consume(self._queue, auto_ack=True, inactivity_timeout=PATIENCE_S):
                if method is None:
                    return
                self.latencies_ms.append((time.monotonic_ns() - orders.sent_ns(body)) / 1e6)
                if len(self.latencies_ms) == self._count:
                    return

    def all(self) -> list[float]:
        """Those of all messages. Raises BenchError if they do not come."""
        self.join(PATIENCE_S)
        if len(self.latencies_ms) < self._count:
            raise BenchError(f"{len(self.latencies_ms):,} of {self._count:,} messages came out")
        return self.latencies_ms
