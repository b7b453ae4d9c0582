"""The payment service's flow with its real plugins, in virtual time: what no run of the whole shop can time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from runner import Context, handler
from runner.records import RunState
from runner.registry import discover
from runner.testing import FlowKit, KitRun

ROOT = Path(__file__).parents[2]
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "flows/payments.yaml", *(ROOT / "schemas").glob("*-*.schema.json")]
}
CHARGE = {"payment_id": "p-1", "order_id": "A-1", "customer": "bob", "amount": 900, "method": "voucher"}

discover(ROOT)
orders, payment = (import_module(f"flowrun_plugins.{service}") for service in ("orders", "payment"))


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_DATA", str(tmp_path))


@handler("order.status", effect=False)
def billed(ctx: Context, *, order_id: str) -> orders.Order:  # type: ignore[name-defined]
    return orders.Order(order_id, 1, "bob", "bob@example.com", 900, "billed")


@asynccontextmanager
async def service(*others: Callable[..., Any]) -> AsyncIterator[FlowKit]:
    """The flow; `others` stand for plugins of their names."""
    names = ("open_payment", "take", "settle", "unsettle", "give_back", "void", "status")
    ours = {plugin.__name__: plugin for plugin in (*(getattr(payment, name) for name in names), *others)}
    async with FlowKit(TEXTS, [*ours.values(), billed]) as kit:
        yield kit


async def charge(kit: FlowKit, **more: Any) -> str:
    run = await kit.call("payment.charge", CHARGE, **more)
    assert run is not None
    return run.stored.started.run_id


async def vouch(kit: FlowKit) -> str:
    """Let a voucher come, to `charge` and to `return_late_voucher`; the latter's run."""
    voucher = {"payment_id": "p-1", "voucher_id": "v-1", "amount": 900}
    await kit.arrive("voucher.issued", voucher, ident="v-1")
    run = await kit.send("voucher.issued", voucher, handler="payments.return_late_voucher", ident="v-1")
    assert run is not None
    return run.stored.started.run_id


def told(run: KitRun) -> list[tuple[str, str | None]]:
    """The events, with their reasons."""
    return [(name, payload.get("reason")) for name, payload in run.emitted]


async def test_a_voucher_that_may_have_been_taken_is_returned_once() -> None:
    @handler("payment.settle")
    def settle(ctx: Context, *, payment_id: str, voucher_id: str, amount: int) -> payment.Payment:  # type: ignore[name-defined]
        payment.settle(ctx, payment_id=payment_id, voucher_id=voucher_id, amount=amount)
        raise OSError("the answer was lost")

    async with service(settle) as kit:
        run = await charge(kit)
        late = await vouch(kit)
        done = await kit.finish(run)
        assert done.state is RunState.COMPENSATED
        assert told(done)[1:] == [("voucher.returned", "internal"), ("payment.failed", "internal")]
        await kit.arrive(*done.emitted[-1])
        assert told(await kit.finish(late)) == []


async def test_a_command_whose_time_is_up_leaves_no_payment_and_its_voucher_is_returned() -> None:
    async with service() as kit:
        run = await charge(kit, expires_at=kit.clock.now() + timedelta(minutes=1))
        done = await kit.finish(run)
        assert told(done)[1:] == [("payment.failed", "timeout")]
        assert told(await kit.finish(await vouch(kit))) == [("voucher.returned", "void")]


async def test_a_payment_that_is_cancelled_while_its_voucher_is_awaited_returns_it() -> None:
    async with service() as kit:
        run = await charge(kit)
        done = await kit.cancel(run)
        assert (done.state, told(done)[1:]) == (RunState.CANCELLED, [("payment.failed", "cancelled")])
        assert told(await kit.finish(await vouch(kit))) == [("voucher.returned", "void")]


async def test_an_open_payment_that_is_refunded_takes_no_voucher_any_more() -> None:
    async with service() as kit:
        run = await charge(kit)
        refund = await kit.call("payment.refund", {"payment_id": "p-1"})
        assert refund is not None
        assert refund.reply is not None
        assert (refund.reply.result, told(refund)) == ({"refunded": False}, [])
        late = await vouch(kit)
        assert told(await kit.finish(late)) == [("voucher.returned", "void")]
        assert told(await kit.finish(run))[1:] == [("payment.failed", "payment_not_open")]
