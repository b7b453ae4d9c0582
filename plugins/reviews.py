"""The review service: what customers say of what they got, and what the merchant answers."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from runner import Context, RetryableError, TerminalError, handler

Result = TypeVar("Result")

DATABASE = "reviews.db"
TABLES = (
    """CREATE TABLE IF NOT EXISTS reviews (
        review_id INTEGER PRIMARY KEY,
        order_id TEXT NOT NULL,
        stars INTEGER NOT NULL CHECK (stars BETWEEN 1 AND 5),
        text TEXT NOT NULL,
        answer TEXT,
        escalated INTEGER NOT NULL DEFAULT 0,
        withdrawn INTEGER NOT NULL DEFAULT 0)""",
)


class Review(msgspec.Struct, frozen=True):
    review_id: int
    order_id: str
    stars: int
    text: str
    answer: str | None


class Withdrawal(msgspec.Struct, frozen=True):
    review_id: int
    withdrawn: bool
    """False: there was nothing to withdraw any more."""


@handler("review.record")
def record(ctx: Context, *, order_id: str, stars: int, text: str) -> Review:
    """Keep a review."""

    def add(db: sqlite3.Connection) -> Review:
        added = db.execute("INSERT INTO reviews (order_id, stars, text) VALUES (?, ?, ?)", (order_id, stars, text))
        assert added.lastrowid is not None
        return get(db, added.lastrowid)

    return once(ctx, "review.record", Review, add)


@handler("review.withdraw")
def withdraw(ctx: Context, *, review_id: int) -> Withdrawal:
    """Take a review back. Nothing there is a success."""

    def hide(db: sqlite3.Connection) -> Withdrawal:
        changed = db.execute("UPDATE reviews SET withdrawn = 1 WHERE review_id = ? AND NOT withdrawn", (review_id,))
        return Withdrawal(review_id, withdrawn=changed.rowcount == 1)

    return once(ctx, "review.withdraw", Withdrawal, hide)


@handler("review.answer")
def answer(ctx: Context, *, review_id: int, answer: str) -> Review:
    """Put the merchant's answer below a review, in place of an earlier one. Fails with `unknown_review`."""

    def put(db: sqlite3.Connection) -> Review:
        get(db, review_id)
        db.execute("UPDATE reviews SET answer = ? WHERE review_id = ?", (answer, review_id))
        return get(db, review_id)

    return once(ctx, "review.answer", Review, put)


@handler("review.escalate")
def escalate(ctx: Context, *, review_id: int) -> Review:
    """Mark a review for a person to look at. Fails with `unknown_review`."""

    def mark(db: sqlite3.Connection) -> Review:
        review = get(db, review_id)
        db.execute("UPDATE reviews SET escalated = 1 WHERE review_id = ?", (review_id,))
        return review

    return once(ctx, "review.escalate", Review, mark)


def get(db: sqlite3.Connection, review_id: int) -> Review:
    row = db.execute(
        "SELECT review_id, order_id, stars, text, answer FROM reviews WHERE review_id = ? AND NOT withdrawn",
        (review_id,),
    ).fetchone()
    if row is None:
        raise TerminalError("unknown_review", f"there is no review {review_id}")
    return Review(*row)


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
