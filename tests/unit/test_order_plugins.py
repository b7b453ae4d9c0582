"""The handlers of the order system: each effect happens once, whatever calls it how often."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from runner import Context, RetryableError, TerminalError
from runner.registry import discover

PLUGINS = Path(__file__).parents[2] / "plugins"
SERVICES = ("orders", "inventory", "payment", "reviews", "mail")


discover(PLUGINS.parent)
orders, inventory, payment, reviews, mail = (import_module(f"flowrun_plugins.{service}") for service in SERVICES)


def step(key: str, attempt: int = 1) -> Context:
    return Context(
        run_id="run",
        step_id="step",
        attempt=attempt,
        idempotency_key=key,
        deadline=None,
        correlation_id="correlation",
        logger=logging.getLogger("test"),
    )


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    monkeypatch.setenv("SHOP_DATA", str(folder))
    return folder


def rows(data: Path, service: str, sql: str) -> list[Any]:
    with closing(sqlite3.connect(data / f"{service}.db")) as db:
        return db.execute(sql).fetchall()


def stock_of(data: Path, sku: str) -> tuple[int, int]:
    [(on_hand, reserved)] = rows(data, "inventory", f"SELECT on_hand, reserved FROM stock WHERE sku = '{sku}'")
    return on_hand, reserved


def balance_of(data: Path, customer: str) -> int:
    [(balance,)] = rows(data, "payment", f"SELECT balance FROM accounts WHERE customer = '{customer}'")
    return int(balance)


def place(order_id: str = "A-1", key: str = "create") -> Any:
    return orders.create(step(key), order_id=order_id, customer="alice", email="alice@example.com")


def open_for(customer: str, amount: int) -> int:
    opened = payment.open_payment(step(f"open {customer}"), order_id="A-1", customer=customer, amount=amount)
    return int(opened.payment_id)


# --- what all services share -------------------------------------------------------------------------------


def test_a_repeated_step_returns_its_first_result_and_has_one_effect(data: Path) -> None:
    first = inventory.reserve(step("reserve"), sku="gadget", quantity=2)
    again = inventory.reserve(step("reserve", attempt=2), sku="gadget", quantity=2)

    assert again == first
    assert stock_of(data, "gadget") == (5, 2)
    assert rows(data, "inventory", "SELECT idempotency_key, action FROM effects") == [("reserve", "inventory.reserve")]
    assert len(rows(data, "inventory", "SELECT * FROM calls")) == 2


def test_a_refused_call_is_counted_but_leaves_no_effect(data: Path) -> None:
    with pytest.raises(TerminalError):
        inventory.reserve(step("reserve"), sku="gadget", quantity=6)

    assert len(rows(data, "inventory", "SELECT * FROM calls")) == 1
    assert rows(data, "inventory", "SELECT * FROM effects") == []


def test_an_unexpected_failure_leaves_nothing_behind(data: Path) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        reviews.record(step("record"), order_id="A-1", stars=6, text="More than five stars.")

    reviews.record(step("record"), order_id="A-1", stars=5, text="Five stars.")
    assert len(rows(data, "reviews", "SELECT * FROM calls")) == 1
    assert rows(data, "reviews", "SELECT stars FROM reviews") == [(5,)]


def test_threads_cannot_reserve_more_than_there_is(data: Path) -> None:
    def one(n: int) -> str:
        try:
            inventory.reserve(step(f"reserve {n}"), sku="gadget", quantity=1)
        except TerminalError as error:
            return error.type
        return "reserved"

    with ThreadPoolExecutor(16) as pool:
        outcomes = Counter(pool.map(one, range(40)))

    assert outcomes == {"reserved": 5, "insufficient_stock": 35}
    assert stock_of(data, "gadget") == (5, 5)


IN_ANOTHER_PROCESS = """
import logging, sys
from importlib import import_module
from pathlib import Path
from runner import Context
from runner.registry import discover

