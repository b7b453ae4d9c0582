"""One hop under each of the controls that a handler has of its traffic, none of which holds anything up; and what a
message costs of many that are queued, of many keys or of few."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks import amqp, hops, meters, plot, project
from benchmarks.flowrun import HOP, Flowrun, FlowrunSession
from benchmarks.rounds import BenchError, Contestant, Figures, Scale, cost_table, figures, interleave
from benchmarks.servers import Servers
from benchmarks.systems import OUT

EVENTS, WARM = 2_500, 250
QUEUED, DRAINED = 100_000, 5_000
KEYS = {", 100 keys": "event.order_id[-2:]", ", a key each": "event.order_id"}
STORES = ("SQLite", "PostgreSQL")
PATIENCE_S, POLL_S = 600.0, 3.0

THROTTLE = "throttle: {limit: 1000000, period: 1s}"
SLOTS = 'concurrency: {limit: 4, key: "{{ event.order_id[-3:] }}"}'
PARTITION = 'partition_by: "{{ event.order_id[-3:] }}"'
PRIORITY = 'priority: "{{ event.order_id[-1:] | int }}"'
RATE_LIMIT = "rate_limit: {limit: 1000000, period: 1s}"
BREAKER = "circuit_breaker: {failures: 5}"
NO_CONTROL = ", no control"
CONTROLS = {
    NO_CONTROL: ([], "each message once"),
    ", throttle": ([THROTTLE], "and so many begin in a second, over all processes"),
    ", concurrency": ([SLOTS], "and so many at once for one of 1,000 keys, over all processes"),
    ", partition_by": ([PARTITION], "and one after the other, in order, for each of 1,000 keys"),
    ", priority": ([PRIORITY], "and the urgent first"),
    ", rate_limit": ([RATE_LIMIT], "and what comes too fast is refused"),
    ", circuit_breaker": ([BREAKER], "and what keeps failing is not tried; closed here"),
    ", all of them": ([THROTTLE, SLOTS, PARTITION, PRIORITY, RATE_LIMIT, BREAKER], "all of that"),
}
SHUT = "throttle: {limit: 1, period: 1d}"


def compare(servers: Servers, scale: Scale) -> Iterator[str]:
    for number, store in enumerate(STORES):
        yield from [""] * (number > 0)
        yield from _controls(servers, scale, store)
    yield f"\n{scale.of(DRAINED):,} of {scale.of(QUEUED):,} that are queued at once:\n"
    for number, store in enumerate(STORES):
        contestants = [_queued(servers, scale, store, label, key) for label, key in KEYS.items()]
        yield from [""] * (number > 0)
        yield from cost_table(interleave(contestants, scale.rounds), what="events", base=contestants[0].name)


def _controls(servers: Servers, scale: Scale, store: str) -> Iterator[str]:
    contestants = [
        _contestant(partial(_hop, servers, scale), Flowrun(store=store, flow=under(*controls), label=label), promise)
        for label, (controls, promise) in CONTROLS.items()
    ]
    results = interleave(contestants, scale.rounds)
    yield from cost_table(results, what="events", base=contestants[0].name)
    yield from plot.costs(f"traffic_{store.lower()}", f"One hop under controls, {store}: CPU µs", results, scale)


def under(*controls: str) -> str:
    """The hop, with keys of its handler."""
    return HOP.replace("  accept:\n", "\n    ".join(["  accept:", *controls]) + "\n")


def _queued(servers: Servers, scale: Scale, store: str, label: str, key: str) -> Contestant:
    order = f'partition_by: "{{{{ {key} }}}}"'
    system = Flowrun(store=store, flow=under(order, SHUT, "queue: {max: 10000000}"), label=label)
    return _contestant(
        partial(_drain, servers, scale, under(order)), system, "one after the other, in order, for each key"
    )


def _contestant(measure: Callable[[Flowrun], Figures], system: Flowrun, promise: str) -> Contestant:
    return Contestant(name=system.name, guarantees=promise, measure=partial(measure, system))


def _hop(servers: Servers, scale: Scale, system: Flowrun) -> Figures:
    """All of each message is measured: runs come to a gate long before they pass it, so that what is measured is sent
    only when those before have gone by."""
    count, warm = scale.of(EVENTS), scale.of(WARM)
    with system.set_up(servers, "quorum") as session, session.start() as workers:
        wait = partial(amqp.wait_for_depth, session.broker, OUT, check=workers.check)
        session.produce(warm)
        wait(count=warm)
        before = servers.read(workers.pids)
        session.produce(count)
        wait(count=warm + count)
        return figures(count, before, servers.read(workers.pids), meters.peak_mb(workers.pids), ())


def _drain(servers: Servers, scale: Scale, opened: str, system: Flowrun) -> Figures:
    """Queue them all before a gate that lets nobody in, open it, and measure the first that pass."""
    with system.set_up(servers, "quorum") as session:
        session.produce(scale.of(QUEUED))
        with session.start() as workers:
            amqp.wait_for_consumer(session.broker, session.queue, workers.check)  # then the store is there, too
            _wait_for_queued(session, scale.of(QUEUED) - 1, workers.check)
        (session.folder / "flows/orders.yaml").write_text(opened)
        with session.start() as workers:
            wait = partial(amqp.wait_for_depth, session.broker, OUT, check=workers.check)
            first = wait(count=max(2, round(scale.of(DRAINED) * hops.WARM)))
            before = servers.read(workers.pids)
            last = wait(count=scale.of(DRAINED))
            after = servers.read(workers.pids)
            return figures(max(1, last - first), before, after, meters.peak_mb(workers.pids), ())


def _wait_for_queued(session: FlowrunSession, count: int, check: Callable[[], None]) -> None:
    """Return once so many runs are queued. Raises BenchError."""
    deadline = time.monotonic() + PATIENCE_S
    where = ("--broker", session.broker, "--store", session.store)
    while True:
        [handler] = json.loads(project.run("status", "--json", *where, cwd=session.folder))["handlers"]
        if handler["queued"] >= count:
            return
        check()
        if time.monotonic() > deadline:
            raise BenchError(f"{count:,} runs were not queued within {PATIENCE_S:.0f} s, but {handler['queued']:,}")
        time.sleep(POLL_S)
