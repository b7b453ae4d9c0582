import logging
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runner.errors import HandlerError, RetryableError, TerminalError
from runner.handler import Context
from runner.handlers import sql as sql_handlers
from runner.handlers.sql import execute, query


@pytest.fixture
def ctx() -> Context:
    return Context(
        run_id="run",
        step_id="read",
        attempt=1,
        idempotency_key="run/read",
        deadline=None,
        correlation_id="correlation",
        logger=logging.getLogger("test"),
    )


@pytest.fixture
def shop(tmp_path: Path) -> str:
    """A SQLite database, in a path that a URI must escape."""
    path = tmp_path / "shop 100%?#.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table orders (id text primary key, total real, note)")
        connection.execute("insert into orders values ('o-1', 1.5, 'x'), ('o-2', 2.5, null)")
        connection.commit()
    return f"sqlite:{path}"


async def failure(handler: Any, ctx: Context, **arguments: Any) -> HandlerError:
    with pytest.raises(HandlerError) as caught:
        await handler(ctx, **arguments)
    error = caught.value
    assert isinstance(error, HandlerError)
    return error


async def test_rows_are_objects_by_column_name(ctx: Context, shop: str) -> None:
    rows = await query(ctx, url=shop, sql="select id, total as sum, note from orders order by id")

    assert rows == [{"id": "o-1", "sum": 1.5, "note": "x"}, {"id": "o-2", "sum": 2.5, "note": None}]


@pytest.mark.parametrize(("place", "params"), [("?", ["o-2"]), (":id", {"id": "o-2"})])
async def test_params_fill_places(place: str, params: Any, ctx: Context, shop: str) -> None:
    rows = await query(ctx, url=shop, sql=f"select total from orders where id = {place}", params=params)

    assert rows == [{"total": 2.5}]


async def test_execute_tells_how_many_rows_changed(ctx: Context, shop: str) -> None:
    statement = "update orders set note = ? where total > ?"

    assert await execute(ctx, url=shop, sql=statement, params=["seen", 0]) == {"rows_affected": 2}
    assert await query(ctx, url=shop, sql="select distinct note from orders") == [{"note": "seen"}]


@pytest.mark.parametrize(
    ("statement", "changed"),
    [
        ("with n(i) as (values ('o-3'), ('o-4')) insert into orders (id) select i from n", 2),
        ("insert into orders (id) values ('o-1') on conflict do nothing", 0),
        ("delete from orders returning id", 2),
        ("create table lines (id)", 0),
        ("select * from orders", 0),
    ],
)
async def test_only_changed_rows_count(statement: str, changed: int, ctx: Context, shop: str) -> None:
    assert await execute(ctx, url=shop, sql=statement) == {"rows_affected": changed}


async def test_execute_makes_a_database_that_is_not_there(ctx: Context, tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'new.db'}"

    await execute(ctx, url=url, sql="create table t (a)")

    assert await query(ctx, url=url, sql="select * from t") == []


async def test_query_cannot_write(ctx: Context, shop: str) -> None:
    error = await failure(query, ctx, url=shop, sql="delete from orders")

    assert isinstance(error, TerminalError)
    assert error.type == "sql.error"
    assert len(await query(ctx, url=shop, sql="select * from orders")) == 2


async def test_values_without_a_json_form_become_text(ctx: Context, shop: str) -> None:
    rows = await query(ctx, url=shop, sql="select x'ff00' as bytes, 9e999 as infinite, 9007199254740993 as big")

    assert rows == [{"bytes": "/wA=", "infinite": "inf", "big": 9007199254740993}]


async def test_objects_go_in_as_json_text(ctx: Context, shop: str) -> None:
    rows = await query(ctx, url=shop, sql="select json_extract(?, '$.a[1]') as a", params=[{"a": [1, 2]}])

    assert rows == [{"a": 2}]


@pytest.mark.parametrize(
    ("statement", "params"),
    [
        ("selec 1", None),
        ("select * from nowhere", None),
        ("select 1; select 2", None),
        ("select ?", []),
        ("select :a", {"b": 1}),
        ("select ?", [2**64]),
        ("select ?", ["\ud800"]),
    ],
)
async def test_wrong_statement_is_terminal(statement: str, params: Any, ctx: Context, shop: str) -> None:
    error = await failure(query, ctx, url=shop, sql=statement, params=params)

    assert isinstance(error, TerminalError)
    assert error.type == "sql.error"


