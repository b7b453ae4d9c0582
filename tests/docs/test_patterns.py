"""Every flow of docs/patterns.md does what its text says, in virtual time."""

from __future__ import annotations

import hmac
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from patterns import FLOWS
from served import served

from runner.errors import RetryableError
from runner.handler import Context, handler
from runner.message import decode_json
from runner.records import Error, RunState
from runner.testing import FlowKit, KitRun


class World:
    """The plugins that the flows call; `down` names those that do not answer."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.down: set[str] = set()
        self.request: Callable[..., Awaitable[Any]] = self._nothing

    def handlers(self) -> Iterable[Callable[..., Awaitable[Any]]]:
        shop = ("shelf.pick", "shelf.put_back", "parcels.hand_over", "bank.charge", "prices.ask")
        tours = ("tours.hold", "tours.confirm", "tours.release")
        return [*(self._handler(name) for name in (*shop, *tours)), self._http()]

    async def _nothing(self, ctx: Context, **fields: Any) -> Any:
        raise AssertionError("no pattern asks this")

    def _http(self) -> Callable[..., Awaitable[Any]]:
        @handler("http.request")
        async def request(ctx: Context, **fields: Any) -> Any:
            return await self.request(ctx, **fields)

        return request

    def _handler(self, name: str) -> Callable[..., Awaitable[Any]]:
        @handler(name)
        async def act(ctx: Context, **fields: Any) -> Any:
            if name in self.down:
                raise RetryableError("away")
            self.done.append(name)
            return name

        return act


class Payments(World):
    """The payments of `vouchers`: their states, and the vouchers that paid."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[str, str] = {}
        self.vouchers: dict[str, str] = {}

    def handlers(self) -> Iterable[Callable[..., Awaitable[Any]]]:
        @handler("payments.open")
        async def open_payment(ctx: Context, *, payment_id: str) -> None:
            self.states[payment_id] = "open"

        @handler("payments.close")
        async def close(ctx: Context, *, payment_id: str) -> None:
            self.states[payment_id] = "void"

        @handler("payments.settle")
        async def settle(ctx: Context, *, payment_id: str, voucher_id: str) -> None:
            self.states[payment_id] = "charged"
            self.vouchers[payment_id] = voucher_id

        @handler("payments.look", effect=False)
        async def look(ctx: Context, *, payment_id: str) -> dict[str, str | None]:
            return {"state": self.states.get(payment_id, "unknown"), "voucher_id": self.vouchers.get(payment_id)}

        return [open_payment, close, settle, look]


@asynccontextmanager
async def pattern(flow: str, world: World | None = None) -> AsyncIterator[FlowKit]:
    async with FlowKit(FLOWS[flow], (world or World()).handlers(), env={"PARTNER": "https://partner.example"}) as kit:
        yield kit


async def begun(kit: FlowKit, event: str, payload: Any, ident: str = "m-1") -> str:
    run = await kit.send(event, payload, ident=ident)
    assert run is not None
    return run.stored.started.run_id


def told(run: KitRun) -> list[str]:
    return [name for name, _ in run.emitted]


async def test_a_charge_that_is_answered_is_paid() -> None:
    async with pattern("checkout") as kit:
        run = await begun(kit, "order.placed", {"order_id": "A", "total": 7})
        await kit.answer(kit.sent[0].id, {"charge_id": "c-1"})
        assert (await kit.finish(run)).emitted == (("order.paid", {"order_id": "A", "charge": "c-1"}),)


async def test_a_charge_that_nobody_answers_is_asked_twice_under_one_id_and_refunded() -> None:
    async with pattern("checkout") as kit:
        run = await begun(kit, "order.placed", {"order_id": "A", "total": 7})
        while kit.sent[-1].command != "payment.refund":
            at = (await kit.look(run)).stored.due_at
            assert at is not None
            await kit.clock.sleep_until(kit.clock.now().fromisoformat(at))
            await kit.resume(run)
        first, second, refund = kit.sent
        assert first.id == second.id
        assert refund.payload == {"order_id": "A"}
        await kit.answer(refund.id, {"refunded": False})
        done = await kit.finish(run)
        await kit.answer(first.id, {"charge_id": "late"})
        assert done.state is (await kit.look(run)).state is RunState.COMPENSATED
        assert done.emitted == (("order.rejected", {"order_id": "A", "reason": "timeout"}),)


