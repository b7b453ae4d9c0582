"""Old events leave the log once an hour, archived first; what somebody needs stays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runner.archive import FolderArchive
from runner.cli.event_lines import read
from runner.engine import retention as retention_module
from runner.engine.retention import Retention
from runner.message import Meta
from runner.records import EventFilter, EventRecord, LoggedEvent
from runner.sqlite_file import SqliteFile
from runner.stores.sqlite import SqliteStore
from runner.testing import FakeClock
from runner.times import rfc3339

START = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)


def event(number: int, *, days_ago: float, kind: str = "e") -> EventRecord:
    time = rfc3339(START - timedelta(days=days_ago))
    meta = Meta(id=f"e-{number}", type=kind, source="/t", subject="s", time=time, correlation_id="c", causation_id=None)
    return EventRecord(meta=meta, data=b'{"n": 1}')


class Here:
    def __init__(self, store: SqliteStore, clock: FakeClock) -> None:
        self.store = store
        self.clock = clock
        self.archived: list[LoggedEvent] = []

    def retention(self, *types: str, archive: bool = True) -> Retention:
        return Retention(
            keep=timedelta(days=7),
            archive=self._archive if archive else None,
            types=types,
            log=self.store,
            projections=self.store.projections,
            schedules=self.store,
            clock=self.clock,
        )

    def _archive(self, events: Sequence[LoggedEvent]) -> None:
        self.archived += events

    async def ids(self) -> list[str]:
        return [each.meta.id for each in await self.store.events(EventFilter(), limit=99)]


@asynccontextmanager
async def here(*events: EventRecord) -> AsyncIterator[Here]:
    async with SqliteStore(SqliteFile(":memory:")) as store:
        await store.append(events)
        yield Here(store, FakeClock(START))


@pytest.mark.parametrize("window", [1, 2, 5000])
async def test_what_is_older_is_archived_and_forgotten(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(retention_module, "WINDOW", window)
    async with here(event(1, days_ago=8), event(2, days_ago=6), event(3, days_ago=9), event(4, days_ago=0)) as h:
        assert await h.retention().tick() == 2
        assert await h.ids() == ["e-2", "e-4"]
        assert [each.meta.id for each in h.archived] == ["e-1", "e-3"]


async def test_of_many_processes_one_does_it_once_an_hour() -> None:
    async with here() as h:
        for hour in range(3):
            await h.store.append([event(hour, days_ago=8)])
            assert [await h.retention().tick() for _ in range(3)] == [1, 0, 0]
            h.clock.advance(3600)


async def test_what_a_projection_is_folded_from_stays_also_one_that_only_the_store_knows() -> None:
    async with here(*(event(n, days_ago=8, kind=kind) for n, kind in enumerate(["a", "b", "c"]))) as h:
        await h.store.projections.begin_build("old", '{"b": {"key": "1"}}')
        assert await h.retention("a").tick() == 1
        assert await h.ids() == ["e-0", "e-1"]


async def test_what_cannot_be_archived_stays() -> None:
    async with here(event(1, days_ago=8)) as h:

        def full(events: Sequence[LoggedEvent]) -> None:
            raise OSError(28, "No space left on device")

        h._archive = full  # type: ignore[method-assign]
        with pytest.raises(OSError, match="No space"):
            await h.retention().tick()
        assert await h.ids() == ["e-1"]


async def test_an_archive_can_be_imported_again_however_often_it_was_written(tmp_path: Path) -> None:
    async with here(event(1, days_ago=8), event(2, days_ago=9)) as h:
        old = await h.store.events(EventFilter(), limit=9)
        for _ in range(2):
            FolderArchive(tmp_path / "archive")(old)
        [file] = (tmp_path / "archive").iterdir()
        assert file.name.startswith("events-")
        with file.open("rb") as lines:
            records = read(str(file), lines)
        assert len(records) == 4
        await h.store.forget([each.position for each in old])
        assert await h.store.append(records) == 2
        assert [each.meta.time for each in await h.store.events(EventFilter(), limit=9)] == [e.meta.time for e in old]
