"""`sql.query` and `sql.execute`: one statement on SQLite or PostgreSQL, over a connection of its own.

Values that JSON lacks come back as text: exact decimals, dates and times (RFC 3339), UUIDs, floats that are
no number, and bytes as base64. PostgreSQL's `json` and `jsonb` are values both ways.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar
from urllib.parse import quote

import msgspec

from runner.errors import HandlerError, RetryableError, TerminalError
from runner.handler import Context, handler

# sqlite3 and asyncpg are imported where they are used: flows without SQL start without their cost.
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Iterator

    import asyncpg
    from asyncpg.prepared_stmt import PreparedStatement

CONNECT_TIMEOUT_S = 10.0
BUSY_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0

T = TypeVar("T")
Params = list[Any] | dict[str, Any] | None

# https://www.sqlite.org/rescode.html: BUSY, LOCKED, IOERR, FULL, CANTOPEN, PROTOCOL
_SQLITE_RETRYABLE = frozenset({5, 6, 10, 13, 14, 15})
# https://www.postgresql.org/docs/current/errcodes-appendix.html: serialization failure, deadlock, lock not
# available, statement timeout, the server going down or coming up; class 53, insufficient resources, besides
_POSTGRES_RETRYABLE = frozenset({"40001", "40P01", "55P03", "57014", "57P01", "57P02", "57P03"})
_COUNTED = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})


class Executed(TypedDict):
    """What `sql.execute` returns."""

    rows_affected: int


@handler("sql.query", effect=False)
async def query(ctx: Context, *, url: str, sql: str, params: Params = None) -> list[dict[str, Any]]:
    """Read rows: each is an object by column name.

    `url` is `sqlite:PATH` or `postgresql://user:password@host/database`. `params` fill the places of the
    statement: on SQLite a list for `?` or an object for `:name`, on PostgreSQL a list for `$1`. The statement
    runs read-only: one that writes fails.
    """
    if url.startswith("sqlite:"):
        return await _in_thread(_sqlite_query, url, sql, params)
    async with _postgres(url, sql, params) as (connection, statement, arguments):
        async with connection.transaction(readonly=True):
            rows = await statement.fetch(*arguments)
        return [{name: _json(value) for name, value in row.items()} for row in rows]


@handler("sql.execute")
async def execute(ctx: Context, *, url: str, sql: str, params: Params = None) -> Executed:
    """Execute one statement and commit it; the result is the number of rows that it changed.

    `url` and `params` as for `sql.query`. It may be executed again after a timeout or a crash, so write it
    such that the second time changes nothing.
    """
    if url.startswith("sqlite:"):
        return await _in_thread(_sqlite_execute, url, sql, params)
    async with _postgres(url, sql, params) as (_, statement, arguments):
        await statement.fetch(*arguments)
        return Executed(rows_affected=_rows_affected(statement.get_statusmsg()))


def _rows_affected(command_tag: str | None) -> int:
    """From PostgreSQL's answer, as `INSERT 0 3` or `CREATE TABLE`."""
    word, *rest = (command_tag or "").split() or [""]
    return int(rest[-1]) if word in _COUNTED and rest else 0


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    import asyncio  # only for who calls it: `validate` just looks at signatures

    return await asyncio.to_thread(work, *arguments)


def _sqlite_query(url: str, sql: str, params: Params) -> list[dict[str, Any]]:
    import sqlite3

    with _sqlite_faults(), closing(_sqlite(url, mode="ro")) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute(sql, _sqlite_params(params)).fetchall()
        return [{name: _json(row[name]) for name in row.keys()} for row in rows]  # noqa: SIM118


def _sqlite_execute(url: str, sql: str, params: Params) -> Executed:
    with _sqlite_faults(), closing(_sqlite(url, mode="rwc")) as connection:
        connection.execute(sql, _sqlite_params(params)).fetchall()
        # The connection is new, so this counts the one statement; `rowcount` does not know WITH … INSERT.
        (changed,) = connection.execute("SELECT changes()").fetchone()
        return Executed(rows_affected=changed)


def _sqlite(url: str, *, mode: str) -> sqlite3.Connection:
    import sqlite3

    uri = f"file:{quote(url.removeprefix('sqlite:'))}?mode={mode}"
    # Autocommit: a single statement is its own transaction.
    return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)


def _sqlite_params(params: Params) -> list[Any] | dict[str, Any]:
    """SQLite has no arrays and objects: they go in as JSON text, which its JSON functions read."""

    def value(given: Any) -> Any:
        return _json_text(given) if isinstance(given, list | dict) else given

    if isinstance(params, dict):
        return {name: value(given) for name, given in params.items()}
    return [value(given) for given in params or ()]