CHARGE = {"payment_id": "p-1", "amount": 7}


async def vouch(kit: FlowKit, voucher_id: str) -> str:
    """Let a voucher for CHARGE come, to the run that may wait for it and to `return_late_voucher`; the latter's run."""
    voucher = {"payment_id": "p-1", "voucher_id": voucher_id}
    await kit.arrive("voucher.issued", voucher, ident=voucher_id)
    run = await kit.send("voucher.issued", voucher, handler="vouchers.return_late_voucher", ident=voucher_id)
    assert run is not None
    return run.stored.started.run_id


async def test_of_two_vouchers_the_first_pays_and_the_second_is_returned() -> None:
    payments = Payments()
    async with pattern("vouchers", payments) as kit:
        charge = await kit.call("payment.charge", CHARGE)
        assert charge is not None
        assert told(charge) == ["voucher.requested"]
        first, second = await vouch(kit, "v-1"), await vouch(kit, "v-2")
        assert told(await kit.finish(charge.stored.started.run_id)) == ["voucher.requested", "payment.completed"]
        await kit.arrive("payment.completed", {"payment_id": "p-1"})
        assert told(await kit.finish(first)) == []
        assert (await kit.finish(second)).emitted == (("voucher.returned", {"payment_id": "p-1", "voucher_id": "v-2"}),)
    assert payments.vouchers == {"p-1": "v-1"}


async def test_without_a_voucher_in_time_the_payment_is_closed_and_a_late_one_returned() -> None:
    payments = Payments()
    async with pattern("vouchers", payments) as kit:
        charge = await kit.call("payment.charge", CHARGE)
        assert charge is not None
        done = await kit.finish(charge.stored.started.run_id)
        assert done.emitted[-1] == ("payment.failed", {"payment_id": "p-1", "reason": "timeout"})
        assert payments.states == {"p-1": "void"}
        assert told(await kit.finish(await vouch(kit, "v-1"))) == ["voucher.returned"]


async def test_the_manager_decides_in_time() -> None:
    async with pattern("expenses") as kit:
        run = await begun(kit, "expense.claimed", {"id": 1, "manager": "ada"})
        await kit.arrive("expense.decided", {"id": 1, "approved": True})
        done = await kit.finish(run)
    assert done.emitted[-1] == ("expense.closed", {"id": 1, "approved": True})


async def test_the_boss_is_asked_and_decides() -> None:
    async with pattern("expenses") as kit:
        run = await begun(kit, "expense.claimed", {"id": 1, "manager": "ada"})
        await kit.resume(run)
        await kit.clock.sleep_until(kit.clock.now() + timedelta(days=1))
        await kit.resume(run)
        await kit.arrive("expense.decided", {"id": 1, "approved": False})
        done = await kit.finish(run)
    assert [payload.get("of") for _, payload in done.emitted] == ["ada", "boss", None]
    assert done.emitted[-1] == ("expense.closed", {"id": 1, "approved": False})


async def test_nobody_decides() -> None:
    async with pattern("expenses") as kit:
        done = await kit.finish(await begun(kit, "expense.claimed", {"id": 1, "manager": "ada"}))
    assert done.state is RunState.COMPLETED
    assert told(done) == ["approval.wanted", "approval.wanted", "expense.closed"]


async def test_what_suppliers_answer_is_collected_and_who_is_silent_costs_nobody_anything() -> None:
    async with pattern("tender") as kit:
        run = await begun(kit, "tender.opened", {"sku": "x", "suppliers": ["a", "b", "c", "d"]})
        assert [sent.payload["supplier"] for sent in kit.sent] == ["a", "b", "c", "d"]
        a, b, c, _ = kit.sent
        await kit.answer(a.id, {"price": 9})
        await kit.answer(b.id, error=Error(type="sold_out", message="none left", retryable=False))
        await kit.answer(c.id, {"price": 7})
        done = await kit.finish(run)
    assert done.emitted == (("tender.closed", {"sku": "x", "offers": [{"price": 7}, {"price": 9}], "asked": 4}),)


