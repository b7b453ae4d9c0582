"""Written by hand on aio-pika: no more than the hop asks for."""

from __future__ import annotations

import asyncio

import aio_pika
import uvloop
from aio_pika.abc import AbstractIncomingMessage

from benchmarks import orders
from benchmarks.peers.given import BROKER, PREFETCH, QUEUES


async def worker() -> None:
    connection = await aio_pika.connect(BROKER)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=PREFETCH)

    async def on_order(message: AbstractIncomingMessage) -> None:
        order = orders.decode(message.body)
        orders.check(order)
        accepted = aio_pika.Message(
            orders.encode(orders.priced(order)),
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            content_type="application/json",
            message_id=message.message_id,
        )
        await channel.default_exchange.publish(accepted, "out")
        await message.ack()

    for queue in QUEUES:
        await (await channel.get_queue(queue)).consume(on_order)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(worker())
