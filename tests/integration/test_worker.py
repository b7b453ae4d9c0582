"""What a worker does with messages that come more than once, or at the same time."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from project import Shop

from runner.message import Outgoing, Properties
from runner.sqlite_file import SqliteFile
from runner.transports.embedded import EmbeddedTransport

COPIES = 40


async def publish_copies(path: str, body: bytes) -> None:
    copy = Outgoing(
        exchange="shop.events",
        routing_key="order.requested",
        body=body,
        properties=Properties(message_id="the-same"),
    )
    async with EmbeddedTransport(SqliteFile(path)) as transport:
        assert list(await transport.publish([copy] * COPIES)) == [None] * COPIES


def test_many_copies_of_a_message_at_once_are_one_run(tmp_path: Path) -> None:
    with Shop(tmp_path) as shop:
        shop.run("start", "--until-idle")
        order = {
            "order_id": "W-1",
            "customer": "carol",
            "email": "carol@example.com",
            "sku": "widget",
            "quantity": 1,
            "unit_price": 100,
        }
        asyncio.run(publish_copies(f"{tmp_path}/shop.db", json.dumps(order).encode()))
        told = shop.run("start", "--until-idle", "--quiet")
        assert told.stderr == ""
        [run] = shop.json("runs", "list", "--handler", "orders.place")
        assert run["state"] == "completed"
        assert shop.query("orders", "SELECT count(*) FROM calls WHERE action = 'order.create'") == [(1,)]
        assert shop.query("shop", "SELECT count(*) FROM broker_messages") == [(0,)]
