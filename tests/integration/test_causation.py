"""What belongs together bears one correlation id, and every event leads back to the message that began it all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from project import Shop


@pytest.fixture
def shop(place: tuple[str, str | None], tmp_path: Path) -> Iterator[Shop]:
    broker, store = place
    with Shop(tmp_path, broker, store=store) as shop:
        yield shop


def order(customer: str, **changes: Any) -> str:
    goods = {"sku": "widget", "quantity": 2, "unit_price": 1999, **changes}
    return json.dumps({"order_id": customer, "customer": customer, "email": f"{customer}@example.com", **goods})


def test_through_commands_retries_and_compensations_all_lead_back_to_the_first_message(shop: Shop) -> None:
    orders = {"alice": {}, "bob": {}, "carol": {"unit_price": 4999}, "dora": {"sku": "gadget", "quantity": 50}}
    for customer, changes in orders.items():
        shop.run("emit", "order.requested", "--data", order(customer, **changes), "--id", f"o-{customer}")
    shop.run("start", "--until-idle", "--quiet")
    assert len(set(dict(shop.query("orders", "SELECT order_id, status FROM orders")).values())) == 2

    runs = [shop.json("runs", "show", run["id"]) for run in shop.json("runs", "list", "--limit", "1000")]
    events = shop.json("events", "list", "--limit", "1000")
    assert any(step["attempts"] > 1 for run in runs for step in run["steps"]), "something was retried"
    assert any(run["compensations"] for run in runs), "something was undone"
    assert any(run["error"] for run in runs)
    commands = [run for run in runs if run["handler"].startswith("payments.")]
    assert len(commands) == 3

    messages = {event["id"]: event for event in events}
    messages |= {run["trigger"]["id"]: {**run, **run["trigger"]} for run in runs}
    positions = {event["id"]: event["position"] for event in events}
    for customer in orders:
        story = [m for m in messages.values() if m["correlation_id"] == f"o-{customer}"]
        assert len(story) > 1
        assert {run["id"] for run in runs if f'"{customer}"' in json.dumps(run["data"])} <= {
            run["id"] for run in runs if run["correlation_id"] == f"o-{customer}"
        }
        for message in story:
            way = [message]
            while way[-1]["causation_id"] is not None:
                way.append(messages[way[-1]["causation_id"]])
            assert way[-1]["id"] == f"o-{customer}"
            assert {step["correlation_id"] for step in way} == {f"o-{customer}"}
            on_the_way = [positions[step["id"]] for step in way if step["id"] in positions]
            assert on_the_way == sorted(on_the_way, reverse=True), "a cause stands before its effects"
    assert {m["correlation_id"] for m in messages.values()} == {f"o-{customer}" for customer in orders}
    emitted = [event for event in events if event["source"].startswith("/flowrun/shop/") and event["run_id"]]
    assert len(emitted) == len(events) - len(orders)
    assert all(event["run_id"] in {run["id"] for run in runs} for event in emitted)
