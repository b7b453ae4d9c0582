"""kill -9 in the middle of 200 orders, ten times over: nothing is lost, nothing happens twice."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import Shop, wait_until

ORDERS = 200
KILLS = 10
PRICE = 1000
ALICE, BOB, CAROL = "alice", "bob", "carol"
START_BALANCE, START_STOCK = 100_000_000, 100_000


@pytest.fixture(
    params=[
        "embedded",
        pytest.param("rabbitmq", marks=pytest.mark.rabbitmq),
        pytest.param("rabbitmq and postgres", marks=[pytest.mark.rabbitmq, pytest.mark.postgres]),
    ]
)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    broker = request.getfixturevalue("rabbit_url") if "rabbitmq" in request.param else "embedded:"
    store = request.getfixturevalue("postgres_url") if "postgres" in request.param else None
    (tmp_path / "data").mkdir()
    with Shop(tmp_path, broker, store=store) as shop:
        yield shop


def write_orders(path: Path) -> dict[str, int]:
    """200 orders: rich customers, one poor, one whose bank is flaky. Returns quantity by order."""
    chance = random.Random(7)
    quantities = {}
    with path.open("w") as file:
        for n in range(ORDERS):
            customer = chance.choice([ALICE, ALICE, CAROL, BOB])
            quantity = chance.randint(1, 5)
            order = {
                "order_id": f"K-{n}",
                "customer": customer,
                "email": f"{customer}@example.com",
                "sku": "widget",
                "quantity": quantity,
                "unit_price": PRICE,
            }
            quantities[f"K-{n}"] = quantity if customer != BOB else 0
            file.write(json.dumps(order) + "\n")
    return quantities


def test_orders_survive_ten_kills(shop: Shop, tmp_path: Path) -> None:
    quantities = write_orders(tmp_path / "orders.jsonl")
    shop.run("emit", "order.requested", "--file", str(tmp_path / "orders.jsonl"))

    for kill in range(KILLS):
        begun = effects(shop)
        process = shop.start("--quiet")
        wait_until(lambda begun=begun: effects(shop) >= begun + 60, alive=process)
        process.kill()
        process.communicate()
        print(f"kill {kill + 1} after {effects(shop)} effects")
    assert effects(shop) < 5 * ORDERS, "the kills came too late to mean anything"
    shop.run("start", "--until-idle", "--quiet")

    assert_everything_adds_up(shop, quantities)


def effects(shop: Shop) -> int:
    services = ("orders", "inventory", "payment", "mail")
    return sum(row[0] for name in services for row in shop.query(name, "SELECT count(*) FROM effects"))


def unfinished(shop: Shop) -> int:
    return sum(row[0] for row in shop.query("shop", "SELECT count(*) FROM runs WHERE finished_at IS NULL"))


def assert_everything_adds_up(shop: Shop, quantities: dict[str, int]) -> None:
    wanted = {order: "confirmed" if quantity else "rejected" for order, quantity in quantities.items()}
    assert dict(shop.query("orders", "SELECT order_id, status FROM orders")) == wanted

    sold = sum(quantities.values())
    assert shop.query("inventory", "SELECT on_hand, reserved FROM stock WHERE sku = 'widget'") == [
        (START_STOCK - sold, 0)
    ]
    balances = dict(shop.query("payment", "SELECT customer, balance FROM accounts"))
    assert balances[ALICE] + balances[CAROL] == 2 * START_BALANCE - sold * PRICE
    assert balances[BOB] == 500
    assert shop.query("payment", "SELECT state, count(*) FROM payments GROUP BY state ORDER BY state") == [
        ("charged", sum(1 for quantity in quantities.values() if quantity)),
        ("void", sum(1 for quantity in quantities.values() if not quantity)),
    ]
    told = shop.query("mail", "SELECT count(*) FROM effects WHERE action = 'customer.notify'")
    assert told == [(len(quantities),)]

    assert unfinished(shop) == 0
    states = dict(shop.query("shop", "SELECT state, count(*) FROM runs GROUP BY state"))
    rejected = sum(1 for quantity in quantities.values() if not quantity)
    paid = len(quantities) - rejected
    assert states == {"completed": 5 * paid + 3 * rejected, "compensated": rejected, "failed": rejected}
    assert shop.query("shop", "SELECT count(*) FROM outbox") == [(0,)]
    assert shop.query("shop", "SELECT count(*) FROM dead_letters") == [(0,)]
    for service in ("orders", "inventory", "payment", "mail"):
        repeated = "SELECT max(n) FROM (SELECT count(*) AS n FROM calls GROUP BY idempotency_key)"
        assert shop.query(service, repeated)[0][0] <= KILLS + 3
