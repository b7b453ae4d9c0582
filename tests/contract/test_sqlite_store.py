"""The SQLite store keeps the stores' contract, and says in plain words what is wrong with a file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from runner.errors import StoreError
from runner.records import EventFilter, EventRecord, RunState
from runner.sqlite_file import SqliteFile
from runner.stores import rows
from runner.stores.sqlite import SCRIPTS, SqliteStore
from runner.testing.gate_contract import GateContract
from runner.testing.projection_contract import ProjectionContract
from runner.testing.store_contract import (
    START,
    AnyStore,
    StoreContract,
    at,
    begin,
    go_on,
    meta,
    run_id,
    started,
    tokens,
)
from runner.testing.traffic_contract import TrafficContract

EVENTS = "SELECT position, subject, version FROM events ORDER BY position"
IN_ANOTHER_PROCESS = """
from runner.sqlite_file import SqliteFile
from runner.stores.sqlite import SqliteStore
store = SqliteStore(SqliteFile({path!r}))
"""
OPEN_AS_NOBODY = """
import asyncio, os, sys
import runner.message, runner.sqlite_file, runner.stores.sqlite
from runner.errors import StoreError

async def main():
    try:
        async with runner.stores.sqlite.SqliteStore(runner.sqlite_file.SqliteFile(sys.argv[1])) as store:
            await store.backlog()
    except StoreError as error:
        print(error)

