"""`flowrun`, but its process dies at a named point, or one of its promises is broken on purpose.

    FLOWRUN_CRASH="after commit 7" FLOWRUN_CRASH_ARMED=/tmp/armed python tests/faults/crashing.py start

dies, as by kill -9, right after the seventh commit that is made while the file /tmp/armed stands, and removes the file:
a process that is brought up again, by whoever watches over it, gets through.

    FLOWRUN_BREAK=inbox      every delivery of a message begins a run of its own
    FLOWRUN_BREAK=ack        a delivery is acknowledged when it comes, before its run is in the store

    FLOWRUN_DELIVERIES=file  appends a line for everything that the broker hands over; see `read_deliveries`

The product has no hooks for this: the open store and transport get other methods, from outside.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import runner.app
from runner.cli import main
from runner.engine import intake
from runner.message import Delivery

STORE, TRANSPORT = ("commit", "sent"), ("publish", "settle")
METHODS = (*STORE, *TRANSPORT)
MOMENTS = ("before", "after")


@dataclass(frozen=True)
class Point:
    """Where a process dies: before or after the `number`th call (from 1) of a method."""

    moment: str
    method: str
    number: int

    def __str__(self) -> str:
        return f"{self.moment} {self.method} {self.number}"


def parse_point(text: str) -> Point:
    """The reverse of `str(point)`."""
    moment, method, number = text.split()
    assert moment in MOMENTS, text
    assert method in METHODS, text
    return Point(moment, method, int(number))


@dataclass(frozen=True)
class Handed:
    """A message that the broker handed over; `at` is the wall clock's, in seconds."""

    at: float
    queue: str
    message_id: str | None
    redelivered: bool


def read_deliveries(path: Path) -> list[Handed]:
    """What FLOWRUN_DELIVERIES names, in the order in which it came."""
    return [Handed(*json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def every_point(most: int, chance: random.Random) -> list[Point]:
    """Each method's both moments, at calls drawn from the first `most`; in a drawn order."""
    points = [Point(moment, method, chance.randint(1, most)) for method in METHODS for moment in MOMENTS]
    chance.shuffle(points)
    return points


def die(armed: Path) -> None:
    """End this process as kill -9 does, unless another one has just done so."""
    try:
        armed.unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(point: Point, target: Any, armed: Path) -> None:
    """Let `target`'s method kill the process at that point."""
    real = getattr(target, point.method)
    calls, is_armed = count(1), armed.exists

    async def dying(*args: Any, **options: Any) -> Any:
        is_it = is_armed() and next(calls) == point.number
        if is_it and point.moment == "before":
            die(armed)
        result = await real(*args, **options)
        if is_it and point.moment == "after":
            die(armed)
        return result

    setattr(target, point.method, dying)


def acknowledge_at_once(transport: Any) -> None:
    """Break the promise that a message is acknowledged after its run is in the store."""
    consume = transport.consume

    async def consume_at_once(queue: str, prefetch: int, deliver: Callable[[Delivery], None]) -> Any:
        tasks = set()

        async def acknowledge(delivery: Delivery) -> None:
            await transport.settle([delivery])
            deliver(delivery)

        def delivered(delivery: Delivery) -> None:
            task = asyncio.create_task(acknowledge(delivery))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        return await consume(queue, prefetch, delivered)

    transport.consume = consume_at_once


def log_deliveries(transport: Any, path: Path) -> None:
    """Write down what comes, in one write a line: several processes may share the file."""
    consume = transport.consume
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    async def consume_and_log(queue: str, prefetch: int, deliver: Callable[[Delivery], None]) -> Any:
        def delivered(delivery: Delivery) -> None:
            row = [time.time(), queue, delivery.properties.message_id, delivery.redelivered]
            os.write(file, json.dumps(row).encode() + b"\n")
            deliver(delivery)

        return await consume(queue, prefetch, delivered)

    transport.consume = consume_and_log


def opened(open_it: Callable[..., Any], methods: tuple[str, ...], point: Point | None, armed: Path) -> Any:
    """`open_store` or `open_transport`, whose result dies at the point, if that is one of `methods`."""

    def open_dying(*args: Any) -> Any:
        target = open_it(*args)
        if os.environ.get("FLOWRUN_BREAK") == "ack" and methods is TRANSPORT:
            acknowledge_at_once(target)
        if methods is TRANSPORT and (log := os.environ.get("FLOWRUN_DELIVERIES")):
            log_deliveries(target, Path(log))
        if point is not None and point.method in methods:
            die_at(point, target, armed)
        return target

    return open_dying


def arm() -> None:
    """Change what `runner.app` opens as the environment says."""
    text, armed = os.environ.get("FLOWRUN_CRASH"), Path(os.environ.get("FLOWRUN_CRASH_ARMED", ""))
    point = parse_point(text) if text else None
    runner.app.open_store = opened(runner.app.open_store, STORE, point, armed)
    runner.app.open_transport = opened(runner.app.open_transport, TRANSPORT, point, armed)
    if os.environ.get("FLOWRUN_BREAK") == "inbox":
        intake.run_id = lambda *_: str(uuid.uuid4())


if __name__ == "__main__":
    arm()
    sys.argv[0] = "flowrun"
    main()
