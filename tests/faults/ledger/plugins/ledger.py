"""A ledger in a SQLite file of its own, LEDGER: every call appended, every idempotency key entered once."""

import asyncio
import os
import sqlite3
import time
from typing import Literal

from runner import Context, RetryableError, TerminalError, handler

Kind = Literal["good", "bad", "flaky", "slow", "wide", "torn"]
SLOW_S = 0.3
TABLES = """
CREATE TABLE IF NOT EXISTS calls (key TEXT NOT NULL, job INTEGER NOT NULL, step TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS effects (
    key TEXT PRIMARY KEY, job INTEGER NOT NULL, step TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS effects_job ON effects (job, step);
"""
_connections: dict[int, sqlite3.Connection] = {}


@handler("ledger.enter")
async def enter(ctx: Context, *, job: int, kind: Kind, step: str) -> None:
    """Enter the step. A flaky job's second step fails at its first attempt, a bad or torn job's third one for good."""
    if kind == "slow":
        await asyncio.sleep(SLOW_S)
    refused = kind in ("bad", "torn") and step == "three"
    failed = kind == "flaky" and step == "two" and ctx.attempt == 1
    write(ctx.idempotency_key, job, step, effect=not (refused or failed))
    if refused:
        raise TerminalError("bad_job", f"job {job} is a bad one")
    if failed:
        raise RetryableError("flaky_job", f"job {job} fails at first")


@handler("ledger.strike")
async def strike(ctx: Context, *, job: int, step: str) -> None:
    """Strike the step's entry out, if there is one: an entry of its own."""
    entered = connection().execute("SELECT 1 FROM effects WHERE job = ? AND step = ?", (job, step)).fetchone()
    write(ctx.idempotency_key, job, f"undo {step}", effect=entered is not None)


def write(key: str, job: int, step: str, *, effect: bool) -> None:
    """The call and its effect, in one transaction."""
    db = connection()
    row = (key, job, step, time.time())
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute("INSERT INTO calls VALUES (?, ?, ?, ?)", row)
        if effect:
            db.execute("INSERT INTO effects VALUES (?, ?, ?, ?) ON CONFLICT (key) DO NOTHING", row)
    finally:
        db.execute("COMMIT")


def connection() -> sqlite3.Connection:
    """This process's own; one that was inherited over a fork must not be used."""
    pid = os.getpid()
    if pid not in _connections:
        db = sqlite3.connect(os.environ["LEDGER"], timeout=30, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(TABLES)
        _connections[pid] = db
    return _connections[pid]