async def test_constraint_is_terminal_and_named(ctx: Context, shop: str) -> None:
    error = await failure(execute, ctx, url=shop, sql="insert into orders (id) values ('o-1')")

    assert isinstance(error, TerminalError)
    assert "UNIQUE constraint failed: orders.id" in error.message


async def test_locked_database_is_retryable(ctx: Context, shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_handlers, "BUSY_TIMEOUT_S", 0.01)
    with closing(sqlite3.connect(shop.removeprefix("sqlite:"))) as other:
        other.execute("begin immediate")

        error = await failure(execute, ctx, url=shop, sql="delete from orders")

    assert isinstance(error, RetryableError)
    assert error.type == "sql.connection"


async def test_database_that_cannot_be_opened_is_retryable(ctx: Context, tmp_path: Path) -> None:
    error = await failure(query, ctx, url=f"sqlite:{tmp_path / 'absent.db'}", sql="select 1")

    assert isinstance(error, RetryableError)
    assert error.type == "sql.connection"


@pytest.mark.parametrize(
    "url",
    [
        "mysql://ada:s3cret@host/db",
        "s3cret",
        "postgresql://ada:s3cret@host:s3cret/db",
        "postgresql://ada:s3cret@[host/db",
        "postgresql://ada:x@host/db?sslmode=s3cret",
    ],
)
async def test_bad_url_is_terminal_and_not_repeated(url: str, ctx: Context) -> None:
    error = await failure(query, ctx, url=url, sql="select 1")

    assert isinstance(error, TerminalError)
    assert error.type == "sql.url"
    assert "s3cret" not in error.message
    assert error.__cause__ is None


async def test_unreachable_postgres_is_retryable(ctx: Context) -> None:
    error = await failure(query, ctx, url="postgresql://ada:s3cret@127.0.0.1:1/db", sql="select 1")

    assert isinstance(error, RetryableError)
    assert error.type == "sql.connection"
    assert "s3cret" not in error.message


async def test_postgres_takes_no_named_params(ctx: Context) -> None:
    error = await failure(query, ctx, url="postgresql://127.0.0.1:1/db", sql="select 1", params={"a": 1})

    assert error.type == "invalid_input"


@pytest.fixture
async def table(ctx: Context, postgres_url: str) -> AsyncIterator[str]:
    """A table of PostgreSQL with two rows, dropped in the end."""
    name = f"orders_{uuid.uuid4().hex[:12]}"
    await execute(ctx, url=postgres_url, sql=f"create table {name} (id text primary key, total numeric)")
    await execute(ctx, url=postgres_url, sql=f"insert into {name} values ('o-1', 1.50), ('o-2', 2)")
    yield name
    await execute(ctx, url=postgres_url, sql=f"drop table {name}")


@pytest.mark.postgres
async def test_postgres_rows_are_objects(ctx: Context, postgres_url: str, table: str) -> None:
    statement = f"select * from {table} where id = any($1::text[]) and total > $2"

    rows = await query(ctx, url=postgres_url, sql=statement, params=[["o-1", "o-2"], 1])

    assert rows == [{"id": "o-1", "total": "1.50"}, {"id": "o-2", "total": "2"}]


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("statement", "changed"),
    [
        ("update {} set total = total + 1", 2),
        ("insert into {} values ('o-1', 1) on conflict do nothing", 0),
        ("delete from {} where id = 'o-1' returning id", 1),
        ("select * from {}", 0),
        ("create temporary table t as select * from {}", 0),
    ],
)
async def test_postgres_counts_changed_rows(
    statement: str, changed: int, ctx: Context, postgres_url: str, table: str
) -> None:
    result = await execute(ctx, url=postgres_url, sql=statement.format(table))

    assert result == {"rows_affected": changed}


