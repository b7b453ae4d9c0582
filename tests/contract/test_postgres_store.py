"""The PostgreSQL store keeps the stores' contract, and more of what many runners on one database need."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from urllib.parse import urlsplit

import asyncpg
import pytest

from runner.errors import StoreError
from runner.ports import AnyStore
from runner.stores.postgres import PostgresStore
from runner.testing.store_contract import START, UNICODE, StoreContract, begin, go_on, run_id, step

IN_ANOTHER_PROCESS = """
from runner.stores.postgres import PostgresStore
store = PostgresStore({url!r}, "shop-1", lease_s=1.0)
"""


@pytest.mark.postgres
class TestPostgresStore(StoreContract):
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

    async def sql(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url, server_settings={"search_path": "shop-1"})
        await connection.execute(statement)
        await connection.close()
