"""The review service: what customers say of what they got, and what the merchant answers."""

import sqlite3

import msgspec

from runner import Context, TerminalError, handler

from .database import Database

SERVICE = Database(
    "reviews.db",
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

    return SERVICE.once(ctx, "review.record", Review, add)


@handler("review.withdraw")
def withdraw(ctx: Context, *, review_id: int) -> Withdrawal:
    """Take a review back. Nothing there is a success."""

    def hide(db: sqlite3.Connection) -> Withdrawal:
        changed = db.execute("UPDATE reviews SET withdrawn = 1 WHERE review_id = ? AND NOT withdrawn", (review_id,))
        return Withdrawal(review_id, withdrawn=changed.rowcount == 1)

    return SERVICE.once(ctx, "review.withdraw", Withdrawal, hide)


@handler("review.answer")
def answer(ctx: Context, *, review_id: int, answer: str) -> Review:
    """Put the merchant's answer below a review, in place of an earlier one. Fails with `unknown_review`."""

    def put(db: sqlite3.Connection) -> Review:
        get(db, review_id)
        db.execute("UPDATE reviews SET answer = ? WHERE review_id = ?", (answer, review_id))
        return get(db, review_id)

    return SERVICE.once(ctx, "review.answer", Review, put)


@handler("review.escalate")
def escalate(ctx: Context, *, review_id: int) -> Review:
    """Mark a review for a person to look at. Fails with `unknown_review`."""

    def mark(db: sqlite3.Connection) -> Review:
        review = get(db, review_id)
        db.execute("UPDATE reviews SET escalated = 1 WHERE review_id = ?", (review_id,))
        return review

    return SERVICE.once(ctx, "review.escalate", Review, mark)


def get(db: sqlite3.Connection, review_id: int) -> Review:
    row = db.execute(
        "SELECT review_id, order_id, stars, text, answer FROM reviews WHERE review_id = ? AND NOT withdrawn",
        (review_id,),
    ).fetchone()
    if row is None:
        raise TerminalError("unknown_review", f"there is no review {review_id}")
    return Review(*row)