if os.geteuid() == 0:  # who is root may write whatever it likes
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
asyncio.run(main())
"""


class TestSqliteStore(GateContract, TrafficContract, ProjectionContract, StoreContract):
    """A `SqliteFile` for each store, as two processes have them."""

    @pytest.fixture(autouse=True)
    def _path(self, tmp_path: Path) -> None:
        self.path = str(tmp_path / "flowrun.db")

    def store(self) -> AbstractAsyncContextManager[AnyStore]:
        return SqliteStore(SqliteFile(self.path))

    def in_another_process(self) -> str:
        return IN_ANOTHER_PROCESS.format(path=self.path)

    async def events(self) -> Sequence[tuple[int, str | None, int | None]]:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(EVENTS).fetchall()

    async def test_many_may_open_a_new_file_at_once(self) -> None:
        async def commit(number: int) -> bool:
            async with self.store() as store:
                return await store.commit(begin(number))

        assert all(await asyncio.gather(*(commit(number) for number in range(8))))

    async def test_who_opens_while_another_takes_is_not_thought_dead(self) -> None:
        async with self.store() as taker:
            going_on = True

            async def take() -> list[object]:
                taken: list[object] = []
                while going_on:
                    taken += await taker.take(START, 10)
                return taken

            taking = asyncio.create_task(take())
            for number in range(30):
                async with self.store() as store:
                    await store.commit(begin(number))
                    await store.commit(begin(number + 100))
                    for n in (number, number + 100):
                        run = await store.run(run_id(n))
                        assert run is not None
                        assert run.crashes == 0
            going_on = False
            await taking

    async def test_a_file_may_be_opened_again_by_the_same_object(self) -> None:
        file = SqliteFile(self.path)
        async with self.store() as other:
            for number in range(2):
                async with SqliteStore(file) as store:
                    await store.commit(begin(number))
                    assert run_id(number) not in [run.started.run_id for run in await other.take(START, 10)]

    async def test_nothing_of_a_session_is_left_behind(self) -> None:
        folder = Path(f"{self.path}-sessions")
        async with self.store():
            (folder / "of-a-dead-process").touch()
            async with self.store():
                assert len(os.listdir(folder)) == 2
        assert os.listdir(folder) == []

    async def test_a_store_of_version_1_is_brought_up_to_date_and_keeps_its_runs(self) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.executescript(files("runner.stores").joinpath(SCRIPTS[0]).read_text())
            connection.execute("CREATE TABLE schema_version (part TEXT PRIMARY KEY, version INTEGER NOT NULL)")
            connection.execute("INSERT INTO schema_version VALUES ('store', 1)")
            columns = "id, flow, handler, plan_hash, state, trigger, trace, data, started_at"
            values = rows.run_values(begin(1), started(1), "")[:9]
            connection.execute(f"INSERT INTO runs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            events = "INSERT INTO events (id, type, source, version, time, correlation_id, data) VALUES "
            connection.execute(events + "('1', 't', 's', 1, '', '', x'61'), ('1', 't', 's', 2, '', '', x'62')")
        for _ in range(2):
            async with self.store() as store:
                run = await store.run(run_id(1))
                assert run is not None
                assert (run.started, run.crashes, run.request) == (started(1), 0, None)
                assert [event.data for event in await store.events(EventFilter(), limit=9)] == [b"a"]
        async with self.store() as store:
            await store.seize(run_id(1))
            assert await store.commit(go_on(1, RunState.COMPLETED, finished_at=at(1)))

    async def test_buckets_that_are_full_again_are_forgotten(self) -> None:
        async with self.store() as store:
            for number in range(100):
                assert await tokens(store, f"k-{number}", limit=1, period_s=1.0, burst=1) is None
            for number in range(20):
                assert await tokens(store, f"l-{number}", at_s=2, limit=1, period_s=1.0, burst=1) is None
        with closing(sqlite3.connect(self.path)) as connection:
            assert connection.execute("SELECT count(*) FROM buckets").fetchall() == [(20,)]

    # --- files that cannot be used

    async def test_a_store_that_is_closed_says_so(self) -> None:
        store = SqliteStore(SqliteFile(self.path))
        async with store:
            pass
        with pytest.raises(StoreError, match="is closed"):
            await store.commit(begin(1))

    async def test_a_newer_store_is_refused_and_left_alone(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1))
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE schema_version SET version = 99 WHERE part = 'store'")
        file = SqliteFile(self.path)
        with pytest.raises(StoreError, match="written by a newer flowrun: store version 99") as caught:
            async with SqliteStore(file):
                pass
        assert caught.value.hint is not None
        with pytest.raises(StoreError, match="is closed"):
            await file.read(lambda connection: None)

    async def test_what_is_no_database_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "flowrun.db").write_text("once upon a time, there was no database, only text")
        error = await self._refusal()
        assert str(error) == f"{self.path} is not a SQLite database"
        assert error.hint is not None

    async def test_a_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "flowrun.db").mkdir()
        assert f"the store {self.path} cannot be used: unable to open" in str(await self._refusal())

    async def test_a_path_through_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        self.path = str(tmp_path / "file" / "flowrun.db")
        assert f"the store {self.path} cannot be used" in str(await self._refusal())

    def test_a_file_that_may_only_be_read_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as folder:  # pytest's own may not be entered by others
            path = Path(folder) / "flowrun.db"
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("CREATE TABLE of_old (id)")
            path.chmod(0o444)
            Path(folder).chmod(0o555)
            command = [sys.executable, "-c", OPEN_AS_NOBODY, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            Path(folder).chmod(0o700)
        assert done.stderr == ""
        assert done.stdout == f"the store {path} cannot be used: attempt to write a readonly database\n"

    async def test_a_file_whose_tables_are_gone_is_a_store_error(self) -> None:
        async with self.store() as store:
            with closing(sqlite3.connect(self.path)) as connection, connection:
                connection.execute("DROP TABLE runs")
            for work in (store.commit(begin(1)), store.take(START, 1), store.runs(limit=1), store.backlog()):
                with pytest.raises(StoreError, match="cannot be used: no such table: runs"):
                    await work

    async def _refusal(self) -> StoreError:
        with pytest.raises(StoreError) as caught:
            async with self.store():
                pass
        return caught.value


class TestSqliteStoreInMemory(StoreContract):
    """All stores in one file object, gone with it."""

    has_processes = False

    @pytest.fixture(autouse=True)
    async def _file(self) -> AsyncIterator[None]:
        async with SqliteFile(":memory:") as self.file:
            yield

    def store(self) -> AbstractAsyncContextManager[AnyStore]:
        return SqliteStore(self.file)

    async def events(self) -> Sequence[tuple[int, str | None, int | None]]:
        return await self.file.read(lambda connection: connection.execute(EVENTS).fetchall())


async def _work_for_a_batch(events: int) -> int:
    """How long SQLite works for the first ten events of two types, in steps of its machine."""
    file, steps = SqliteFile(":memory:"), []
    async with SqliteStore(file) as store:
        kinds = ("order.paid", "order.placed")
        metas = (replace(meta(number), type=kinds[number % 2]) for number in range(events))
        await store.append([EventRecord(meta=each, data=b"{}") for each in metas])
        await file.read(lambda c: c.set_progress_handler(lambda: steps.append(1), 10))
        assert len(await store.events(EventFilter(types=kinds), limit=10)) == 10
        await file.read(lambda c: c.set_progress_handler(None, 0))
    return len(steps)


async def test_a_batch_of_events_of_several_types_costs_the_same_however_long_the_log_is() -> None:
    assert await _work_for_a_batch(5000) < 2 * await _work_for_a_batch(500)
