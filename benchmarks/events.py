"""How fast the event log takes in what outside producers publish: straight into the store, and through the journal."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import project, servers
from runner.message import Meta, new_id
from runner.ports import AnyStore
from runner.records import EventRecord
from runner.sqlite_file import SqliteFile
from runner.stores.postgres import PostgresStore
from runner.stores.sqlite import SqliteStore

EVENTS = 20_000
BATCH = 500
SUBJECTS = 1_000
PATIENCE_S = 300.0
FLOW = """
flow: f
events: {seen: {external: true, subject: "thing/{{ event.n }}"}}
"""


def measure() -> Iterator[str]:
    yield f"| {EVENTS:,} events of {SUBJECTS:,} subjects, a second | new | there already | by two at once | journal |"
    yield "| --- | --- | --- | --- | --- |"
    with tempfile.TemporaryDirectory(prefix="flowrun-bench-") as name:

        def sqlite() -> AnyStore:
            return SqliteStore(SqliteFile(f"{name}/bench.db"))

        yield f"| SQLite, embedded broker | {asyncio.run(appended(sqlite(), sqlite()))} | {through_the_journal()} |"
    with servers.both() as those:
        if those is not None:
            broker, url = those.broker(), those.store()
            rates = asyncio.run(appended(PostgresStore(url, "bench"), PostgresStore(url, "bench")))
            yield f"| PostgreSQL, RabbitMQ | {rates} | {through_the_journal('--broker', broker, '--store', url)} |"


async def appended(first: AnyStore, second: AnyStore) -> str:
    """Into the store, as the journal does it; the same again; and by two connections at once."""
    async with first as one, second as two:
        events = [_event(number) for number in range(EVENTS)]
        rates = [await _rate([(one, events)]), await _rate([(one, events)])]
        rates.append(await _rate([(store, [_event(n) for n in range(EVENTS // 2)]) for store in (one, two)]))
    return " | ".join(f"{rate:,.0f}" for rate in rates)


async def _rate(work: list[tuple[AnyStore, list[EventRecord]]]) -> float:
    async def append(store: AnyStore, events: list[EventRecord]) -> None:
        for start in range(0, len(events), BATCH):
            await store.append(events[start : start + BATCH])

    begun = time.perf_counter()
    await asyncio.gather(*(append(store, events) for store, events in work))
    return sum(len(events) for _, events in work) / (time.perf_counter() - begun)


def _event(number: int) -> EventRecord:
    ident = new_id()
    meta = Meta(
        id=ident,
        type="seen",
        source="/bench",
        subject=f"thing/{number % SUBJECTS}",
        time="2026-11-24T09:00:00.000Z",
        correlation_id=ident,
        causation_id=None,
    )
    return EventRecord(meta=meta, data=b'{"n": 1, "text": "as long as many a payload is, more or less"}')


def through_the_journal(*where: str) -> str:
    """From the queue, where all lie already, into the log, by `start --until-idle`, its beginning included."""
    with tempfile.TemporaryDirectory(prefix="flowrun-bench-") as name:
        folder = Path(name)
        (folder / "flows").mkdir()
        (folder / "flows/f.yaml").write_text(FLOW)
        (folder / "seen.jsonl").write_text("".join(f'{{"n": {n % SUBJECTS}}}\n' for n in range(EVENTS)))
        project.run("emit", "seen", "--file", "seen.jsonl", *where, cwd=folder)
        begun = time.perf_counter()
        project.run("start", "--until-idle", "--quiet", *where, cwd=folder)
        took = time.perf_counter() - begun
        store = where[where.index("--store") :] if "--store" in where else ()
        listed = project.run("events", "list", "--json", "--limit", str(EVENTS + 1), *store, cwd=folder)
        assert len(json.loads(listed)) == EVENTS
    return f"{EVENTS / took:,.0f}"
