"""Work that shares a transaction: what fails takes nothing else with it, and is told to whoever asked for it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runner.errors import StoreError
from runner.sqlite_file import SqliteFile, Work


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[SqliteFile]:
    async with SqliteFile(str(tmp_path / "f.db")) as file:
        await file.write(lambda c: c.execute("CREATE TABLE t (n INTEGER PRIMARY KEY)"))
        yield file


def put(*numbers: int) -> Work[None]:
    def work(connection: sqlite3.Connection) -> None:
        for number in numbers:
            connection.execute("INSERT INTO t VALUES (?)", (number,))

    return work


def put_and_fail(number: int) -> Work[None]:
    def work(connection: sqlite3.Connection) -> None:
        put(number)(connection)
        raise LookupError(f"{number} is not wanted")

    return work


async def numbers(file: SqliteFile) -> list[int]:
    return [n for (n,) in await file.read(lambda c: c.execute("SELECT n FROM t ORDER BY n").fetchall())]


async def test_of_work_done_together_what_fails_leaves_nothing_and_the_rest_stands(file: SqliteFile) -> None:
    work = [put(1), put_and_fail(2), put(3), put(4, 1), put(5)]
    results = await asyncio.gather(*(file.write(each) for each in work), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), LookupError, type(None), StoreError, type(None)]
    assert str(results[1]) == "2 is not wanted"
    assert await numbers(file) == [1, 3, 5]


async def test_work_that_ends_the_transaction_for_all_is_told_to_its_own_caller_only(file: SqliteFile) -> None:
    def full(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT OR ROLLBACK INTO t VALUES (1), (1)")

    results = await asyncio.gather(*(file.write(each) for each in (put(2), full, put(3))), return_exceptions=True)
    assert isinstance(results[1], StoreError)
    await file.write(put(4))
    stood = [n for n, result in ((2, results[0]), (3, results[2])) if result is None]
    assert await numbers(file) == [*stood, 4]
