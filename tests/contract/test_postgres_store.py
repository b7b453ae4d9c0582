"""The PostgreSQL store keeps the stores' contract, and more of what many runners on one database need."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta
from importlib.resources import files
from urllib.parse import urlsplit

import asyncpg
import pytest

from runner.errors import StoreError
from runner.ports import AnyStore
from runner.records import EventFilter, Folded, Intervention, RunState
from runner.stores import postgres_presence, rows
from runner.stores.postgres import SCRIPTS, PostgresStore
from runner.testing.gate_contract import GateContract
from runner.testing.projection_contract import LATER, ProjectionContract
from runner.testing.store_contract import (
    START,
    TIMEOUT_S,
    UNICODE,
    StoreContract,
    at,
    begin,
    go_on,
    run_id,
    started,
    step,
    the_run,
    tokens,
)
from runner.testing.traffic_contract import TrafficContract


class Bell:
    """Is rung, and waited for."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self.ring = self._rung.set

    async def heard(self) -> None:
        """Return once it has been rung since it was last heard."""
        async with asyncio.timeout(TIMEOUT_S):
            await self._rung.wait()
        self._rung.clear()


IN_ANOTHER_PROCESS = """
from runner.stores.postgres import PostgresStore
store = PostgresStore({url!r}, "shop-1", lease_s=1.0)
"""


HOUR_S = 3600.0
HOLD = """
import asyncio
from runner.stores.postgres import PostgresStore
from runner.testing.store_contract import begin

async def main():
    async with PostgresStore({url!r}, "shop-1", lease_s={lease_s}) as store:
        await store.commit(begin(1))
        print("held", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
LOCKS = """
SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1
AND classid::bigint << 32 | objid::bigint = hashtextextended('{owner}', 0)
"""
CUT_ALL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'flowrun'"


@asynccontextmanager
async def pooler(host: str, port: int) -> AsyncIterator[int]:
    """A port before PostgreSQL that tells clients a process id of its own, as PgBouncer does."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_server: bool) -> None:
        while data := await reader.read(65_536):
            if from_server and (at := data.find(BACKEND_KEY)) >= 0:
                data = data[: at + 5] + b"\0\0\0\1" + data[at + 9 :]
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, to_them = await asyncio.open_connection(host, port)
        await asyncio.gather(forward(reader, to_them, from_server=False), forward(theirs, writer, from_server=True))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


BACKEND_KEY = b"K\0\0\0\x0c"
"""How the message begins that tells a client its server process (protocol 3.0, BackendKeyData)."""


