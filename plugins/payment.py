"""The payment service: customers' accounts, and the payments made from them. Money is in integer cents."""

import sqlite3
from typing import Literal

import msgspec

from runner import Context, RetryableError, TerminalError, handler

from .database import Database

SERVICE = Database(
    "payment.db",
    # outages: how often a customer's bank fails for each payment before it answers.
    """CREATE TABLE IF NOT EXISTS accounts (
        customer TEXT PRIMARY KEY,
        balance INTEGER NOT NULL CHECK (balance >= 0),
        outages INTEGER NOT NULL)""",
    "INSERT OR IGNORE INTO accounts VALUES ('alice', 100000000, 0), ('bob', 500, 0), ('carol', 100000000, 2)",
    """CREATE TABLE IF NOT EXISTS payments (
        payment_id INTEGER PRIMARY KEY,
        order_id TEXT NOT NULL,
        customer TEXT NOT NULL,
        amount INTEGER NOT NULL,
        failed_tries INTEGER NOT NULL DEFAULT 0,
        state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'charged', 'refunded', 'void')))""",
)


class Payment(msgspec.Struct, frozen=True):
    payment_id: int
    customer: str
    amount: int
    failed_tries: int
    state: Literal["open", "charged", "refunded", "void"]


class Undone(msgspec.Struct, frozen=True):
    payment_id: int
    undone: bool
    """False: there was nothing to undo any more."""


@handler("payment.open")
def open_payment(ctx: Context, *, order_id: str, customer: str, amount: int) -> Payment:
    """Note that an order is to be paid. Fails with `unknown_account`."""

    def note(db: sqlite3.Connection) -> Payment:
        if db.execute("SELECT 1 FROM accounts WHERE customer = ?", (customer,)).fetchone() is None:
            raise TerminalError("unknown_account", f"{customer} has no account here")
        added = db.execute(
            "INSERT INTO payments (order_id, customer, amount) VALUES (?, ?, ?)", (order_id, customer, amount)
        )
        assert added.lastrowid is not None
        return get(db, added.lastrowid)

    return SERVICE.once(ctx, "payment.open", Payment, note)


@handler("payment.charge")
def charge(ctx: Context, *, payment_id: int) -> Payment:
    """Take the money. Fails with `insufficient_funds`, or `bank_unavailable`, which is worth another try."""

    def take(db: sqlite3.Connection) -> Payment:
        payment = get(db, payment_id)
        if payment.state != "open":
            raise TerminalError("payment_not_open", f"payment {payment_id} is {payment.state}")
        balance, outages = db.execute(
            "SELECT balance, outages FROM accounts WHERE customer = ?", (payment.customer,)
        ).fetchone()
        if payment.failed_tries < outages:
            db.execute("UPDATE payments SET failed_tries = failed_tries + 1 WHERE payment_id = ?", (payment_id,))
            raise RetryableError("bank_unavailable", f"the bank of {payment.customer} does not answer")
        if balance < payment.amount:
            raise TerminalError("insufficient_funds", f"{payment.customer} cannot pay {payment.amount} cents")
        return book(db, payment, -payment.amount, "charged")

    return SERVICE.once(ctx, "payment.charge", Payment, take)


@handler("payment.refund")
def refund(ctx: Context, *, payment_id: int) -> Undone:
    """Give the money back. A payment that holds none is a success."""

    def give_back(db: sqlite3.Connection) -> Undone:
        payment = find(db, payment_id)
        if payment is None or payment.state != "charged":
            return Undone(payment_id, undone=False)
        book(db, payment, payment.amount, "refunded")
        return Undone(payment_id, undone=True)

    return SERVICE.once(ctx, "payment.refund", Undone, give_back)


@handler("payment.void")
def void(ctx: Context, *, payment_id: int) -> Undone:
    """Close a payment that was never charged. Any other is a success."""

    def close(db: sqlite3.Connection) -> Undone:
        payment = find(db, payment_id)
        if payment is None or payment.state != "open":
            return Undone(payment_id, undone=False)
        book(db, payment, 0, "void")
        return Undone(payment_id, undone=True)

    return SERVICE.once(ctx, "payment.void", Undone, close)


def find(db: sqlite3.Connection, payment_id: int) -> Payment | None:
    row = db.execute(
        "SELECT payment_id, customer, amount, failed_tries, state FROM payments WHERE payment_id = ?",
        (payment_id,),
    ).fetchone()
    return None if row is None else Payment(*row)


def get(db: sqlite3.Connection, payment_id: int) -> Payment:
    payment = find(db, payment_id)
    if payment is None:
        raise TerminalError("unknown_payment", f"there is no payment {payment_id}")
    return payment


def book(
    db: sqlite3.Connection, payment: Payment, amount: int, state: Literal["charged", "refunded", "void"]
) -> Payment:
    """Move `amount` to the account (from it, if negative); the payment is then in `state`."""
    db.execute("UPDATE accounts SET balance = balance + ? WHERE customer = ?", (amount, payment.customer))
    db.execute("UPDATE payments SET state = ? WHERE payment_id = ?", (state, payment.payment_id))
    return msgspec.structs.replace(payment, state=state)
