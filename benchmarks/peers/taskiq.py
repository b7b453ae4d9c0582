"""taskiq with taskiq-aio-pika: two brokers, so that the worker takes from `in` only and sends to `out`, confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from taskiq import TaskiqEvents, TaskiqState
from taskiq.cli.worker.cmd import WorkerCMD
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType

from benchmarks import orders
from benchmarks.peers import given

AT_ONCE = 200


def broker_of(queue: str) -> AioPikaBroker:
    return AioPikaBroker(
        given.BROKER,
        qos=given.PREFETCH,
        task_queues=[Queue(name=queue, type=QueueType(given.KIND), routing_key=queue)],
        exchange=Exchange(name="taskiq"),
    )


broker, onwards = broker_of("in"), broker_of("out")


@onwards.task(task_name="accepted")
async def accepted(order: orders.Order) -> None:
    """Nobody takes it: the bench counts what comes to `out`."""


@broker.task(task_name="placed")
async def placed(order: orders.Order) -> None:
    orders.check(order)
    await accepted.kiq(orders.priced(order))


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def start_onwards(state: TaskiqState) -> None:
    await onwards.startup()


async def produce(produced: Iterator[orders.Order]) -> None:
    await broker.startup()
    await onwards.startup()
    pending: set[asyncio.Task[object]] = set()
    while (order := await asyncio.to_thread(next, produced, None)) is not None:
        pending.add(asyncio.create_task(placed.kiq(order)))
        if len(pending) == AT_ONCE:
            await asyncio.gather(*pending)
            pending.clear()
    await asyncio.gather(*pending)
    await broker.shutdown()
    await onwards.shutdown()


def worker() -> None:
    quietly = ["--log-level", "ERROR"]
    WorkerCMD().exec(["benchmarks.peers.taskiq:broker", "--workers", "1", "--max-async-tasks", "100", *quietly])


if __name__ == "__main__":
    given.main(
        worker=worker, declare=lambda: asyncio.run(produce(iter(()))), produce=lambda every: asyncio.run(produce(every))
    )
