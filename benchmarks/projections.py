"""A million events: into the log, folded into a read model, folded anew, and one thing's story among them."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator

from benchmarks import servers
from runner.clock import SystemClock
from runner.engine.projector import Projector
from runner.engine.read_models import ReadModels
from runner.lang.compile import compile_project
from runner.lang.load import Sources
from runner.lang.projections import compile_projection
from runner.message import Meta, new_id
from runner.plan import Projection
from runner.ports import AnyStore
from runner.records import AsOf, EventFilter, EventRecord
from runner.sqlite_file import SqliteFile
from runner.stores.postgres import PostgresStore
from runner.stores.sqlite import SqliteStore

EVENTS = int(os.environ.get("FLOWRUN_BENCH_EVENTS", "1_000_000"))
SUBJECTS = EVENTS // 100
BATCH = 500
ASKED = 50
FLOW = """
flow: f
events: {placed: {external: true}, changed: {external: true}}
projections:
  things:
    key: "{{ event.id }}"
    on:
      placed: {set: {status: placed, total: "{{ event.total }}", since: "{{ meta.time }}"}, increment: {times: 1}}
      changed: {set: {status: changed, total: "{{ event.total }}"}, increment: {times: 1}}
"""
HEAD = (
    f"{EVENTS:,} events of {SUBJECTS:,} things",
    "logged/s",
    "folded/s",
    "folded anew in",
    "story of one, p50 (max)",
    "entry, p50 (max)",
    "entry as of half-way, p50 (max)",
)


def measure() -> Iterator[str]:
    yield f"| {' | '.join(HEAD)} |"
    yield f"|{' --- |' * len(HEAD)}"
    with tempfile.TemporaryDirectory(prefix="flowrun-bench-") as name:
        yield asyncio.run(_row("SQLite", SqliteStore(SqliteFile(f"{name}/bench.db"))))
    with servers.both() as those:
        if those is not None:
            yield asyncio.run(_row("PostgreSQL", PostgresStore(those.store(), "bench")))


async def _row(name: str, opened: AnyStore) -> str:
    projection = _projection()
    async with opened as store:
        projector = Projector(
            projections=[projection],
            log=store,
            store=store.projections,
            owner="bench",
            clock=SystemClock(),
            load=compile_projection,
        )
        reads = ReadModels({"things": projection}, log=store, store=store.projections, load=compile_projection)
        logged = await _took(_fill(store))
        await projector.begin()
        folded = await _took(_fold(projector))
        await store.projections.begin_build("things", projection.definition, anew=True)
        anew = await _took(_fold(projector))
        things = [f"t-{(n * 7919) % SUBJECTS}" for n in range(ASKED)]
        half = AsOf(position=EVENTS // 2)
        story = await _each(things, lambda t: store.events(EventFilter(subject=f"thing/{t}"), limit=10**6))
        entry = await _each(things, lambda t: reads.get("things", t))
        then = await _each(things, lambda t: reads.get_as_of("things", t, half))
    return f"| {name} | {EVENTS / logged:,.0f} | {EVENTS / folded:,.0f} | {anew:,.0f} s | {story} | {entry} | {then} |"


def _projection() -> Projection:
    plan = compile_project(Sources(None, {"flows/f.yaml": FLOW}), project="bench", signatures={}).plan
    assert plan is not None
    return plan.projections["things"]


async def _fill(store: AnyStore) -> None:
    """As the journal does it, batch by batch."""
    for start in range(0, EVENTS, BATCH):
        await store.append([_event(number) for number in range(start, start + BATCH)])


def _event(number: int) -> EventRecord:
    ident, thing = new_id(), f"t-{number % SUBJECTS}"
    meta = Meta(
        id=ident,
        type="placed" if number < SUBJECTS else "changed",
        source="/bench",
        subject=f"thing/{thing}",
        time="2026-11-24T09:00:00.000Z",
        correlation_id=ident,
        causation_id=None,
    )
    return EventRecord(meta=meta, data=f'{{"id":"{thing}","total":{number},"text":"as long as many a one"}}'.encode())


async def _fold(projector: Projector) -> None:
    while await projector.step():
        pass


async def _took(work: Awaitable[None]) -> float:
    begun = time.perf_counter()
    await work
    return time.perf_counter() - begun


async def _each(things: list[str], ask: Callable[[str], Awaitable[object]]) -> str:
    times = []
    for thing in things:
        begun = time.perf_counter()
        assert await ask(thing)
        times.append((time.perf_counter() - begun) * 1000)
    return f"{statistics.median(times):.1f} ({sorted(times)[-1]:.1f}) ms"
