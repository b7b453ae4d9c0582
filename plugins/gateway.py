"""The payment gateway: what users ask to be paid, and how that ended."""

import sqlite3
from typing import Literal

import msgspec

from runner import Context, TerminalError, handler

from .database import Database

SERVICE = Database(
    "gateway.db",
    """CREATE TABLE IF NOT EXISTS payment_orders (
        payment_id TEXT PRIMARY KEY,
        order_id TEXT NOT NULL,
        customer TEXT NOT NULL,
        amount INTEGER NOT NULL,
        method TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'ordered' CHECK (state IN ('ordered', 'paid', 'refunded', 'failed')),
        reason TEXT)""",
)


class PaymentOrder(msgspec.Struct, frozen=True):
    payment_id: str
    order_id: str
    state: Literal["ordered", "paid", "refunded", "failed"]


class Update(msgspec.Struct, frozen=True):
    payment_id: str
    updated: bool
    """False: there is no such payment order, or it has come further already."""


@handler("gateway.accept")
def accept(
    ctx: Context, *, payment_id: str, order_id: str, customer: str, amount: int, method: Literal["account", "voucher"]
) -> PaymentOrder:
    """Note a user's payment order. Fails with `duplicate_payment`, whatever became of the first."""

    def note(db: sqlite3.Connection) -> PaymentOrder:
        if db.execute("SELECT 1 FROM payment_orders WHERE payment_id = ?", (payment_id,)).fetchone() is not None:
            raise TerminalError("duplicate_payment", f"payment {payment_id} has been ordered already")
        db.execute(
            "INSERT INTO payment_orders (payment_id, order_id, customer, amount, method) VALUES (?, ?, ?, ?, ?)",
            (payment_id, order_id, customer, amount, method),
        )
        return PaymentOrder(payment_id, order_id, "ordered")

    return SERVICE.once(ctx, "gateway.accept", PaymentOrder, note)


@handler("gateway.update")
def update(
    ctx: Context, *, payment_id: str, state: Literal["paid", "refunded", "failed"], reason: str | None = None
) -> Update:
    """Tell the user how it ended."""

    def set_state(db: sqlite3.Connection) -> Update:
        # The news may come in any order, and twice: the first is believed, and after it only a refund.
        changed = db.execute(
            """UPDATE payment_orders SET state = :state, reason = :reason WHERE payment_id = :payment_id
            AND (state = 'ordered' OR state != 'refunded' AND :state = 'refunded')""",
            {"state": state, "reason": reason, "payment_id": payment_id},
        )
        return Update(payment_id, updated=changed.rowcount == 1)

    return SERVICE.once(ctx, "gateway.update", Update, set_state)
