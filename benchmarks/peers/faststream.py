"""FastStream at its quickest: dicts instead of pydantic models, checked by jsonschema-rs, arguments as they come.

Its publishers confirm; it acknowledges once the follow-up is out, and gives back what raised.
"""

from __future__ import annotations

import uvloop
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitMessage, RabbitQueue

from benchmarks import orders
from benchmarks.peers.given import BROKER, KIND, PREFETCH, QUEUES

broker = RabbitBroker(BROKER, apply_types=False, logger=None, default_channel=Channel(prefetch_count=PREFETCH))


async def accept(order: orders.Order) -> orders.Order:
    orders.check(order)
    if order["fails"] and not _is_redelivered():
        raise orders.FirstTryError
    return orders.priced(order)


def _is_redelivered() -> bool:
    message: RabbitMessage = broker.context.get("message")
    return bool(message.raw_message.redelivered)


def subscribe(name: str) -> None:
    queue = RabbitQueue(name, durable=True, queue_type=QueueType(KIND))
    subscriber = broker.subscriber(queue, ack_policy=AckPolicy.NACK_ON_ERROR)
    subscriber(broker.publisher("out", persist=True)(accept))


if __name__ == "__main__":
    for name in QUEUES:
        subscribe(name)
    uvloop.run(FastStream(broker, logger=None).run(log_level=50))
