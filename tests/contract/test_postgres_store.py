"""The PostgreSQL store keeps the stores' contract, and more of what many runners on one database need."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import asyncpg
import pytest

from runner.errors import StoreError
from runner.stores.postgres import PostgresStore
from runner.testing.store_contract import AnyStore, StoreContract, begin

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

    def store(self) -> AbstractAsyncContextManager[AnyStore]:
        return PostgresStore(self.url, "shop-1", lease_s=1.0)

    def in_another_process(self) -> str:
        return IN_ANOTHER_PROCESS.format(url=self.url)

    async def events(self) -> Sequence[tuple[int, str | None, int | None]]:
        connection = await asyncpg.connect(self.url)
        try:
            found = await connection.fetch('SELECT position, subject, version FROM "shop-1".events ORDER BY position')
            return [tuple(row) for row in found]
        finally:
            await connection.close()
