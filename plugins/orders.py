"""The order service: who ordered, under which number, and what became of it.

A handler is idempotent: flowrun may call it again with the same `ctx.idempotency_key`, after a timeout or a
crash, and `Database.once` answers such a repeat from its notes. `ctx.idempotency_key` belongs to one step
of one run; `order_id` is the customer's own name for the order.
"""

import sqlite3
from typing import Literal

import msgspec

from runner import Context, TerminalError, handler

from .database import Database

SERVICE = Database(
    "orders.db",
    """CREATE TABLE IF NOT EXISTS orders (
        number INTEGER PRIMARY KEY,
        order_id TEXT NOT NULL UNIQUE,
        customer TEXT NOT NULL,
        email TEXT NOT NULL,
        total INTEGER NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('placed', 'billed', 'confirmed', 'rejected')),
        reason TEXT)""",
)


class Order(msgspec.Struct, frozen=True):
    order_id: str
    number: int
    customer: str
    email: str
    total: int
    status: Literal["placed", "billed", "confirmed", "rejected"]


class Rejection(msgspec.Struct, frozen=True):
    order_id: str
    rejected: bool
    """False: there was nothing to reject any more."""


@handler("order.create")
def create(ctx: Context, *, order_id: str, customer: str, email: str, total: int) -> Order:
    """Give the order the next number; `total` is in cents.

    Fails with `duplicate_order`; a rejected one may be asked for again.
    """

    def give_number(db: sqlite3.Connection) -> Order:
        known = find(db, order_id)
        if known is not None and known.status != "rejected":
            raise TerminalError("duplicate_order", f"order {order_id} has been {known.status} already")
        db.execute(
            """INSERT INTO orders (order_id, customer, email, total, status) VALUES (?, ?, ?, ?, 'placed')
            ON CONFLICT (order_id) DO UPDATE SET customer = excluded.customer, email = excluded.email,
                total = excluded.total, status = 'placed', reason = NULL""",
            (order_id, customer, email, total),
        )
        return get(db, order_id)

    return SERVICE.once(ctx, "order.create", Order, give_number)


@handler("order.bill")
def bill(ctx: Context, *, order_id: str) -> Order:
    """Let a placed order be paid from now on. Fails with `unknown_order` or `order_not_placed`."""
    return SERVICE.once(ctx, "order.bill", Order, lambda db: move(db, order_id, "placed", "billed"))


@handler("order.confirm")
def confirm(ctx: Context, *, order_id: str) -> Order:
    """Confirm a billed order. Fails with `unknown_order` or `order_not_billed`."""
    return SERVICE.once(ctx, "order.confirm", Order, lambda db: move(db, order_id, "billed", "confirmed"))


@handler("order.reject")
def reject(ctx: Context, *, order_id: str, reason: str) -> Rejection:
    """Reject an order, whatever its state. No such order, or one rejected before, is a success."""

    def set_rejected(db: sqlite3.Connection) -> Rejection:
        changed = db.execute(
            "UPDATE orders SET status = 'rejected', reason = ? WHERE order_id = ? AND status != 'rejected'",
            (reason, order_id),
        )
        return Rejection(order_id, rejected=changed.rowcount == 1)

    return SERVICE.once(ctx, "order.reject", Rejection, set_rejected)


@handler("order.status", effect=False)
def status(ctx: Context, *, order_id: str) -> Order:
    """The order as it is now. Fails with `unknown_order`."""
    with SERVICE.transaction() as db:
        return get(db, order_id)


def find(db: sqlite3.Connection, order_id: str) -> Order | None:
    row = db.execute(
        "SELECT order_id, number, customer, email, total, status FROM orders WHERE order_id = ?", (order_id,)
    ).fetchone()
    return None if row is None else Order(*row)


def get(db: sqlite3.Connection, order_id: str) -> Order:
    order = find(db, order_id)
    if order is None:
        raise TerminalError("unknown_order", f"there is no order {order_id}", order_id=order_id)
    return order


def move(db: sqlite3.Connection, order_id: str, before: str, after: str) -> Order:
    """Put an order that is in the state `before` into the next one."""
    order = get(db, order_id)
    if order.status != before:
        raise TerminalError(f"order_not_{before}", f"order {order_id} is {order.status}", status=order.status)
    db.execute("UPDATE orders SET status = ? WHERE order_id = ?", (after, order_id))
    return get(db, order_id)
