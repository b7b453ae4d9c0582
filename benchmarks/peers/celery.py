"""Celery with late acknowledgement and confirms, eight threads: quicker here than its default, processes."""

from __future__ import annotations

from collections.abc import Iterator

from celery import Celery, Task
from kombu import Queue

from benchmarks import orders
from benchmarks.peers import given

arguments = {"x-queue-type": given.KIND}
app = Celery("bench", broker=given.BROKER)
app.conf.update(
    broker_transport_options={"confirm_publish": True},
    broker_heartbeat=0,
    task_acks_late=True,
    task_ignore_result=True,
    task_default_queue="in",
    task_default_queue_type=given.KIND,
    task_default_delivery_mode=2,
    task_queues=[Queue(name, queue_arguments=arguments) for name in ("in", "out")],
    task_routes={"accepted": {"queue": "out"}},
    worker_prefetch_multiplier=12,  # times eight threads: as many as the others
    worker_enable_remote_control=False,
    worker_hijack_root_logger=False,
)


@app.task(name="accepted")
def accepted(order: orders.Order) -> None:
    """Nobody takes it: the bench counts what comes to `out`."""


@app.task(name="placed", bind=True)
def placed(self: Task, order: orders.Order) -> None:
    orders.check(order)
    if order["fails"] and self.request.retries == 0:
        raise self.retry(countdown=0.1)
    accepted.apply_async((orders.priced(order),))


def declare() -> None:
    with app.connection() as connection:
        for queue in app.conf.task_queues:
            queue(connection.channel()).declare()


def produce(produced: Iterator[orders.Order]) -> None:
    for order in produced:
        placed.apply_async((order,))


def worker() -> None:
    quietly = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"]
    app.worker_main(["worker", "--queues", "in", "--pool", "threads", "--concurrency", "8", *quietly])


if __name__ == "__main__":
    given.main(worker=worker, declare=declare, produce=produce)