@pytest.mark.postgres
class TestPostgresStore(GateContract, TrafficContract, ProjectionContract, StoreContract):
    """A pool for each store, as two processes have them. A dead runner's lease runs out after a second."""

    @pytest.fixture(autouse=True)
    def _url(self, postgres_url: str) -> None:
        self.url = postgres_url

    text = UNICODE.replace("\x00", "")

    def store(self) -> AbstractAsyncContextManager[AnyStore]:
        return PostgresStore(self.url, "shop-1", lease_s=1.0)

    def in_another_process(self) -> str:
        return IN_ANOTHER_PROCESS.format(url=self.url)

    async def notice_death(self) -> None:
        """A dead runner's lease runs out after a second; the server waits for it, by its own clock."""
        connection = await asyncpg.connect(self.url)
        try:
            latest = 'SELECT max(extract(epoch FROM lease_until - clock_timestamp())) FROM "shop-1".runners'
            left = await connection.fetchval(latest)
            await connection.execute("SELECT pg_sleep($1)", max(float(left or 0), 0) + 0.05)
        finally:
            await connection.close()

    async def events(self) -> Sequence[tuple[int, str | None, int | None]]:
        connection = await asyncpg.connect(self.url)
        try:
            found = await connection.fetch('SELECT position, subject, version FROM "shop-1".events ORDER BY position')
            return [tuple(row) for row in found]
        finally:
            await connection.close()

    async def test_buckets_that_are_full_again_are_forgotten(self) -> None:
        async with self.store() as store:
            for number in range(100):
                assert await tokens(store, f"k-{number}", limit=1, period_s=1.0, burst=1) is None
            for number in range(20):
                assert await tokens(store, f"l-{number}", at_s=2, limit=1, period_s=1.0, burst=1) is None
        connection = await asyncpg.connect(self.url)
        try:
            assert await connection.fetchval('SELECT count(*) FROM "shop-1".buckets') == 20
        finally:
            await connection.close()

    async def test_processes_that_sweep_at_the_same_time_leave_nothing_of_what_was_given_up(self) -> None:
        async with self.store() as one, self.store() as other:
            build = await self.built(one.projections)
            many = tuple(("a", position) for position in range(1, 3001))
            folded = Folded(position=3000, changes=many)
            assert await one.projections.fold(build, folded, claimed_by="me", claimed_until=LATER)
            await one.projections.keep_only([])
            while any(await asyncio.gather(*(store.projections.sweep(100) for store in (one, other) * 2))):
                pass
        connection = await asyncpg.connect(self.url)
        try:
            assert await connection.fetchval('SELECT count(*) FROM "shop-1".builds') == 0
            assert await connection.fetchval('SELECT count(*) FROM "shop-1".entry_changes') == 0
        finally:
            await connection.close()

    async def test_a_runner_whose_lease_ran_out_writes_nothing_more_to_a_run_that_another_took(self) -> None:
        async with self.store() as late:
            await late.commit(begin(1))
            await self.sql("DELETE FROM runners")
            async with self.store() as other:
                taken = await other.take(START, 10)
                assert [run.crashes for run in taken] == [1]
                with pytest.raises(StoreError, match="taken over by another runner"):
                    await late.commit(go_on(1, records=(step(1),)))
                await other.commit(go_on(1, records=(step(2),)))
                run = await other.run(run_id(1))
        assert run is not None
        assert run.records == (step(2),)

    async def test_a_store_of_a_newer_flowrun_is_refused(self) -> None:
        async with self.store():
            pass
        await self.sql("INSERT INTO migrations VALUES (99, 'of the future')")
        with pytest.raises(StoreError, match="was written by a newer flowrun"):
            await self.store().__aenter__()

    async def test_a_migration_that_was_changed_since_is_refused(self) -> None:
        async with self.store():
            pass
        await self.sql("UPDATE migrations SET checksum = 'another'")
        with pytest.raises(StoreError, match="has been changed since"):
            await self.store().__aenter__()

    async def test_many_may_open_a_new_database_at_once(self) -> None:
        async def commit(number: int) -> bool:
            async with self.store() as store:
                return await store.commit(begin(number))

        assert all(await asyncio.gather(*(commit(number) for number in range(6))))

    async def test_what_is_wrong_with_a_server_is_said_in_one_line_and_without_the_password(self) -> None:
        parts = urlsplit(self.url)
        address = parts.netloc.rpartition("@")[2]
        for url, said in (
            ("postgresql://ada:hidden@127.0.0.1:1/db", "no PostgreSQL can be reached at 127.0.0.1:1/db"),
            (f"postgresql://{parts.username or 'postgres'}@{address}/nowhere", "has no database"),
            (f"postgresql://nobody:hidden@{address}{parts.path}", "refused"),
        ):
            with pytest.raises(StoreError) as caught:
                await PostgresStore(url, "shop-1").__aenter__()
            assert said in caught.value.message
            assert "hidden" not in caught.value.message
            assert "\n" not in caught.value.message

    # --- the bell

    async def test_the_bell_rings_for_what_a_person_asks_and_for_what_is_put_in_others_hands(self) -> None:
        async with self.store() as listener, self.store() as other:
            await other.commit(begin(1, state=RunState.WAITING, due_at=at(60)))
            bell = Bell()
            listener.on_ring(bell.ring)
            await bell.heard()  # it listens
            request = Intervention(action="cancel", by="ada@here", at=at(), was=RunState.WAITING)
            await other.request(run_id(1), request)
            await bell.heard()
            await other.seize(run_id(1))
            retry = Intervention(action="retry", by="ada@here", at=at(), was=RunState.FAILED)
            await other.commit(go_on(1, records=(retry,), due_at=at()))
            await bell.heard()
            await other.commit(begin(2, due_at=at()))
            await bell.heard()

    async def test_who_leaves_rings_for_those_who_take_its_runs(self) -> None:
        async with self.store() as listener:
            bell = Bell()
            async with self.store() as other:
                await other.commit(begin(1))
                listener.on_ring(bell.ring)
                await bell.heard()
            await bell.heard()
            assert len(await listener.take(START + timedelta(days=1), 10)) == 1

    async def test_a_listener_whose_connection_was_cut_listens_again(self) -> None:
        async with self.store() as listener, self.store() as other:
            await other.commit(begin(1, state=RunState.WAITING, due_at=at(60)))
            bell = Bell()
            listener.on_ring(bell.ring)
            await bell.heard()
            await self.cut_off(listener)
            await bell.heard()  # it has come back
            await other.request(run_id(1), Intervention(action="cancel", by="a@b", at=at(), was=RunState.WAITING))
            await bell.heard()

    # --- who lives

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[tuple[AnyStore, asyncio.subprocess.Process]]:
        """A store, and a process whose store, on a lease of an hour, owns run 1."""
        async with PostgresStore(self.url, "shop-1", lease_s=HOUR_S) as store:
            script = HOLD.format(url=self.url, lease_s=HOUR_S)
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
            try:
                assert process.stdout is not None
                async with asyncio.timeout(TIMEOUT_S):
                    assert (await process.stdout.readline()).strip() == b"held"
                yield store, process
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def test_runs_of_a_killed_process_are_taken_long_before_its_lease_runs_out(self) -> None:
        async with self.holding() as (store, process):
            assert not await store.take(START, 10)
            process.kill()
            assert await self.ever_taken(store, within_s=TIMEOUT_S)
            assert (await the_run(store, 1)).crashes == 1

    async def test_a_process_that_is_stopped_keeps_its_runs_until_its_lease_runs_out(self) -> None:
        async with self.holding() as (store, process):
            process.send_signal(signal.SIGSTOP)
            assert not await self.ever_taken(store, within_s=postgres_presence.SILENT_S + 1)
            await self.sql(f"UPDATE runners SET lease_until = now() WHERE id <> '{store.owner}'")
            assert len(await store.take(START, 10)) == 1

    async def test_a_runner_whose_connections_were_cut_keeps_its_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(postgres_presence, "COME_BACK_S", 0.0)
        async with self.patient() as store, self.patient() as other:
            await store.commit(begin(1))
            await self.cut_off(store)
            assert not await self.ever_taken(other, within_s=postgres_presence.SILENT_S + 1)
            assert await self.holds_its_lock(store)
            await self.sql(CUT_ALL)
            assert not await self.ever_taken(other, within_s=postgres_presence.SILENT_S + 1)
            assert await self.holds_its_lock(store)
            assert await store.commit(go_on(1, records=(step(1),)))

    async def test_nobody_is_thought_dead_for_want_of_a_lock_soon_after_all_may_have_lost_theirs(self) -> None:
        async with self.holding() as (store, process):
            process.send_signal(signal.SIGSTOP)
            await self.sql(CUT_ALL)
            assert not await self.ever_taken(store, within_s=postgres_presence.COME_BACK_S - 1)
            assert await self.ever_taken(store, within_s=TIMEOUT_S)

    async def test_two_runners_in_one_process_are_two(self) -> None:
        async with self.patient() as store:
            async with self.patient() as other:
                assert await self.holds_its_lock(store)
                assert await self.holds_its_lock(other)
                gone = other
            assert await self.holds_its_lock(store)
            assert not await self.holds_its_lock(gone)

    async def test_behind_a_pooler_that_lends_its_connections_a_runner_lives_by_its_lease_alone(self) -> None:
        parts = urlsplit(self.url)
        async with pooler(parts.hostname or "", parts.port or 5432) as port:
            url = parts._replace(netloc=f"{parts.username or 'postgres'}@127.0.0.1:{port}").geturl()
            async with PostgresStore(url, "shop-1", lease_s=1.0) as store, self.store() as other:
                await store.commit(begin(1))
                assert not await self.holds_its_lock(store)
                assert not await self.ever_taken(other, within_s=2.0)

    def patient(self) -> PostgresStore:
        return PostgresStore(self.url, "shop-1", lease_s=HOUR_S)

    async def ever_taken(self, store: AnyStore, *, within_s: float) -> bool:
        """Whether it takes up a run meanwhile."""
        deadline = asyncio.get_running_loop().time() + within_s
        while asyncio.get_running_loop().time() < deadline:
            with suppress(StoreError):  # its own connection may be cut
                if await store.take(START, 10):
                    return True
            await asyncio.sleep(0.1)
        return False

    async def cut_off(self, store: AnyStore) -> None:
        """End the connection that holds its lock."""
        await self.sql(f"SELECT pg_terminate_backend(pid) FROM ({LOCKS.format(owner=store.owner)}) AS held")

    async def holds_its_lock(self, store: AnyStore) -> bool:
        connection = await asyncpg.connect(self.url)
        try:
            return bool(await connection.fetch(LOCKS.format(owner=store.owner)))
        finally:
            await connection.close()

    # --- older stores

    async def test_a_store_of_version_1_becomes_one_of_version_2_and_keeps_its_runs(self) -> None:
        script = files("runner.stores").joinpath(SCRIPTS[0]).read_text()
        connection = await asyncpg.connect(self.url, server_settings={"search_path": '"shop-1"'})
        await connection.execute('CREATE SCHEMA "shop-1"')
        await connection.execute("CREATE TABLE migrations (number integer PRIMARY KEY, checksum text NOT NULL)")
        await connection.execute(script)
        checksum = hashlib.sha256(script.encode()).hexdigest()
        await connection.execute("INSERT INTO migrations VALUES (1, $1)", checksum)
        columns = "id, flow, handler, plan_hash, state, trigger, trace, data, started_at"
        await connection.execute(
            f"INSERT INTO runs ({columns}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            *rows.run_values(begin(1), started(1), "")[:9],
        )
        events = "INSERT INTO events (id, type, source, version, time, correlation_id, data) VALUES "
        await connection.execute(events + "('1', 't', 's', 1, '', '', 'a'), ('1', 't', 's', 2, '', '', 'b')")
        await connection.close()
        for _ in range(2):
            async with self.store() as store:
                run = await store.run(run_id(1))
                assert run is not None
                assert (run.started, run.crashes, run.request) == (started(1), 0, None)
                assert [event.data for event in await store.events(EventFilter(), limit=9)] == [b"a"]
        async with self.store() as store:
            await store.seize(run_id(1))
            assert await store.commit(go_on(1, RunState.COMPLETED, finished_at=at(1)))

    async def sql(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url, server_settings={"search_path": "shop-1"})
        await connection.execute(statement)
        await connection.close()
