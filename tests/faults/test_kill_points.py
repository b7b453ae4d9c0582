"""kill -9 of a runner under load, at random times and at every point where half of something has been done."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from faults.crashing import Point, every_point
from faults.driven import DrivenSite
from faults.harness import Runner, chance, record_row, size, wait_until

AT_ANY_TIME = 2
"""So many kills a round are at random times; eight are at the named points."""
CALLS = 12
JOBS_A_SECOND = 40.0
BURST = 20
BACK_AT_WORK_S = 5.0
EARLY = 0.25
"""This share of the points counts from the process's first call on, what it takes up from its predecessor included."""

Load = Callable[[], AbstractContextManager[object]]


@pytest.mark.timeout(size(300, 3600))
def test_kills_on_the_embedded_broker_lose_and_double_nothing(tmp_path: Path) -> None:
    rounds = size(1, 30)
    with DrivenSite(tmp_path) as site:
        begin(site)
        back_s = kill_in_rounds(site, rounds, load=lambda: bursts(site))
        record(site, "kill -9, embedded broker and SQLite", rounds, back_s)


@pytest.mark.rabbitmq
@pytest.mark.postgres
@pytest.mark.timeout(size(300, 3600))
def test_kills_on_rabbitmq_and_postgresql_lose_and_double_nothing(
    rabbit_url: str, postgres_url: str, tmp_path: Path
) -> None:
    rounds = size(1, 20)
    with DrivenSite(tmp_path, (rabbit_url,), postgres_url) as site:
        begin(site)
        back_s = kill_in_rounds(site, rounds, load=lambda: site.load(JOBS_A_SECOND))
        record(site, "kill -9, RabbitMQ and PostgreSQL", rounds, back_s)


def begin(site: DrivenSite) -> None:
    """Make the queues, so that from the first job on there is someone to confirm it to."""
    site.finish()


def kill_in_rounds(site: DrivenSite, rounds: int, load: Load) -> list[float]:
    """Each round kills at all points under load, then checks that what is left ends; seconds until work went on."""
    draw = chance()
    back_s = []
    for _ in range(rounds):
        points: list[Point | None] = [*every_point(CALLS, draw), *[None] * AT_ANY_TIME]
        draw.shuffle(points)
        with load():
            for point in points:
                back_s += kill_at(site, point, draw)
        runner = site.start()
        site.settled().assert_kept()
        runner.kill()
    return back_s


def kill_at(site: DrivenSite, point: Point | None, draw: random.Random) -> list[float]:
    """Start a runner and kill it; how long it took to get to work, if it lived to do so."""
    early = point is not None and draw.random() < EARLY
    if early:
        site.arm()
    began = time.time()
    runner = site.start(point=point)
    back_s = [] if early else [seconds_to_work(site, began, runner)]
    if point is None:
        time.sleep(draw.uniform(0, 0.5))
        runner.kill()
        return back_s
    if not early:
        site.arm()
    site.wait_for_death(runner, point)
    return back_s


def seconds_to_work(site: DrivenSite, began: float, runner: Runner) -> float:
    """From the start of a runner until a job that it worked on has come to its end."""

    def works() -> bool:
        assert runner.alive, runner.output()
        return bool(site.ledger(f"SELECT 1 FROM effects WHERE step = 'note' AND at > {began} LIMIT 1"))

    wait_until(works, "a run to finish")
    return time.time() - began


@contextmanager
def bursts(site: DrivenSite) -> Iterator[None]:
    """Jobs come in meanwhile, as many at a time as a command publishes: the embedded broker has no other client."""
    stopped = threading.Event()

    def emit() -> None:
        while not stopped.is_set():
            site.emit(BURST)

    with ThreadPoolExecutor(1) as pool:
        emitting = pool.submit(emit)
        try:
            yield
        finally:
            stopped.set()
        emitting.result()


def record(site: DrivenSite, fault: str, rounds: int, back_s: list[float]) -> None:
    verdict = site.verdict()
    verdict.assert_kept()
    assert not verdict.dead, "a kill is no fault of a message"
    kills = rounds * (AT_ANY_TIME + len(every_point(CALLS, random.Random(0))))
    record_row(fault, kills, [verdict], back_s)
    assert statistics.median(back_s) <= BACK_AT_WORK_S
