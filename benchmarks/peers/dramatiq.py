"""Dramatiq with confirms, eight threads in one process. Its queues are classic ones, with arguments of its own."""

from __future__ import annotations

from collections.abc import Iterator

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.cli import main as dramatiq_main
from dramatiq.cli import make_argument_parser
from dramatiq.middleware import CurrentMessage

from benchmarks import orders
from benchmarks.peers import given

broker = RabbitmqBroker(url=given.BROKER, confirm_delivery=True)
broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="out")
def accepted(order: orders.Order) -> None:
    """Nobody takes it: the bench counts what comes to `out`."""


@dramatiq.actor(queue_name="in", max_retries=3, min_backoff=100, max_backoff=100)
def placed(order: orders.Order) -> None:
    orders.check(order)
    message = CurrentMessage.get_current_message()
    assert message is not None
    if order["fails"] and not message.options.get("retries"):
        raise orders.FirstTryError
    accepted.send(orders.priced(order))


def declare() -> None:
    for queue in ("in", "out"):
        broker.declare_queue(queue, ensure=True)


def produce(produced: Iterator[orders.Order]) -> None:
    for order in produced:
        placed.send(order)


def worker() -> None:
    arguments = ["benchmarks.peers.dramatiq", "--processes", "1", "--threads", "8", "--queues", "in"]
    dramatiq_main(make_argument_parser().parse_args(arguments))


if __name__ == "__main__":
    given.main(worker=worker, declare=declare, produce=produce)
