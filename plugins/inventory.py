"""The inventory service: stock, and what of it is set aside for orders."""

import sqlite3
from typing import Literal

import msgspec

from runner import Context, TerminalError, handler

from .database import Database

SERVICE = Database(
    "inventory.db",
    """CREATE TABLE IF NOT EXISTS stock (
        sku TEXT PRIMARY KEY,
        on_hand INTEGER NOT NULL,
        reserved INTEGER NOT NULL DEFAULT 0,
        CHECK (reserved >= 0 AND reserved <= on_hand))""",
    """CREATE TABLE IF NOT EXISTS reservations (
        reservation_id INTEGER PRIMARY KEY,
        sku TEXT NOT NULL,
        quantity INTEGER NOT NULL CHECK (quantity > 0),
        state TEXT NOT NULL DEFAULT 'reserved' CHECK (state IN ('reserved', 'deducted', 'released')))""",
    "INSERT OR IGNORE INTO stock (sku, on_hand) VALUES ('widget', 100000), ('gadget', 5)",
)


class Reservation(msgspec.Struct, frozen=True):
    reservation_id: int
    sku: str
    quantity: int
    state: Literal["reserved", "deducted", "released"]


class Release(msgspec.Struct, frozen=True):
    reservation_id: int
    released: bool
    """False: there was nothing to release any more."""


@handler("inventory.reserve")
def reserve(ctx: Context, *, sku: str, quantity: int) -> Reservation:
    """Set stock aside. Fails with `unknown_sku` or `insufficient_stock`."""

    def set_aside(db: sqlite3.Connection) -> Reservation:
        row = db.execute("SELECT on_hand - reserved FROM stock WHERE sku = ?", (sku,)).fetchone()
        if row is None:
            raise TerminalError("unknown_sku", f"{sku} is not in our range", sku=sku)
        if row[0] < quantity:
            raise TerminalError("insufficient_stock", f"{row[0]} of {sku} are free, {quantity} are wanted", sku=sku)
        db.execute("UPDATE stock SET reserved = reserved + ? WHERE sku = ?", (quantity, sku))
        added = db.execute("INSERT INTO reservations (sku, quantity) VALUES (?, ?)", (sku, quantity))
        assert added.lastrowid is not None
        return Reservation(added.lastrowid, sku, quantity, "reserved")

    return SERVICE.once(ctx, "inventory.reserve", Reservation, set_aside)


@handler("inventory.deduct")
def deduct(ctx: Context, *, reservation_id: int) -> Reservation:
    """Let reserved stock leave the store. Fails with `not_reserved`."""

    def take_out(db: sqlite3.Connection) -> Reservation:
        reservation = find(db, reservation_id)
        if reservation is None or reservation.state != "reserved":
            raise TerminalError("not_reserved", f"nothing is reserved under {reservation_id}")
        db.execute(
            "UPDATE stock SET on_hand = on_hand - :n, reserved = reserved - :n WHERE sku = :sku",
            {"n": reservation.quantity, "sku": reservation.sku},
        )
        return set_state(db, reservation, "deducted")

    return SERVICE.once(ctx, "inventory.deduct", Reservation, take_out)


@handler("inventory.release")
def release(ctx: Context, *, reservation_id: int) -> Release:
    """Give stock back, be it only reserved or deducted already. Nothing there is a success."""

    def give_back(db: sqlite3.Connection) -> Release:
        reservation = find(db, reservation_id)
        if reservation is None or reservation.state == "released":
            return Release(reservation_id, released=False)
        if reservation.state == "reserved":
            back = "UPDATE stock SET reserved = reserved - ? WHERE sku = ?"
        else:
            back = "UPDATE stock SET on_hand = on_hand + ? WHERE sku = ?"
        db.execute(back, (reservation.quantity, reservation.sku))
        set_state(db, reservation, "released")
        return Release(reservation_id, released=True)

    return SERVICE.once(ctx, "inventory.release", Release, give_back)


def find(db: sqlite3.Connection, reservation_id: int) -> Reservation | None:
    row = db.execute(
        "SELECT reservation_id, sku, quantity, state FROM reservations WHERE reservation_id = ?",
        (reservation_id,),
    ).fetchone()
    return None if row is None else Reservation(*row)


def set_state(db: sqlite3.Connection, reservation: Reservation, state: Literal["deducted", "released"]) -> Reservation:
    db.execute("UPDATE reservations SET state = ? WHERE reservation_id = ?", (state, reservation.reservation_id))
    return msgspec.structs.replace(reservation, state=state)
