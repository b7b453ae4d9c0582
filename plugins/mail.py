"""The mail service: what customers and the merchant are told. The table `mails` stands for the post."""

import sqlite3

import msgspec

from runner import Context, handler

from .database import Database

MERCHANT = "merchant@shop.example"

SERVICE = Database(
    "mail.db",
    """CREATE TABLE IF NOT EXISTS mails (
        mail_id INTEGER PRIMARY KEY, recipient TEXT NOT NULL, subject TEXT NOT NULL, text TEXT NOT NULL)""",
)


class Mail(msgspec.Struct, frozen=True):
    mail_id: int
    recipient: str


@handler("customer.notify")
def notify_customer(ctx: Context, *, email: str, subject: str, text: str) -> Mail:
    """Write to a customer."""
    return SERVICE.once(ctx, "customer.notify", Mail, lambda db: send(db, email, subject, text))


@handler("merchant.notify")
def notify_merchant(ctx: Context, *, subject: str, text: str) -> Mail:
    """Write to the merchant."""
    return SERVICE.once(ctx, "merchant.notify", Mail, lambda db: send(db, MERCHANT, subject, text))


def send(db: sqlite3.Connection, recipient: str, subject: str, text: str) -> Mail:
    added = db.execute("INSERT INTO mails (recipient, subject, text) VALUES (?, ?, ?)", (recipient, subject, text))
    assert added.lastrowid is not None
    return Mail(added.lastrowid, recipient)
