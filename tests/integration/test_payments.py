"""The payment system, and the order system with it: one shop, whose money adds up whoever is silent, late or killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from project import PATIENCE_S, ROOT, Shop, stop, wait_for_line, wait_until

RICH, POOR = 100_000_000, 500
TOTAL = 900

BROKERS = ["embedded", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]


class Market(Shop):
    """The shop, with what its customers and the third party do."""

    # --- what they do

    def emit(self, event: str, *payloads: dict[str, Any]) -> None:
        self.run("emit", event, "--file", "-", input="".join(json.dumps(payload) + "\n" for payload in payloads))

    def order(self, *orders: tuple[str, str], **more: Any) -> None:
        """Order goods for TOTAL cents; ids and customers."""
        goods = {"sku": "widget", "quantity": 1, "unit_price": TOTAL, "payment": "gateway", **more}
        names = [{"order_id": name, "customer": who, "email": f"{who}@example.com"} for name, who in orders]
        self.emit("order.requested", *({**name, **goods} for name in names))

    def pay(self, payment_id: str, order_id: str, customer: str = "alice", *, clicks: int = 1, **more: Any) -> None:
        payment = {"payment_id": payment_id, "order_id": order_id, "customer": customer}
        self.emit("payment.ordered", *[{**payment, "amount": TOTAL, "method": "account", **more}] * clicks)

    def vouch(self, payment_id: str, voucher_id: str, amount: int = TOTAL) -> None:
        """What the third party does on RabbitMQ; on the embedded broker this stands for it."""
        self.emit("voucher.issued", {"payment_id": payment_id, "voucher_id": voucher_id, "amount": amount})

    def call(self, command: str, **request: Any) -> dict[str, Any]:
        done = self.run("call", command, "--data", json.dumps(request), "--json", check=False)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def third_party(self, mode: str) -> subprocess.Popen[str]:
        """Begin the program that vouches for payments."""
        command = [sys.executable, str(ROOT / "tests" / "channel.py"), self.broker, "--mode", mode, "--delay", "3600"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.started.append(process)
        wait_for_line(process, "ready")
        return process

    # --- what became of it

    def orders(self) -> dict[str, str]:
        return dict(self.query("orders", "SELECT order_id, status FROM orders"))

    def payments(self) -> dict[str, str]:
        return dict(self.query("payment", "SELECT payment_id, state FROM payments"))

    def users(self) -> dict[str, tuple[str, str | None]]:
        """What the gateway tells of each payment order, and why."""
        rows = self.query("gateway", "SELECT payment_id, state, reason FROM payment_orders")
        return {payment_id: (state, reason) for payment_id, state, reason in rows}

    def returned(self) -> list[tuple[str, str]]:
        """The vouchers that the third party has got back, and why."""
        rows = self.query("shop", "SELECT data FROM events WHERE type = 'voucher.returned'")
        events = [json.loads(bytes(data) if isinstance(data, memoryview) else data) for (data,) in rows]
        return sorted((event["voucher_id"], event["reason"]) for event in events)

    def asked(self, payment_id: str) -> bool:
        """The payment waits for its voucher."""
        sql = "SELECT 1 FROM events WHERE type = 'voucher.requested' AND json_extract(data, '$.payment_id') = "
        return self.query("shop", f"{sql} '{payment_id}'") != []

    def runs(self, handler: str) -> list[str]:
        return sorted(s for (s,) in self.query("shop", f"SELECT state FROM runs WHERE handler = '{handler}'"))

    def assert_money_adds_up(self) -> None:
        """Each account lacks what was charged to it, each order is paid once or not at all."""
        sql = "SELECT coalesce(sum(amount), 0) FROM payments WHERE state = 'charged' AND method = 'account'"
        [(charged,)] = self.query("payment", sql)
        [(money,)] = self.query("payment", "SELECT sum(balance) FROM accounts")
        assert money == 2 * RICH + POOR - charged
        paid = self.query("payment", "SELECT order_id FROM payments WHERE state = 'charged' ORDER BY order_id")
        assert [order_id for (order_id,) in paid] == sorted(o for o, s in self.orders().items() if s == "confirmed")
        assert self.query("shop", "SELECT id FROM dead_letters") == []


@pytest.fixture(params=BROKERS)
def market(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Market]:
    broker = request.getfixturevalue("rabbit_url") if request.param == "rabbitmq" else "embedded:"
    with Market(tmp_path, broker) as market:
        yield market


on_embedded = pytest.mark.parametrize("market", BROKERS[:1], indirect=True)
on_rabbitmq = pytest.mark.parametrize("market", BROKERS[1:], indirect=True)


def begin(market: Market, *orders: tuple[str, str]) -> subprocess.Popen[str]:
    """A worker that has billed these orders (ids and customers)."""
    worker = market.start()
    wait_for_line(worker, "ready")
    market.order(*orders)
    wait_until(lambda: list(market.orders().values()) == ["billed"] * len(orders), alive=worker)
    return worker


def soon(seconds: float = 1.0) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def is_(state: dict[str, Any], **wanted: Any) -> bool:
    """Whether these have come to be so, whatever else there is; `_` stands for `-` in names."""
    return all(state.get(name.replace("_", "-")) == value for name, value in wanted.items())


def end(market: Market, *workers: subprocess.Popen[str]) -> None:
    """Stop once nothing is under way any more but what waits, and count the money."""
    busy = "SELECT 1 FROM runs WHERE state IN ('running', 'compensating') UNION ALL SELECT 1 FROM outbox"
    wait_until(lambda: market.query("shop", busy) == [], alive=workers[0])
    for worker in workers:
        assert stop(worker)[0] == 0
    market.assert_money_adds_up()


# --- over HTTP


def test_users_pay_over_http_and_a_click_that_comes_twice_is_one_payment(market: Market) -> None:
    worker = market.start("--http", "127.0.0.1:0")
    url = wait_for_line(worker, "HTTP on")[-1].split("HTTP on ")[1].split(": ")[0]
    market.order(("A-1", "alice"), ("A-2", "bob"))
    wait_until(lambda: list(market.orders().values()) == ["billed"] * 2, alive=worker)
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        order = {"payment_id": "p-1", "order_id": "A-1", "customer": "alice", "amount": TOTAL, "method": "account"}
        clicks = [client.post("/payments", json=order, headers={"Idempotency-Key": "click-1"}) for _ in range(3)]
        assert [(click.status_code, click.json()) for click in clicks] == [(202, {"id": "click-1"})] * 3
        poor = client.post("/payments", json={**order, "payment_id": "p-2", "order_id": "A-2", "customer": "bob"})
        assert poor.status_code == 202
        refused = client.post("/payments", json={**order, "payment_id": "order-1"})
        assert (refused.status_code, refused.json()["error"]["details"]) == (422, {"pointer": "/payment_id"})
    wait_until(
        lambda: (
            market.users() == {"p-1": ("paid", None), "p-2": ("failed", "insufficient_funds")}
            and is_(market.orders(), A_1="confirmed")
        ),
        alive=worker,
    )
    assert len(market.runs("gateway.pay")) == 2, "of the clicks one came to be a run"
    end(market, worker)


# --- by account


def test_a_user_pays_from_the_account_and_the_order_is_confirmed(market: Market) -> None:
    worker = begin(market, ("A-1", "alice"))
    market.pay("p-1", "A-1")
    wait_until(
        lambda: market.users() == {"p-1": ("paid", None)} and is_(market.orders(), A_1="confirmed"), alive=worker
    )
    wait_until(lambda: market.runs("gateway.pay") == ["completed"], alive=worker)

    market.pay("p-2", "A-1")
    market.pay("p-3", "A-9")
    wait_until(
        lambda: len(market.runs("gateway.pay")) == 3 and is_(market.users(), p_3=FAILED["unknown"]), alive=worker
    )
    wait_until(lambda: is_(market.users(), p_2=FAILED["late"], p_1=("paid", None)), alive=worker)
    end(market, worker)


FAILED = {"unknown": ("failed", "unknown_order"), "late": ("failed", "order_not_payable")}


def test_without_money_the_user_is_told_and_another_try_may_pay_before_the_order_is_rejected(market: Market) -> None:
    worker = begin(market, ("A-1", "bob"))
    market.pay("p-1", "A-1", "bob")
    wait_until(lambda: is_(market.users(), p_1=("failed", "insufficient_funds")), alive=worker)
    market.pay("p-2", "A-1", "alice", amount=TOTAL - 1)
    wait_until(lambda: is_(market.users(), p_2=("failed", "order_not_payable")), alive=worker)
    assert market.orders() == {"A-1": "billed"}
    market.pay("p-3", "A-1", "alice")
    wait_until(lambda: is_(market.orders(), A_1="confirmed") and is_(market.users(), p_3=("paid", None)), alive=worker)
    assert market.payments() == {"p-1": "void", "p-3": "charged"}
    end(market, worker)


@on_embedded
def test_an_order_that_we_charge_ourselves_is_rejected_without_money_and_the_customer_told(market: Market) -> None:
    market.order(("A-1", "bob"), payment="account")
    market.run("start", "--until-idle", "--quiet")
    assert market.orders() == {"A-1": "rejected"}
    assert market.payments() == {"order-A-1-1": "void"}
    [(text,)] = market.query("mail", "SELECT text FROM mails WHERE recipient = 'bob@example.com'")
    assert "insufficient funds" in text
    market.assert_money_adds_up()


@on_embedded
def test_an_order_that_nobody_pays_in_time_is_rejected(market: Market) -> None:
    market.order(("A-1", "bob"), pay_by=soon(-1))
    market.run("start", "--until-idle", "--quiet")
    assert market.orders() == {"A-1": "rejected"}
    [(text,)] = market.query("mail", "SELECT text FROM mails WHERE recipient = 'bob@example.com'")
    assert "not paid" in text
    assert market.query("inventory", "SELECT reserved FROM stock WHERE sku = 'widget'") == [(0,)]
    assert market.payments() == {}


def test_a_double_click_charges_once_and_both_are_answered_alike(market: Market) -> None:
    worker = begin(market, ("A-1", "carol"), ("A-2", "alice"))
    charge = {"payment_id": "p-1", "order_id": "A-1", "customer": "carol", "amount": TOTAL, "method": "account"}
    command = [str(Path(sys.executable).parent / "flowrun"), "call", "payment.charge", "--data", json.dumps(charge)]
    clicks = [
        subprocess.Popen(command, cwd=market.root, env=market.environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = {click.communicate(timeout=PATIENCE_S)[0] for click in clicks}
    assert [json.loads(answer) for answer in answers] == [{"payment_id": "p-1", "charged": TOTAL}]
    assert market.call("payment.charge", **charge) == {"result": {"payment_id": "p-1", "charged": TOTAL}}
    assert market.runs("payments.charge") == ["completed"]

    market.pay("p-2", "A-2", clicks=2)
    wait_until(lambda: market.runs("gateway.pay") == ["completed"] * 2, alive=worker)
    wait_until(lambda: market.orders() == {"A-1": "confirmed", "A-2": "confirmed"}, alive=worker)
    assert market.payments() == {"p-1": "charged", "p-2": "charged"}
    end(market, worker)


def test_a_refund_gives_back_once_and_nothing_there_is_a_success(market: Market) -> None:
    worker = begin(market, ("A-1", "alice"))
    market.pay("p-1", "A-1")
    wait_until(lambda: market.runs("gateway.pay") == ["completed"], alive=worker)
    wait_until(lambda: is_(market.users(), p_1=("paid", None)), alive=worker)

    assert market.call("payment.refund", payment_id="p-1") == {"result": {"refunded": True}}
    assert market.call("payment.refund", payment_id="p-1") == {"result": {"refunded": False}}
    assert market.call("payment.refund", payment_id="p-9") == {"result": {"refunded": False}}
    wait_until(lambda: is_(market.users(), p_1=("refunded", None)), alive=worker)
    assert stop(worker)[0] == 0
    assert market.query("payment", "SELECT balance FROM accounts WHERE customer = 'alice'") == [(RICH,)]


def test_an_order_that_ends_while_it_is_paid_has_its_payment_given_back(market: Market) -> None:
    worker = begin(market, ("A-1", "bob"))
    market.pay("p-1", "A-1", "bob", method="voucher")
    wait_until(lambda: market.asked("p-1"), alive=worker)
    market.run("runs", "cancel", "--handler", "orders.pay", "--yes")
    wait_until(lambda: market.orders() == {"A-1": "rejected"}, alive=worker)
    market.vouch("p-1", "v-1")
    wait_until(lambda: is_(market.users(), p_1=("refunded", None)), alive=worker)
    wait_until(lambda: market.runs("gateway.pay") == ["compensated"], alive=worker)
    assert market.returned() == [("v-1", "refunded")]
    end(market, worker)


# --- by voucher


def vouched(market: Market, mode: str) -> Callable[[str, str], None]:
    """The third party in this mode, where there is a broker for it; else what it would do is emitted."""
    if market.broker == "embedded:":
        return market.vouch
    market.third_party(mode)
    return lambda payment_id, voucher_id: None


def test_a_voucher_pays(market: Market) -> None:
    worker = begin(market, ("A-1", "bob"))
    vouch = vouched(market, "prompt")
    market.pay("p-1", "A-1", "bob", method="voucher")
    wait_until(lambda: market.asked("p-1"), alive=worker)
    vouch("p-1", "v-p-1")
    wait_until(lambda: is_(market.orders(), A_1="confirmed") and is_(market.users(), p_1=("paid", None)), alive=worker)
    wait_until(lambda: market.runs("payments.return_late_voucher") == ["completed"], alive=worker)
    assert market.returned() == []

    assert market.call("payment.refund", payment_id="p-1") == {"result": {"refunded": True}}
    wait_until(lambda: market.returned() == [("v-p-1", "refunded")], alive=worker)
    assert stop(worker)[0] == 0


def test_a_third_party_that_is_silent_lets_the_payment_fail_and_a_late_voucher_is_returned(market: Market) -> None:
    worker = begin(market, ("A-1", "bob"))
    vouch = vouched(market, "late")
    market.pay("p-1", "A-1", "bob", method="voucher", pay_by=soon())
    wait_until(lambda: is_(market.users(), p_1=("failed", "no_voucher")), alive=worker)
    wait_until(lambda: market.runs("gateway.pay") == ["compensated"], alive=worker)
    vouch("p-1", "v-p-1")
    wait_until(lambda: market.returned() == [("v-p-1", "void")], alive=worker)
    assert market.payments() == {"p-1": "void"}
    assert market.orders() == {"A-1": "billed"}, "another try may come"
    if market.broker != "embedded:":
        lines = wait_for_line(market.started[-1], "returned")
        assert [line.strip() for line in lines] == ["asked p-1", "issued v-p-1", "returned v-p-1 void"]
    end(market, worker)


def test_of_two_vouchers_one_pays_and_one_is_returned(market: Market) -> None:
    worker = begin(market, ("A-1", "bob"))
    vouch = vouched(market, "twice")
    market.pay("p-1", "A-1", "bob", method="voucher")
    wait_until(lambda: market.asked("p-1"), alive=worker)
    vouch("p-1", "v-p-1")
    vouch("p-1", "v-p-1-again")
    wait_until(lambda: market.runs("payments.return_late_voucher") == ["completed"] * 2, alive=worker)
    wait_until(lambda: is_(market.orders(), A_1="confirmed") and is_(market.users(), p_1=("paid", None)), alive=worker)
    [(paid,)] = market.query("payment", "SELECT voucher_id FROM payments")
    [other] = {"v-p-1", "v-p-1-again"} - {paid}
    assert market.returned() == [(other, "charged")]
    end(market, worker)


@on_embedded
def test_vouchers_that_nobody_can_use_are_returned(market: Market) -> None:
    worker = begin(market, ("A-1", "bob"))
    market.vouch("p-9", "v-9")
    market.pay("p-1", "A-1", "bob", method="voucher")
    wait_until(lambda: market.asked("p-1"), alive=worker)
    market.vouch("p-1", "v-1", TOTAL - 1)
    wait_until(lambda: market.returned() == [("v-1", "void"), ("v-9", "unknown")], alive=worker)
    wait_until(lambda: is_(market.users(), p_1=("failed", "voucher_mismatch")), alive=worker)
    end(market, worker)


# --- with processes that are killed


def test_each_service_is_killed_in_the_middle_of_a_payment(market: Market) -> None:
    services = {name: market.start(name, "--quiet") for name in ("orders", "gateway")}
    orders = [(f"A-{n}", "carol") for n in range(4)]
    market.order(*orders)
    wait_until(lambda: list(market.orders().values()) == ["billed"] * len(orders))

    market.pay("p-0", "A-0", "carol", method="voucher")
    wait_until(lambda: market.users() == {"p-0": ("ordered", None)}, alive=services["gateway"])
    services["payments"] = market.start("payments", "--quiet")  # it was away: the broker has kept the command

    for n, (name, method) in enumerate({"gateway": "voucher", "payments": "voucher", "orders": "account"}.items()):
        if n > 0:
            market.pay(f"p-{n}", f"A-{n}", "carol", method=method)
        wait_until(lambda n=n: f"p-{n}" in market.payments())
        services[name].kill()
        services[name].wait()
        if method == "voucher":
            market.vouch(f"p-{n}", f"v-{n}")
        services[name] = market.start(name, "--quiet")
    market.pay("p-3", "A-3", "carol", method="voucher")
    wait_until(lambda: market.asked("p-3"))
    market.vouch("p-3", "v-3")

    wait_until(lambda: list(market.orders().values()) == ["confirmed"] * len(orders))
    wait_until(lambda: list(market.users().values()) == [("paid", None)] * len(orders))
    wait_until(lambda: market.runs("gateway.pay") == ["completed"] * len(orders))
    wait_until(lambda: market.runs("payments.return_late_voucher") == ["completed"] * 3)
    assert list(market.payments().values()) == ["charged"] * len(orders)
    assert market.returned() == []
    end(market, *services.values())


@on_rabbitmq
def test_the_third_party_is_killed_before_it_answers_and_is_asked_again(market: Market) -> None:
    worker = begin(market, ("A-1", "bob"))
    third_party = market.third_party("slow")
    market.pay("p-1", "A-1", "bob", method="voucher")
    wait_for_line(third_party, "asked p-1")
    third_party.kill()
    third_party.wait()
    again = market.third_party("prompt")
    wait_for_line(again, "issued v-p-1")
    wait_until(lambda: is_(market.orders(), A_1="confirmed") and is_(market.users(), p_1=("paid", None)), alive=worker)
    wait_until(lambda: market.runs("payments.return_late_voucher") == ["completed"], alive=worker)
    end(market, worker)
