"""The handlers of the order and the payment system: each effect happens once, whatever calls it how often."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from runner import Context, RetryableError, TerminalError
from runner.registry import discover

PLUGINS = Path(__file__).parents[2] / "plugins"
SERVICES = ("orders", "inventory", "payment", "gateway", "reviews", "mail")


discover(PLUGINS.parent)
orders, inventory, payment, gateway, reviews, mail = (
    import_module(f"flowrun_plugins.{service}") for service in SERVICES
)


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
    return orders.create(step(key), order_id=order_id, customer="alice", email="alice@example.com", total=100)


def open_for(
    customer: str, amount: int, payment_id: str = "p-1", method: str = "account", order_id: str = "A-1"
) -> str:
    payment.open_payment(
        step(f"open {payment_id}"),
        payment_id=payment_id,
        order_id=order_id,
        customer=customer,
        amount=amount,
        method=method,
    )
    return payment_id


def refusal(call: Callable[[], Any]) -> str:
    """The type of the error that it ends in."""
    with pytest.raises(TerminalError) as refused:
        call()
    return str(refused.value.type)


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


def test_a_billed_order_is_confirmed_for_all_to_see() -> None:
    place()
    assert orders.bill(step("bill"), order_id="A-1").status == "billed"
    confirmed = orders.confirm(step("confirm"), order_id="A-1")
    assert confirmed.status == "confirmed"
    assert orders.status(step("status"), order_id="A-1") == confirmed


def test_a_rejected_order_can_be_neither_billed_nor_confirmed() -> None:
    place()
    assert orders.reject(step("reject"), order_id="A-1", reason="cancelled").rejected
    with pytest.raises(TerminalError) as refused:
        orders.confirm(step("confirm"), order_id="A-1")
    assert (refused.value.type, refused.value.details) == ("order_not_billed", {"status": "rejected"})
    assert refusal(lambda: orders.bill(step("bill"), order_id="A-1")) == "order_not_placed"


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
        assert payment.take(step("take", attempt), payment_id=payment_id).state == "charged"
    assert balance_of(data, "alice") == 1_000_000_00 - 5997

    assert payment.give_back(step("refund"), payment_id=payment_id).payment.state == "refunded"
    assert payment.give_back(step("another refund"), payment_id=payment_id).payment is None
    assert balance_of(data, "alice") == 1_000_000_00


def test_a_charge_above_the_balance_is_refused(data: Path) -> None:
    payment_id = open_for("bob", 501)
    assert refusal(lambda: payment.take(step("take"), payment_id=payment_id)) == "insufficient_funds"
    assert balance_of(data, "bob") == 500


def test_a_flaky_bank_answers_at_the_third_try_of_each_payment(data: Path) -> None:
    for n in (1, 2):
        payment_id = open_for("carol", 100, payment_id=f"p-{n}", order_id=f"A-{n}")
        for attempt in (1, 2):
            with pytest.raises(RetryableError) as refused:
                payment.take(step(f"take {n}", attempt), payment_id=payment_id)
            assert refused.value.type == "bank_unavailable"
        assert payment.take(step(f"take {n}", 3), payment_id=payment_id).failed_tries == 2

    assert balance_of(data, "carol") == 1_000_000_00 - 200


def test_a_void_payment_cannot_be_charged() -> None:
    payment_id = open_for("alice", 100)
    assert payment.void(step("void"), payment_id=payment_id).undone
    assert refusal(lambda: payment.take(step("take"), payment_id=payment_id)) == "payment_not_open"


def test_a_payment_that_is_refunded_before_it_is_charged_never_will_be(data: Path) -> None:
    payment_id = open_for("alice", 100)
    assert payment.give_back(step("refund"), payment_id=payment_id).payment is None
    assert refusal(lambda: payment.take(step("take"), payment_id=payment_id)) == "payment_not_open"
    assert balance_of(data, "alice") == 1_000_000_00


def test_a_customer_without_an_account_cannot_pay_from_it() -> None:
    assert refusal(lambda: open_for("mallory", 100)) == "unknown_account"
    assert open_for("mallory", 100, method="voucher") == "p-1"


def test_an_order_is_paid_once_and_a_payment_is_tried_once() -> None:
    open_for("alice", 100, payment_id="p-1")
    assert refusal(lambda: open_for("alice", 100, payment_id="p-2")) == "order_not_payable"
    payment.void(step("void"), payment_id="p-1")
    open_for("alice", 100, payment_id="p-3")
    again = {"payment_id": "p-1", "order_id": "A-9", "customer": "alice", "amount": 100, "method": "account"}
    assert refusal(lambda: payment.open_payment(step("again"), **again)) == "payment_not_open"


def test_a_voucher_pays_once_and_only_what_it_is_worth(data: Path) -> None:
    open_for("bob", 900, payment_id="p-1", method="voucher", order_id="A-1")
    open_for("bob", 900, payment_id="p-2", method="voucher", order_id="A-2")

    def settle(payment_id: str, amount: int = 900) -> Any:
        return payment.settle(step(f"settle {payment_id}"), payment_id=payment_id, voucher_id="v-1", amount=amount)

    assert refusal(lambda: settle("p-1", 899)) == "voucher_mismatch"
    assert (settle("p-1").state, settle("p-1").voucher_id) == ("charged", "v-1")
    assert refusal(lambda: settle("p-2")) == "voucher_used"
    assert balance_of(data, "bob") == 500, "no money of his"


@pytest.mark.parametrize("settled", [False, True])
def test_a_payment_whose_settling_is_undone_is_void_and_knows_its_voucher(settled: bool) -> None:
    open_for("bob", 900, method="voucher")
    if settled:
        payment.settle(step("settle"), payment_id="p-1", voucher_id="v-1", amount=900)
    assert payment.unsettle(step("unsettle"), payment_id="p-1", voucher_id="v-1").undone
    standing = payment.status(step("status"), payment_id="p-1")
    assert (standing.state, standing.voucher_id) == ("void", "v-1")


# --- gateway -----------------------------------------------------------------------------------------------


def order_payment(key: str) -> Any:
    return gateway.accept(step(key), payment_id="p-1", order_id="A-1", customer="alice", amount=100, method="account")


def test_a_payment_is_ordered_once() -> None:
    assert order_payment("accept").state == "ordered"
    assert refusal(lambda: order_payment("a double click")) == "duplicate_payment"


@pytest.mark.parametrize(
    ("news", "end"),
    [
        (["paid", "failed"], "paid"),
        (["failed", "paid"], "failed"),
        (["paid", "refunded", "failed"], "refunded"),
        (["failed", "refunded", "paid"], "refunded"),
        (["refunded", "paid", "failed"], "refunded"),
    ],
)
def test_the_news_of_a_payment_may_come_in_any_order(data: Path, news: list[str], end: str) -> None:
    order_payment("accept")
    for state in news:
        gateway.update(step(state), payment_id="p-1", state=state)
    assert rows(data, "gateway", "SELECT state FROM payment_orders") == [(end,)]


# --- undoing what is not there -----------------------------------------------------------------------------


def test_undoing_what_was_never_done_succeeds() -> None:
    assert not orders.reject(step("1"), order_id="A-1", reason="cancelled").rejected
    assert not inventory.release(step("2"), reservation_id=1).released
    assert not payment.void(step("3"), payment_id="p-1").undone
    assert not payment.unsettle(step("4"), payment_id="p-1", voucher_id="v-1").undone
    assert payment.give_back(step("5"), payment_id="p-1").payment is None
    assert payment.status(step("6"), payment_id="p-1").state == "unknown"
    assert not gateway.update(step("7"), payment_id="p-1", state="failed").updated
    assert not reviews.withdraw(step("8"), review_id=1).withdrawn


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
