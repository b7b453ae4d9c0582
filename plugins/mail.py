"""The mail service: what customers and the merchant are told. The table `mails` stands for the post."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from runner import Context, RetryableError, TerminalError, handler

Result = TypeVar("Result")

DATABASE = "mail.db"
MERCHANT = "merchant@shop.example"

TABLES = (
    """CREATE TABLE IF NOT EXISTS mails (
        mail_id INTEGER PRIMARY KEY, recipient TEXT NOT NULL, subject TEXT NOT NULL, text TEXT NOT NULL)""",
)


class Mail(msgspec.Struct, frozen=True):
    mail_id: int
    recipient: str


@handler("customer.notify")
def notify_customer(ctx: Context, *, email: str, subject: str, text: str) -> Mail:
    """Write to a customer."""
    return once(ctx, "customer.notify", Mail, lambda db: send(db, email, subject, text))


@handler("merchant.notify")
def notify_merchant(ctx: Context, *, subject: str, text: str) -> Mail:
    """Write to the merchant."""
    return once(ctx, "merchant.notify", Mail, lambda db: send(db, MERCHANT, subject, text))


def send(db: sqlite3.Connection, recipient: str, subject: str, text: str) -> Mail:
    added = db.execute("INSERT INTO mails (recipient, subject, text) VALUES (?, ?, ?)", (recipient, subject, text))
    assert added.lastrowid is not None
    return Mail(added.lastrowid, recipient)


# --- a database of its own, in which each effect happens once --------------------------------------------
# This part is the same in every service: a plugin is loaded by its path and cannot import its neighbour.

BOOKKEEPING = (
    """CREATE TABLE IF NOT EXISTS effects (
        idempotency_key TEXT PRIMARY KEY, action TEXT NOT NULL, result TEXT NOT NULL,
        at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ')))""",
    """CREATE TABLE IF NOT EXISTS calls (
        idempotency_key TEXT NOT NULL, action TEXT NOT NULL,
        at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ')))""",
)


@contextmanager
def transaction() -> Iterator[sqlite3.Connection]:
    """One write transaction. A refusal (TerminalError, RetryableError) commits: it is an answer, and what was
    noted of it stays. Any other exception rolls back."""
    folder = Path(os.environ.get("SHOP_DATA") or Path(__file__).parents[1] / ".flowrun" / "data")
    folder.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(folder / DATABASE, timeout=10, isolation_level=None)
    try:
        with suppress(sqlite3.OperationalError):  # another call is creating the file: one of them does it
            db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN IMMEDIATE")
        for statement in (*BOOKKEEPING, *TABLES):
            db.execute(statement)
        try:
            yield db
        except (TerminalError, RetryableError):
            db.execute("COMMIT")
            raise
        db.execute("COMMIT")
    finally:
        db.close()


def once(ctx: Context, action: str, kind: type[Result], effect: Callable[[sqlite3.Connection], Result]) -> Result:
    """Do `effect`, or give what it gave before: the effect and the note that it was done are one transaction,
    so that a step which is tried again, even after a crash, finds its note and does nothing twice."""
    with transaction() as db:
        db.execute("INSERT INTO calls (idempotency_key, action) VALUES (?, ?)", (ctx.idempotency_key, action))
        done = db.execute("SELECT result FROM effects WHERE idempotency_key = ?", (ctx.idempotency_key,)).fetchone()
        if done is not None:
            return msgspec.json.decode(done[0], type=kind)
        result = effect(db)
        db.execute(
            "INSERT INTO effects (idempotency_key, action, result) VALUES (?, ?, ?)",
            (ctx.idempotency_key, action, msgspec.json.encode(result).decode()),
        )
        return result