async def test_couriers_are_asked_until_one_accepts() -> None:
    async with pattern("couriers") as kit:
        run = await begun(kit, "parcel.ready", {"parcel": "p", "couriers": ["a", "b", "c", "d"]})
        await kit.answer(kit.sent[-1].id, {"accepted": False})
        await kit.resume(run)
        assert kit.sent[-1].payload == {"courier": "b", "parcel": "p"}
        await kit.clock.sleep_until(kit.sent[-1].deadline)
        await kit.resume(run)
        assert kit.sent[-1].command == "courier.withdraw"
        await kit.answer(kit.sent[-1].id)
        await kit.resume(run)
        await kit.answer(kit.sent[-1].id, {"accepted": True})
        done = await kit.finish(run)
    assert done.emitted == (("parcel.assigned", {"parcel": "p", "courier": "c"}),)
    assert len(kit.sent) == 4, "d was not asked"


@pytest.mark.parametrize("couriers", [[], ["a"]])
async def test_a_parcel_that_nobody_takes_is_told_of(couriers: list[str]) -> None:
    async with pattern("couriers") as kit:
        run = await begun(kit, "parcel.ready", {"parcel": "p", "couriers": couriers})
        if couriers:
            await kit.answer(kit.sent[-1].id, {"accepted": False})
        done = await kit.finish(run)
    assert done.emitted == (("parcel.unassigned", {"parcel": "p", "because": "nobody_free"}),)


async def test_a_slow_partner_gets_three_requests_a_second() -> None:
    world = World()
    asked: list[float] = []
    async with pattern("partner", world) as kit:

        async def request(ctx: Context, **fields: Any) -> Any:
            asked.append((kit.clock.now() - start).total_seconds())
            if len(asked) == 2:
                raise RetryableError("http.429", retry_after_s=5)
            return {"status": 200, "body": {"valid": fields["query"]["address"] != "nowhere"}}

        world.request, start = request, kit.clock.now()
        done = await kit.finish(await begun(kit, "addresses.imported", {"addresses": ["a", "nowhere", "c", "d", "e"]}))
    assert done.emitted == (("addresses.checked", {"valid": [True, False, True, True, True]}),)
    assert asked[:3] == [0, 0, 0]
    assert max(sum(at <= each < at + 1 for each in asked) for at in asked) == 3


async def test_an_order_that_is_withdrawn_in_time_is_put_back() -> None:
    world = World()
    async with pattern("delivery", world) as kit:
        run = await begun(kit, "order.paid", {"order_id": "A", "sku": "x"})
        await kit.arrive("order.withdrawn", {"order_id": "A"})
        done = await kit.finish(run)
    assert done.state is RunState.CANCELLED
    assert world.done == ["shelf.pick", "shelf.put_back"]
    assert done.emitted == (("order.cancelled", {"order_id": "A", "because": "cancelled"}),)


async def test_an_order_that_is_not_withdrawn_is_sent() -> None:
    world = World()
    async with pattern("delivery", world) as kit:
        done = await kit.finish(await begun(kit, "order.paid", {"order_id": "A", "sku": "x"}))
    assert told(done) == ["parcel.sent"]
    assert world.done == ["shelf.pick", "parcels.hand_over"]


async def test_a_double_click_charges_once() -> None:
    world = World()
    async with pattern("clicks", world) as kit:
        click = {"payment_id": "p-1", "account": "ada", "amount": 7}
        assert await kit.send("payment.asked", click, ident="one") is not None
        assert await kit.send("payment.asked", click, ident="two") is None
    assert world.done == ["bank.charge"]


async def test_a_producer_is_told_that_it_took_too_long() -> None:
    world = World()
    world.down = {"prices.ask"}
    async with pattern("quotes", world) as kit:
        done = await kit.finish(await begun(kit, "quote.asked", {"sku": "x"}))
    assert done.emitted == (("quote.expired", {"sku": "x", "because": "timeout"}),)


