"""A service's own SQLite database, in which each effect happens once. The services import it: `from .database …`."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from runner import Context, RetryableError, TerminalError

Result = TypeVar("Result")

BOOKKEEPING = (
    """CREATE TABLE IF NOT EXISTS effects (
        idempotency_key TEXT PRIMARY KEY, action TEXT NOT NULL, result TEXT NOT NULL,
        at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ')))""",
    """CREATE TABLE IF NOT EXISTS calls (
        idempotency_key TEXT NOT NULL, action TEXT NOT NULL,
        at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ')))""",
)


class Database:
    """`name` is a file in the folder that SHOP_DATA names, else `.flowrun/data`; `tables` are made on first use."""

    def __init__(self, name: str, *tables: str) -> None:
        self._name = name
        self._tables = tables

    def once(
        self, ctx: Context, action: str, kind: type[Result], effect: Callable[[sqlite3.Connection], Result]
    ) -> Result:
        """Do `effect`, or give what it gave before.

        The effect and the note that it was done are one transaction, so that a step which is tried again, even
        after a crash, finds its note and does nothing twice.
        """
        key = ctx.idempotency_key
        with self.transaction() as db:
            db.execute("INSERT INTO calls (idempotency_key, action) VALUES (?, ?)", (key, action))
            done = db.execute("SELECT result FROM effects WHERE idempotency_key = ?", (key,)).fetchone()
            if done is not None:
                return msgspec.json.decode(done[0], type=kind)
            result = effect(db)
            note = (key, action, msgspec.json.encode(result).decode())
            db.execute("INSERT INTO effects (idempotency_key, action, result) VALUES (?, ?, ?)", note)
            return result

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One write transaction.

        A refusal (TerminalError, RetryableError) commits: it is an answer, and what was noted of it stays. Any
        other exception rolls back.
        """
        folder = Path(os.environ.get("SHOP_DATA") or Path(__file__).parents[1] / ".flowrun" / "data")
        folder.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(folder / self._name, timeout=10, isolation_level=None)
        try:
            with suppress(sqlite3.OperationalError):  # another call is creating the file: one of them does it
                db.execute("PRAGMA journal_mode = WAL")
            db.execute("BEGIN IMMEDIATE")
            for statement in (*BOOKKEEPING, *self._tables):
                db.execute(statement)
            try:
                yield db
            except (TerminalError, RetryableError):
                db.execute("COMMIT")
                raise
            db.execute("COMMIT")
        finally:
            db.close()