discover(Path(sys.argv[1]))
inventory = import_module("flowrun_plugins.inventory")
for n in range(10):
    context = Context(run_id="run", step_id="step", attempt=1, idempotency_key=f"reserve {n}", deadline=None,
                      correlation_id="correlation", logger=logging.getLogger("test"))
    print(inventory.reserve(context, sku="widget", quantity=1).reservation_id)
"""


def test_processes_share_a_new_database_and_the_effects_in_it(data: Path) -> None:
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(PLUGINS.parent)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = {process.communicate()[0] for process in processes}

    assert len(outputs) == 1, "the same keys give the same reservations"
    assert sorted(map(int, outputs.pop().split())) == list(range(1, 11))
    assert stock_of(data, "widget") == (100_000, 10)
    assert len(rows(data, "inventory", "SELECT * FROM calls")) == 40


# --- orders ------------------------------------------------------------------------------------------------


def test_orders_are_numbered_in_turn() -> None:
    assert [place(f"A-{n}", f"create {n}").number for n in (1, 2, 3)] == [1, 2, 3]


def test_an_order_cannot_be_placed_twice() -> None:
    place(key="the first wish")
    with pytest.raises(TerminalError) as refused:
        place(key="the second wish")
    assert refused.value.type == "duplicate_order"


def test_a_rejected_order_may_be_asked_for_again_under_its_number() -> None:
    first = place(key="the first wish")
    orders.reject(step("reject"), order_id="A-1", reason="insufficient_stock")
    again = place(key="the second wish")
    assert (again.number, again.status) == (first.number, "placed")


def test_a_confirmed_order_is_confirmed_for_all_to_see() -> None:
    place()
    confirmed = orders.confirm(step("confirm"), order_id="A-1")
    assert confirmed.status == "confirmed"
    assert orders.status(step("status"), order_id="A-1") == confirmed


def test_a_rejected_order_cannot_be_confirmed() -> None:
    place()
    assert orders.reject(step("reject"), order_id="A-1", reason="cancelled").rejected
    with pytest.raises(TerminalError) as refused:
        orders.confirm(step("confirm"), order_id="A-1")
    assert (refused.value.type, refused.value.details) == ("order_not_placed", {"status": "rejected"})


def test_the_status_of_an_unknown_order_is_an_error() -> None:
    with pytest.raises(TerminalError) as refused:
        orders.status(step("status"), order_id="A-1")
    assert refused.value.type == "unknown_order"


# --- inventory ---------------------------------------------------------------------------------------------


def test_reserved_stock_leaves_the_store_when_it_is_deducted(data: Path) -> None:
    reserved = inventory.reserve(step("reserve"), sku="gadget", quantity=2)
    deducted = inventory.deduct(step("deduct"), reservation_id=reserved.reservation_id)
    assert deducted.state == "deducted"
    assert stock_of(data, "gadget") == (3, 0)


@pytest.mark.parametrize("deducted", [False, True])
def test_a_release_gives_stock_back_once(data: Path, deducted: bool) -> None:
    reservation_id = inventory.reserve(step("reserve"), sku="gadget", quantity=2).reservation_id
    if deducted:
        inventory.deduct(step("deduct"), reservation_id=reservation_id)

    assert inventory.release(step("release"), reservation_id=reservation_id).released
    assert not inventory.release(step("another release"), reservation_id=reservation_id).released
    assert stock_of(data, "gadget") == (5, 0)


def test_released_stock_cannot_be_deducted() -> None:
    reservation_id = inventory.reserve(step("reserve"), sku="gadget", quantity=2).reservation_id
    inventory.release(step("release"), reservation_id=reservation_id)
    with pytest.raises(TerminalError) as refused:
        inventory.deduct(step("deduct"), reservation_id=reservation_id)
    assert refused.value.type == "not_reserved"


@pytest.mark.parametrize(("sku", "type"), [("gadget", "insufficient_stock"), ("unicorn", "unknown_sku")])
def test_what_is_not_there_cannot_be_reserved(sku: str, type: str) -> None:
    with pytest.raises(TerminalError) as refused:
        inventory.reserve(step("reserve"), sku=sku, quantity=50)
    assert (refused.value.type, refused.value.details) == (type, {"sku": sku})


# --- payment -----------------------------------------------------------------------------------------------


def test_a_charge_takes_the_money_once_and_a_refund_gives_it_back_once(data: Path) -> None:
    payment_id = open_for("alice", 5997)

    for attempt in (1, 2):
        assert payment.charge(step("charge", attempt), payment_id=payment_id).state == "charged"
    assert balance_of(data, "alice") == 1_000_000_00 - 5997

    assert payment.refund(step("refund"), payment_id=payment_id).undone
    assert not payment.refund(step("another refund"), payment_id=payment_id).undone
    assert balance_of(data, "alice") == 1_000_000_00


def test_a_charge_above_the_balance_is_refused(data: Path) -> None:
    payment_id = open_for("bob", 501)
    with pytest.raises(TerminalError) as refused:
        payment.charge(step("charge"), payment_id=payment_id)
    assert refused.value.type == "insufficient_funds"
    assert balance_of(data, "bob") == 500


def test_a_flaky_bank_answers_at_the_third_try_of_each_payment(data: Path) -> None:
    for n in (1, 2):
        payment_id = payment.open_payment(step(f"open {n}"), order_id=f"A-{n}", customer="carol", amount=100).payment_id
        for attempt in (1, 2):
            with pytest.raises(RetryableError) as refused:
                payment.charge(step(f"charge {n}", attempt), payment_id=payment_id)
            assert refused.value.type == "bank_unavailable"
        assert payment.charge(step(f"charge {n}", 3), payment_id=payment_id).failed_tries == 2

    assert balance_of(data, "carol") == 1_000_000_00 - 200


def test_a_void_payment_cannot_be_charged() -> None:
    payment_id = open_for("alice", 100)
    assert payment.void(step("void"), payment_id=payment_id).undone
    with pytest.raises(TerminalError) as refused:
        payment.charge(step("charge"), payment_id=payment_id)
    assert refused.value.type == "payment_not_open"


def test_a_customer_without_an_account_cannot_pay() -> None:
    with pytest.raises(TerminalError) as refused:
        open_for("mallory", 100)
    assert refused.value.type == "unknown_account"


# --- undoing what is not there -----------------------------------------------------------------------------


def test_undoing_what_was_never_done_succeeds() -> None:
    assert not orders.reject(step("1"), order_id="A-1", reason="cancelled").rejected
    assert not inventory.release(step("2"), reservation_id=1).released
    assert not payment.void(step("3"), payment_id=1).undone
    assert not payment.refund(step("4"), payment_id=1).undone
    assert not reviews.withdraw(step("5"), review_id=1).withdrawn


# --- reviews and mail --------------------------------------------------------------------------------------


def test_a_review_is_recorded_answered_and_withdrawn(data: Path) -> None:
    review_id = reviews.record(step("record"), order_id="A-1", stars=2, text="It squeaks.").review_id

    assert reviews.answer(step("answer"), review_id=review_id, answer="Oil it.").answer == "Oil it."
    reviews.escalate(step("escalate"), review_id=review_id)
    assert rows(data, "reviews", "SELECT answer, escalated FROM reviews") == [("Oil it.", 1)]

    assert reviews.withdraw(step("withdraw"), review_id=review_id).withdrawn
    with pytest.raises(TerminalError) as refused:
        reviews.answer(step("answer again"), review_id=review_id, answer="Oil it twice.")
    assert refused.value.type == "unknown_review"


def test_a_letter_goes_out_once(data: Path) -> None:
    for attempt in (1, 2):
        mail.notify_customer(step("tell", attempt), email="bob@example.com", subject="Your order", text="No.")
    mail.notify_merchant(step("tell the merchant"), subject="A review", text="It squeaks.")

    assert rows(data, "mail", "SELECT recipient, subject FROM mails") == [
        ("bob@example.com", "Your order"),
        ("merchant@shop.example", "A review"),
    ]