async def test_a_tour_that_is_booked_in_time_is_planned() -> None:
    world = World()
    async with pattern("tours", world) as kit:
        done = await kit.finish(await begun(kit, "parcel.packed", {"parcel": "p"}))
    assert done.emitted == (("parcel.planned", {"parcel": "p", "tour": "tours.confirm"}),)
    assert world.done == ["tours.hold", "tours.confirm"]


async def test_a_tour_that_takes_too_long_is_told_to_caller_and_producer_and_nothing_of_it_stands() -> None:
    world = World()
    world.down = {"tours.confirm"}
    async with pattern("tours", world) as kit:
        done = await kit.finish(await begun(kit, "parcel.packed", {"parcel": "p"}))
        (booking,) = [run for run in await kit.store.runs(limit=10) if run.handler == "tours.book"]
        assert (await kit.look(booking.id)).emitted == (("tour.missed", {"parcel": "p"}),)
        told_producer = await kit.send("tour.missed", {"parcel": "p"}, handler="tours.clear_shelf")
        assert told_producer is not None
        assert told(told_producer) == ["shelf.cleared"]
    assert done.state is RunState.COMPLETED
    assert done.emitted == (("parcel.posted", {"parcel": "p"}),)
    assert [sent.command for sent in kit.sent] == ["tour.book", "tour.release"]
    assert world.done[0] == "tours.hold"
    assert set(world.done[1:]) == {"tours.release"}


async def test_a_tour_of_which_nothing_is_heard_is_released_all_the_same() -> None:
    async with pattern("tours") as kit:
        run = await begun(kit, "parcel.packed", {"parcel": "p"})
        await kit.clock.sleep_until(kit.sent[-1].deadline)
        await kit.resume(run)
        assert kit.sent[-1].command == "tour.release"
        await kit.answer(kit.sent[-1].id)
        done = await kit.finish(run)
    assert done.emitted == (("parcel.posted", {"parcel": "p"}),)


async def test_an_invoice_that_is_not_paid_is_reminded_of() -> None:
    async with pattern("reminders") as kit:
        done = await kit.finish(await begun(kit, "invoice.sent", {"invoice": 1}))
        assert told(done) == ["reminder.due"]
        run = await begun(kit, "invoice.sent", {"invoice": 2}, "m-2")
        await kit.arrive("invoice.paid", {"invoice": 2})
        assert told(await kit.finish(run)) == []


async def test_a_webhook_that_is_signed_is_taken_once_and_another_is_refused() -> None:
    body = b'{"type": "settled", "data": {"id": "p-1", "amount": 7}}'
    secrets = {"BANK_HOOK": "whsec_bmV3", "OLD_BANK_HOOK": "whsec_b2xk"}
    async with pattern("settlements") as kit, served(FLOWS["settlements"], secrets=secrets) as web:
        await web.take("settlements.settle")
        time = str(int(web.clock.now().timestamp()))
        for key in (b"old", b"new"):
            signed = b64encode(hmac.digest(key, f"msg_1.{time}.".encode() + body, "sha256")).decode()
            headers = {"webhook-id": "msg_1", "webhook-timestamp": time, "webhook-signature": f"v1,{signed}"}
            response = await web.post("/hooks/bank", content=body, headers=headers)
            assert (response.status_code, response.json()) == (202, {"id": "msg_1"})
        assert (await web.post("/hooks/bank", content=body + b" ", headers=headers)).status_code == 401
        first, second = await web.messages(2)
        assert first.properties.message_id == second.properties.message_id
        done = await kit.finish(await begun(kit, "payment.settled", decode_json(first.body), "msg_1"))
    assert done.emitted == (("invoice.paid", {"payment": "p-1", "amount": 7}),)


def test_every_pattern_of_the_page_was_tried() -> None:
    pages = [file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("test_*patterns.py")]
    assert set(FLOWS) == set(re.findall(r'pattern\("(\w+)"', "".join(pages)))
