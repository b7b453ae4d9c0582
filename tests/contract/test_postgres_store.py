"""The PostgreSQL store keeps the stores' contract, and more of what many runners on one database need."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from importlib.resources import files
from urllib.parse import urlsplit

import asyncpg
import pytest

from runner.errors import StoreError
from runner.ports import AnyStore
from runner.records import EventFilter, Folded, Intervention, RunState
from runner.stores import postgres as postgres_module
from runner.stores import rows
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

    async def test_a_listener_whose_connection_was_cut_listens_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(postgres_module, "HEARTBEAT_S", 0.05)
        async with self.store() as listener, self.store() as other:
            await other.commit(begin(1, state=RunState.WAITING, due_at=at(60)))
            bell = Bell()
            listener.on_ring(bell.ring)
            await bell.heard()
            await self.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%'")
            await bell.heard()  # it has come back
            await other.request(run_id(1), Intervention(action="cancel", by="a@b", at=at(), was=RunState.WAITING))
            await bell.heard()

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
            *rows.run_values(begin(1), started(1))[:9],
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
