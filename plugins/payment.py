"""The payment service: customers' accounts, and the payments made from them or by voucher. Money is in integer cents.

A payment id names one *try* to pay an order, and is given by the one who asks for it: so it can be undone also by
someone who never got an answer.
"""

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
        payment_id TEXT PRIMARY KEY,
        order_id TEXT NOT NULL,
        customer TEXT NOT NULL,
        amount INTEGER NOT NULL,
        method TEXT NOT NULL CHECK (method IN ('account', 'voucher')),
        failed_tries INTEGER NOT NULL DEFAULT 0,
        state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'charged', 'refunded', 'void')),
        voucher_id TEXT)""",
    # However many tries there are, an order is paid once.
    "CREATE UNIQUE INDEX IF NOT EXISTS payment_of_order ON payments (order_id) WHERE state IN ('open', 'charged')",
)

Method = Literal["account", "voucher"]
State = Literal["open", "charged", "refunded", "void"]


class Payment(msgspec.Struct, frozen=True):
    payment_id: str
    order_id: str
    customer: str
    amount: int
    method: Method
    failed_tries: int
    state: State
    voucher_id: str | None
    """The voucher that it was paid with, also if that has been given back since."""


class Standing(msgspec.Struct, frozen=True):
    payment_id: str
    state: Literal["unknown", "open", "charged", "refunded", "void"]
    voucher_id: str | None


class GivenBack(msgspec.Struct, frozen=True):
    payment: Payment | None
    """None: there was nothing to give back."""


class Undone(msgspec.Struct, frozen=True):
    payment_id: str
    undone: bool
    """False: there was nothing to undo any more."""


@handler("payment.open")
def open_payment(
    ctx: Context, *, payment_id: str, order_id: str, customer: str, amount: int, method: Method
) -> Payment:
    """Note that an order is to be paid.

    Fails with `payment_not_open` if there was a payment of this id, `order_not_payable` if another one has paid
    the order or is about to, `unknown_account`.
    """

    def note(db: sqlite3.Connection) -> Payment:
        known = find(db, payment_id)
        if known is not None:
            raise TerminalError("payment_not_open", f"payment {payment_id} is {known.state} already")
        other = db.execute(
            "SELECT payment_id, state FROM payments WHERE order_id = ? AND state IN ('open', 'charged')", (order_id,)
        ).fetchone()
        if other is not None:
            raise TerminalError("order_not_payable", f"payment {other[0]} of order {order_id} is {other[1]}")
        account = db.execute("SELECT 1 FROM accounts WHERE customer = ?", (customer,)).fetchone()
        if method == "account" and account is None:
            raise TerminalError("unknown_account", f"{customer} has no account here")
        db.execute(
            "INSERT INTO payments (payment_id, order_id, customer, amount, method) VALUES (?, ?, ?, ?, ?)",
            (payment_id, order_id, customer, amount, method),
        )
        return get(db, payment_id)

    return SERVICE.once(ctx, "payment.open", Payment, note)


@handler("payment.take")
def take(ctx: Context, *, payment_id: str) -> Payment:
    """Take the money from the account.

    Fails with `insufficient_funds`, `payment_not_open`, or `bank_unavailable`, which is worth another try.
    """

    def charge(db: sqlite3.Connection) -> Payment:
        payment = get_open(db, payment_id)
        balance, outages = db.execute(
            "SELECT balance, outages FROM accounts WHERE customer = ?", (payment.customer,)
        ).fetchone()
        if payment.failed_tries < outages:
            db.execute("UPDATE payments SET failed_tries = failed_tries + 1 WHERE payment_id = ?", (payment_id,))
            raise RetryableError("bank_unavailable", f"the bank of {payment.customer} does not answer")
        if balance < payment.amount:
            raise TerminalError("insufficient_funds", f"{payment.customer} cannot pay {payment.amount} cents")
        return book(db, payment, -payment.amount, "charged")

    return SERVICE.once(ctx, "payment.take", Payment, charge)


@handler("payment.settle")
def settle(ctx: Context, *, payment_id: str, voucher_id: str, amount: int) -> Payment:
    """Take a voucher in payment.

    Fails with `payment_not_open`, `voucher_mismatch` if it is of another amount, `voucher_used` if it has paid before.
    """

    def redeem(db: sqlite3.Connection) -> Payment:
        payment = get_open(db, payment_id)
        if amount != payment.amount:
            raise TerminalError(
                "voucher_mismatch", f"voucher {voucher_id} is of {amount} cents, {payment.amount} are due"
            )
        if db.execute("SELECT 1 FROM payments WHERE voucher_id = ?", (voucher_id,)).fetchone() is not None:
            raise TerminalError("voucher_used", f"voucher {voucher_id} has paid before")
        db.execute("UPDATE payments SET voucher_id = ? WHERE payment_id = ?", (voucher_id, payment_id))
        return book(db, get(db, payment_id), 0, "charged")

    return SERVICE.once(ctx, "payment.settle", Payment, redeem)


@handler("payment.unsettle")
def unsettle(ctx: Context, *, payment_id: str, voucher_id: str) -> Undone:
    """Close a payment that was to be settled with this voucher, whether it was or not. Nothing there is a success."""

    def close(db: sqlite3.Connection) -> Undone:
        payment = find(db, payment_id)
        if payment is None or payment.state not in ("open", "charged"):
            return Undone(payment_id, undone=False)
        db.execute("UPDATE payments SET voucher_id = ? WHERE payment_id = ?", (voucher_id, payment_id))
        book(db, payment, 0, "void")
        return Undone(payment_id, undone=True)

    return SERVICE.once(ctx, "payment.unsettle", Undone, close)


@handler("payment.give_back")
def give_back(ctx: Context, *, payment_id: str) -> GivenBack:
    """Give back what was charged; one that is still open is closed. A payment that holds nothing is a success."""

    def refund(db: sqlite3.Connection) -> GivenBack:
        payment = find(db, payment_id)
        if payment is not None and payment.state == "open":
            book(db, payment, 0, "void")
        if payment is None or payment.state != "charged":
            return GivenBack(None)
        return GivenBack(book(db, payment, payment.amount if payment.method == "account" else 0, "refunded"))

    return SERVICE.once(ctx, "payment.give_back", GivenBack, refund)


@handler("payment.void")
def void(ctx: Context, *, payment_id: str) -> Undone:
    """Close a payment that was never charged. Any other is a success."""

    def close(db: sqlite3.Connection) -> Undone:
        payment = find(db, payment_id)
        if payment is None or payment.state != "open":
            return Undone(payment_id, undone=False)
        book(db, payment, 0, "void")
        return Undone(payment_id, undone=True)

    return SERVICE.once(ctx, "payment.void", Undone, close)


@handler("payment.status", effect=False)
def status(ctx: Context, *, payment_id: str) -> Standing:
    """How the payment stands now; `unknown` if there is none."""
    with SERVICE.transaction() as db:
        payment = find(db, payment_id)
    if payment is None:
        return Standing(payment_id, "unknown", None)
    return Standing(payment_id, payment.state, payment.voucher_id)


def find(db: sqlite3.Connection, payment_id: str) -> Payment | None:
    row = db.execute(
        """SELECT payment_id, order_id, customer, amount, method, failed_tries, state, voucher_id
        FROM payments WHERE payment_id = ?""",
        (payment_id,),
    ).fetchone()
    return None if row is None else Payment(*row)


def get(db: sqlite3.Connection, payment_id: str) -> Payment:
    payment = find(db, payment_id)
    if payment is None:
        raise TerminalError("unknown_payment", f"there is no payment {payment_id}")
    return payment


def get_open(db: sqlite3.Connection, payment_id: str) -> Payment:
    payment = get(db, payment_id)
    if payment.state != "open":
        raise TerminalError("payment_not_open", f"payment {payment_id} is {payment.state}")
    return payment


def book(
    db: sqlite3.Connection, payment: Payment, amount: int, state: Literal["charged", "refunded", "void"]
) -> Payment:
    """Move `amount` to the account (from it, if negative); the payment is then in `state`."""
    db.execute("UPDATE accounts SET balance = balance + ? WHERE customer = ?", (amount, payment.customer))
    db.execute("UPDATE payments SET state = ? WHERE payment_id = ?", (state, payment.payment_id))
    return msgspec.structs.replace(payment, state=state)
