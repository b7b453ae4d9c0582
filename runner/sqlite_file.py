"""One SQLite file, shared by the SQLite store and the embedded broker: one writer, grouped commits, liveness.

All work runs on one thread with one connection. Whatever is queued when a transaction begins shares it, so
that concurrent runs pay for one fsync together. One piece of work that fails takes nothing else with it: all is then
done anew, each in a savepoint of its own. Not from the first, because a savepoint copies every page that is written.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from runner.errors import StoreError
from runner.message import new_id

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
MAX_GROUP = 1000
BUSY_TIMEOUT_S = 10.0
BUSY_POLL_S = 0.01


class _Job(Generic[T]):
    """Work for the writer's thread, and the future of who waits for it."""

    __slots__ = ("future", "work", "writes")

    def __init__(self, work: Work[T], *, writes: bool) -> None:
        self.work = work
        self.writes = writes
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()


_Done = tuple[asyncio.Future[Any], Any, Exception | None]


class SqliteFile:
    """A SQLite database file, opened by one process. `:memory:` is private to it and gone with it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.session = ""
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._alive_fd: int | None = None
        self._users = 0
        self._door = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> SqliteFile:
        """Open it; the store and the broker each enter, the last to leave closes. Raises StoreError."""
        async with self._door:
            if self._users == 0:
                await self._start()
            self._users += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        async with self._door:
            self._users -= 1
            if self._users == 0 and self._thread is not None:
                self._jobs.put(None)
                await asyncio.to_thread(self._thread.join)

    async def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction, and return when it is durable. Raises StoreError, or what `work` raises.

        If other work in the same transaction fails, it is undone and called again: it must do nothing but write.
        """
        return await self._submit(_Job(work, writes=True))

    async def read(self, work: Work[T]) -> T:
        """Run `work` on what has been committed. Raises StoreError."""
        return await self._submit(_Job(work, writes=False))

    async def migrate(self, part: str, scripts: tuple[str, ...]) -> None:
        """Bring a part's tables to the version `len(scripts)`. Raises StoreError if they are newer."""
        await self.write(lambda connection: _migrate(connection, part, scripts, self.path))

    def new_owner(self) -> str:
        """A name under which a store or a broker owns rows, for as long as this process lives."""
        return f"{self.session}/{new_id()}"

    def is_alive(self, owner: str) -> bool:
        """Whether an owner's process lives: the kernel holds a lock on its session's file as long as it does.

        Ask after reading the name in the database, never before: who begins in between would look dead.
        """
        session = owner.partition("/")[0]
        folder = self._sessions_folder
        return session == self.session or (folder is not None and _is_locked(folder / session))

    async def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs = SimpleQueue()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="sqlite", daemon=True)
        self._thread.start()
        try:
            await opened
        except BaseException:
            self._jobs.put(None)  # if we were cancelled, it has been opened all the same
            raise

    # --- the writer's thread

    def _run(self, opened: asyncio.Future[None]) -> None:
        try:
            connection = self._open()
        except (sqlite3.Error, OSError) as error:
            self._finish([(opened, None, self._fault(error))])
            return
        self._connection = connection
        self._finish([(opened, None, None)])
        while (group := self._next_group()) is not None:
            self._finish(self._commit(connection, group))
        connection.close()
        self._end_session()

    def _open(self) -> sqlite3.Connection:
        if self.path != ":memory:":
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        try:
            _use_wal(connection)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._begin_session()
        except BaseException:
            connection.close()
            raise
        return connection

    def _begin_session(self) -> None:
        self.session = new_id()
        folder = self._sessions_folder
        if folder is None:
            return
        folder.mkdir(exist_ok=True)
        for left_behind in folder.iterdir():
            _is_locked(left_behind)
        # Whoever looks at the file before it is locked takes it for a dead one's, and removes it: try again.
        while self._alive_fd is None:
            fd = os.open(folder / self.session, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.stat(folder / self.session)
                self._alive_fd = fd
            except OSError:
                os.close(fd)
                self.session = new_id()

    def _end_session(self) -> None:
        folder = self._sessions_folder
        if folder is not None and self._alive_fd is not None:
            (folder / self.session).unlink(missing_ok=True)
            os.close(self._alive_fd)
            self._alive_fd = None

    @property
    def _sessions_folder(self) -> Path | None:
        return None if self.path == ":memory:" else Path(f"{self.path}-sessions")

    def _next_group(self) -> list[_Job[Any]] | None:
        job = self._jobs.get()
        group: list[_Job[Any]] = []
        while job is not None:
            group.append(job)
            try:
                job = self._jobs.get_nowait() if len(group) < MAX_GROUP else None
            except Empty:
                return group
            if job is None and len(group) < MAX_GROUP:
                self._jobs.put(None)
        return group or None

    def _commit(self, connection: sqlite3.Connection, group: list[_Job[Any]]) -> list[_Done]:
        writes = [job for job in group if job.writes]
        done = self._transaction(connection, writes) if writes else []
        for job in group:
            if not job.writes:
                done.append(self._attempt(connection, job))
        return done

    def _transaction(self, connection: sqlite3.Connection, writes: list[_Job[Any]]) -> list[_Done]:
        try:
            connection.execute("BEGIN IMMEDIATE")
            done = self._together(writes, connection)
            if done is None:
                if connection.in_transaction:  # a disk that is full ends it
                    connection.execute("ROLLBACK")
                connection.execute("BEGIN IMMEDIATE")
                done = [self._in_savepoint(connection, job) for job in writes]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):  # a disk that fails may fail this too; the next transaction will say so
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            fault = self._fault(error)
            return [(job.future, None, fault) for job in writes]
        return done

    def _together(self, writes: list[_Job[Any]], connection: sqlite3.Connection) -> list[_Done] | None:
        """None if some of it failed."""
        try:
            return [(job.future, job.work(connection), None) for job in writes]
        except Exception:  # whose it is, and what of it, shows when each is done by itself
            return None

    def _in_savepoint(self, connection: sqlite3.Connection, job: _Job[Any]) -> _Done:
        connection.execute("SAVEPOINT work")
        done = self._attempt(connection, job)
        if done[2] is not None:
            connection.execute("ROLLBACK TO work")
        connection.execute("RELEASE work")
        return done

    def _attempt(self, connection: sqlite3.Connection, job: _Job[Any]) -> _Done:
        try:
            return (job.future, job.work(connection), None)
        except sqlite3.Error as error:
            return (job.future, None, self._fault(error))
        except Exception as error:  # the caller's own, e.g. a StoreError: it gets it back
            return (job.future, None, error)

    def _fault(self, error: Exception) -> StoreError:
        reason = str(error)
        if "locked" in reason:
            return StoreError(f"the store {self.path} is locked by another program", hint="close what has it open")
        if "not a database" in reason:
            return StoreError(
                f"{self.path} is not a SQLite database", hint="name another file with --store sqlite:PATH"
            )
        return StoreError(f"the store {self.path} cannot be used: {reason}")

    def _finish(self, done: list[_Done]) -> None:
        def resolve() -> None:
            for future, result, error in done:
                if future.cancelled():
                    continue
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(result)

        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(resolve)

    async def _submit(self, job: _Job[T]) -> T:
        if self._users == 0 or self._thread is None:
            raise StoreError(f"the store {self.path} is closed")
        self._jobs.put(job)
        return await job.future


def _use_wal(connection: sqlite3.Connection) -> None:
    """SQLite's own timeout does not cover this change, which another process may be making as well."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(BUSY_POLL_S)
        else:
            return


def _is_locked(path: Path) -> bool:
    """Whether somebody holds the lock on a session's file; if not, the file is removed."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True  # another user's, and not ours to judge
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)  # while we hold the lock: nobody can be about to live by this file
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _migrate(connection: sqlite3.Connection, part: str, scripts: tuple[str, ...], path: str) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS schema_version (part TEXT PRIMARY KEY, version INTEGER NOT NULL)")
    row = connection.execute("SELECT version FROM schema_version WHERE part = ?", (part,)).fetchone()
    version = row[0] if row else 0
    if version > len(scripts):
        raise StoreError(
            f"the store {path} was written by a newer flowrun: "
            f"{part} version {version}, and this one knows {len(scripts)}",
            hint="run that version, or name another store with --store",
        )
    for script in scripts[version:]:
        for statement in script.split(";\n"):
            if statement.strip():
                connection.execute(statement)
    connection.execute("INSERT OR REPLACE INTO schema_version VALUES (?, ?)", (part, len(scripts)))
