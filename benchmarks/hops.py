"""A hop, measured: take an order from a queue, decode, check, handle, send on confirmed, acknowledge."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from threading import Thread

from benchmarks import amqp, meters
from benchmarks.rounds import Contestant, Figures, figures
from benchmarks.servers import Servers
from benchmarks.systems import OUT, System

WARM = 0.1
"""The part of the messages that goes by before it is measured: start-up and empty caches are not the hop."""


def saturated(
    servers: Servers,
    systems: Sequence[System],
    count: int,
    *,
    kind: str = "quorum",
    failing_percent: int = 0,
    each_gives: int = 1,
) -> list[Contestant]:
    """As fast as it goes, from a queue in which all orders lie. `each_gives` are the messages that one becomes."""

    def measure(system: System) -> Figures:
        with system.set_up(servers, kind) as session:
            session.produce(count, failing_percent=failing_percent)
            with session.start() as workers:
                wait = partial(amqp.wait_for_depth, session.broker, OUT, check=workers.check)
                first = wait(count=max(1, round(count * each_gives * WARM)))
                before = servers.read(workers.pids)
                last = wait(count=count * each_gives)
                after = servers.read(workers.pids)
                return figures(max(1, last - first), before, after, meters.peak_mb(workers.pids), ())

    return [_contestant(system, partial(measure, system)) for system in systems]


def at_rate(
    servers: Servers, systems: Sequence[System], count: int, rate: float, *, kind: str = "quorum"
) -> list[Contestant]:
    """At a rate that leaves everybody idle most of the time: how long it takes from sending to what comes of it."""
    warm = round(count * WARM)

    def measure(system: System) -> Figures:
        with system.set_up(servers, kind) as session, session.start() as workers:
            amqp.wait_for_consumer(session.broker, session.queue, workers.check)
            arrivals = amqp.Arrivals(session.broker, OUT, warm + count)
            before = servers.read(workers.pids)
            sending = Thread(target=session.produce, args=(warm + count,), kwargs={"rate": rate})
            sending.start()
            latencies = arrivals.all()[warm:]
            after = servers.read(workers.pids)
            sending.join()
            return figures(warm + count, before, after, meters.peak_mb(workers.pids), latencies)

    return [_contestant(system, partial(measure, system)) for system in systems]


def _contestant(system: System, measure: partial[Figures]) -> Contestant:
    return Contestant(name=system.name, guarantees=system.guarantees, measure=measure)