@contextmanager
def _sqlite_faults() -> Iterator[None]:
    import sqlite3

    try:
        yield
    # Until Python 3.12 a second statement is a sqlite3.Warning; OverflowError is an integer above 64 bits,
    # ValueError a text that SQLite cannot hold.
    except (sqlite3.Error, sqlite3.Warning, OverflowError, ValueError) as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _SQLITE_RETRYABLE:
            raise RetryableError("sql.connection", f"SQLite: {error}") from error
        raise TerminalError("sql.error", f"SQLite: {error}") from error


@asynccontextmanager
async def _postgres(
    url: str, sql: str, params: Params
) -> AsyncIterator[tuple[asyncpg.Connection, PreparedStatement, list[Any]]]:
    """A connection, the prepared statement and its arguments in the types that it asks for."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise TerminalError("sql.url", "the URL must begin with sqlite: or postgresql://")
    if isinstance(params, dict):
        raise TerminalError("invalid_input", "PostgreSQL takes a list of params, for $1, $2 …")
    with _postgres_faults():
        connection = await _connect(url)
        try:
            for name in ("json", "jsonb"):
                await connection.set_type_codec(name, schema="pg_catalog", encoder=_json_text, decoder=_json_value)
            statement = await connection.prepare(sql)
            yield connection, statement, _arguments(statement, params or [])
        finally:
            # What was done is done: trouble with the farewell must not make it a failure.
            with suppress(Exception):
                await connection.close(timeout=CLOSE_TIMEOUT_S)


async def _connect(url: str) -> asyncpg.Connection:
    import asyncpg

    try:
        return await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S, server_settings={"application_name": "flowrun"})
    except ValueError:
        # No cause and no text: both may hold a piece of the password.
        raise TerminalError("sql.url", "the URL cannot be read") from None


@contextmanager
def _postgres_faults() -> Iterator[None]:
    import asyncpg

    try:
        yield
    except asyncpg.PostgresError as error:
        raise _postgres_error(error) from error
    except asyncpg.InterfaceError as error:
        raise TerminalError("sql.error", f"PostgreSQL: {error}") from error
    except OSError as error:
        what = str(error) or type(error).__name__
        raise RetryableError("sql.connection", f"PostgreSQL cannot be reached: {what}") from error


def _postgres_error(error: asyncpg.PostgresError) -> HandlerError:
    code = error.sqlstate or ""
    if code.startswith("08"):  # a broken connection
        return RetryableError("sql.connection", f"PostgreSQL: {error}", sqlstate=code)
    type = f"sql.{code}" if code else "sql.error"
    if code in _POSTGRES_RETRYABLE or code.startswith("53"):
        return RetryableError(type, f"PostgreSQL: {error}", sqlstate=code)
    return TerminalError(type, f"PostgreSQL: {error}", sqlstate=code)


def _arguments(statement: PreparedStatement, params: list[Any]) -> list[Any]:
    """JSON values as what the statement's places take: times and bytes are text in a flow."""
    types = [type.name for type in statement.get_parameters()]
    if len(types) != len(params):
        raise TerminalError("sql.error", f"the statement has {len(types)} parameters, `params` {len(params)}")
    return [_argument(place, *pair) for place, pair in enumerate(zip(types, params, strict=True), start=1)]


def _argument(place: int, type: str, value: Any) -> Any:
    if isinstance(value, list) and type.endswith("[]"):
        return [_argument(place, type.removesuffix("[]"), item) for item in value]
    try:
        match type, value:
            case (("text" | "varchar" | "bpchar"), bool() | int() | float() | list() | dict()):
                return _json_text(value)
            case "timestamptz", str():
                return _utc(datetime.fromisoformat(value))
            case "timestamp", str():
                return _utc(datetime.fromisoformat(value)).replace(tzinfo=None)
            case "date", str():
                return date.fromisoformat(value)
            case (("time" | "timetz"), str()):
                return time.fromisoformat(value)
            case "bytea", str():
                return base64.b64decode(value, validate=True)
    except ValueError:
        raise TerminalError("sql.error", f"parameter ${place} is not the text of a {type}") from None
    return value


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _json_text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _json_value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text  # a number beyond any float, or too deep a nest


def _json(value: Any) -> Any:
    """A column's value as a JSON value."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes():
            return base64.b64encode(value).decode()
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return msgspec.to_builtins(value)
        case list() | tuple():
            return [_json(item) for item in value]
        case dict():
            return {str(name): _json(item) for name, item in value.items()}
    if hasattr(value, "keys"):  # a composite value: asyncpg's Record
        return {name: _json(value[name]) for name in value.keys()}  # noqa: SIM118
    return str(value)