@pytest.mark.postgres
async def test_postgres_query_cannot_write(ctx: Context, postgres_url: str, table: str) -> None:
    error = await failure(query, ctx, url=postgres_url, sql=f"delete from {table} returning id")

    assert isinstance(error, TerminalError)
    assert error.type == "sql.25006"


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("timestamptz '2026-01-02 03:04:05+02'", "2026-01-02T01:04:05+00:00"),
        ("timestamp '2026-01-02 03:04:05'", "2026-01-02T03:04:05"),
        ("date '2026-01-02'", "2026-01-02"),
        ("interval '90 seconds'", "PT90S"),
        ("12345678901234567890.5::numeric", "12345678901234567890.5"),
        ("'NaN'::float8", "nan"),
        ("'\\xff00'::bytea", "/wA="),
        ("'6f2c1f5e-0b1c-4c3e-8f43-6d1c2b3a4d5e'::uuid", "6f2c1f5e-0b1c-4c3e-8f43-6d1c2b3a4d5e"),
        ("'{\"a\": [1, null]}'::jsonb", {"a": [1, None]}),
        ("array[1, 2]", [1, 2]),
        ("inet '127.0.0.1'", "127.0.0.1"),
        ("row(1, 'a')", [1, "a"]),
        ("null::text", None),
    ],
)
async def test_postgres_values_become_json(expression: str, value: Any, ctx: Context, postgres_url: str) -> None:
    assert await query(ctx, url=postgres_url, sql=f"select {expression} as v") == [{"v": value}]


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("type", "value", "text"),
    [
        ("timestamptz", "2026-01-02T03:04:05Z", "2026-01-02 03:04:05+00"),
        ("timestamptz", "2026-01-02T03:04:05", "2026-01-02 03:04:05+00"),
        ("timestamp", "2026-01-02T03:04:05+01:00", "2026-01-02 02:04:05"),
        ("date", "2026-01-02", "2026-01-02"),
        ("date[]", ["2026-01-02"], "{2026-01-02}"),
        ("time", "03:04:05", "03:04:05"),
        ("bytea", "/wA=", "\\xff00"),
        ("numeric", "1.50", "1.50"),
        ("uuid", "6f2c1f5e-0b1c-4c3e-8f43-6d1c2b3a4d5e", "6f2c1f5e-0b1c-4c3e-8f43-6d1c2b3a4d5e"),
        ("jsonb", {"a": "x"}, '{"a": "x"}'),
        ("text", 7, "7"),
        ("int", None, None),
    ],
)
async def test_postgres_params_come_from_json(
    type: str, value: Any, text: str | None, ctx: Context, postgres_url: str
) -> None:
    statement = f"select ($1::{type})::text as v, set_config('TimeZone', 'UTC', true)"
    if type == "timestamptz":
        statement = "select to_char($1::timestamptz at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || '+00' as v"

    rows = await query(ctx, url=postgres_url, sql=statement, params=[value])

    assert rows[0]["v"] == text


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("statement", "params", "type"),
    [
        ("selec 1", [], "sql.42601"),
        ("select * from nowhere_at_all", [], "sql.42P01"),
        ("select 1; select 2", [], "sql.42601"),
        ("select $1::int", [], "sql.error"),
        ("select $1::int", ["seven"], "sql.22000"),
        ("select $1::date", ["tomorrow"], "sql.error"),
        ("select 1 / 0", [], "sql.22012"),
    ],
)
async def test_postgres_names_what_is_wrong(
    statement: str, params: list[Any], type: str, ctx: Context, postgres_url: str
) -> None:
    error = await failure(query, ctx, url=postgres_url, sql=statement, params=params)

    assert isinstance(error, TerminalError)
    assert error.type == type


@pytest.mark.postgres
@pytest.mark.parametrize("code", ["40001", "40P01", "55P03", "53300", "57P01"])
async def test_postgres_trouble_that_passes_is_retryable(code: str, ctx: Context, postgres_url: str) -> None:
    statement = f"do $$ begin raise exception 'as if' using errcode = '{code}'; end $$"

    error = await failure(execute, ctx, url=postgres_url, sql=statement)

    assert isinstance(error, RetryableError)
    assert error.type == f"sql.{code}"


@pytest.mark.postgres
async def test_connection_that_postgres_ends_is_retryable(ctx: Context, postgres_url: str) -> None:
    error = await failure(execute, ctx, url=postgres_url, sql="select pg_terminate_backend(pg_backend_pid())")

    assert isinstance(error, RetryableError)
