"""The journal fills the event log: every event, once, and none of them keeps another out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from bench import Bench, Failing

from runner.engine import intake
from runner.engine import journal as journal_module
from runner.engine import refusals as refusals_module
from runner.engine import worker as worker_module
from runner.engine.journal import Logged
from runner.errors import StoreError, TransportError
from runner.message import MAX_BODY_BYTES, Delivery, Outgoing, Properties
from runner.records import EventFilter, LoggedEvent
from runner.testing.store_contract import event

FLOW = """
flow: f
events:
  asked:
    external: true
    schema: {type: object, required: [n], properties: {n: {type: integer}}}
    subject: "q/{{ event.n }}"
  told: {schema: {type: object}, subject: "q/{{ event.n }}"}
  answered: {external: true, schema: {type: object, required: [n]}}
  idle: {external: true, schema: {type: object, required: [n]}}
routes: [{on: asked, to: tell, when: event.n >= 0}, {on: told, to: wait, when: "false"}]
handlers:
  tell:
    steps: [{emit: told, with: {n: "{{ event.n }}"}}]
  wait:
    steps: [{id: a, wait_for: {event: [answered, asked], match: {n: 1}, timeout: 1h}}]
"""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "PAUSE_S", 0)
    monkeypatch.setattr(refusals_module, "PAUSE_S", 0)


async def log(bench: Bench) -> list[LoggedEvent]:
    return list(await bench.store.events(EventFilter(), limit=10_000))


async def publish(bench: Bench, key: str, body: bytes, **properties: Any) -> None:
    message = Outgoing(exchange="p.events", routing_key=key, body=body, properties=Properties(**properties))
    assert await bench.transport.publish([message]) == [None]


async def test_what_comes_and_what_flows_emit_is_there_once_and_a_cause_stands_before_its_effects() -> None:
    bench = Bench(FLOW, [])
    async with bench.working() as worker:
        for number in range(50):
            for _ in range(2):
                await bench.send(f"m-{number}", event="asked", payload={"n": number})
        await bench.until_all_done(worker, 50)
        events = await log(bench)
        assert len(events) == 100
        for number in range(50):
            asked, told = (event for event in events if event.meta.subject == f"q/{number}")
            assert (asked.meta.type, asked.version, asked.handler) == ("asked", 1, None)
            assert (told.meta.type, told.version, told.handler) == ("told", 2, "f.tell")
            assert told.meta.causation_id == told.meta.correlation_id == asked.meta.id


async def test_what_a_run_has_logged_is_not_read_again_unless_somebody_may_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []

    def watched(events: Any, patterns: Any, delivery: Delivery, now: Any) -> Any:
        read.append(delivery.routing_key)
        return read_event(events, patterns, delivery, now)

    read_event = intake.read_event
    monkeypatch.setattr(intake, "read_event", watched)
    bench = Bench(FLOW, [])
    async with bench.working() as worker:
        await bench.send(*(f"m-{number}" for number in range(20)), event="asked", payload={"n": 1})
        await bench.until_all_done(worker, 20)
        await bench.until_idle(worker)
        assert Counter(event.meta.type for event in await log(bench)) == {"asked": 20, "told": 20}
    assert Counter(read) == {"asked": 20}, "for `asked` a run may wait"


def test_of_very_many_logged_events_the_first_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MOST_LOGGED", 3)
    logged = Logged()
    logged.add([event(number, None) for number in range(5)])

    def came(number: int) -> bool:
        meta = event(number, None).meta
        properties = Properties(headers={"ce-id": meta.id, "ce-source": meta.source})
        delivery = Delivery(
            queue="q", exchange="e", routing_key="k", body=b"", properties=properties, redelivered=False, receipt=0
        )
        return logged.takes(delivery)

    assert [came(number) for number in (0, 1, 2, 3, 4, 4)] == [False, False, True, True, True, False]


@pytest.mark.parametrize("after", [False, True], ids=["not committed", "committed, but the answer is lost"])
async def test_what_comes_again_because_the_store_was_away_is_there_once(after: bool) -> None:
    bench = Bench(FLOW, [])
    away = Failing(bench.store, "append", StoreError("away"), times=3, after=after)
    async with bench.working(store=lambda _: away) as worker:
        await bench.send(*(f"m-{number}" for number in range(20)), event="idle", payload={"n": 1})
        await bench.until_idle(worker)
        assert [event.meta.id for event in await log(bench)] == [f"m-{number}" for number in range(20)]
    assert away.left == 0


async def test_what_could_not_be_acknowledged_is_so_later() -> None:
    bench = Bench(FLOW, [])
    flaky = Failing(bench.transport, "settle", TransportError("locked"), times=3)
    async with bench.working(transport=lambda _: flaky) as worker:
        await bench.send("m-1", event="idle", payload={"n": 1})
        await bench.until_idle(worker)
        assert len(await log(bench)) == 1
    assert flaky.left == 0


async def test_what_is_passed_over_or_routed_nowhere_is_there_as_well() -> None:
    bench = Bench(FLOW, [])
    async with bench.working() as worker:
        await bench.send("m-1", event="asked", payload={"n": -1})
        await bench.send("m-2", event="idle", payload={"n": 1})
        await bench.until_idle(worker)
        found = {(event.meta.id, event.meta.type, event.meta.source) for event in await log(bench)}
    assert found == {("m-1", "asked", "/amqp"), ("m-2", "idle", "/amqp")}


@pytest.mark.parametrize(
    ("event", "letters"),
    [
        ("asked", ["f.tell"]),  # also awaited: its handler's queue buries it, once
        ("answered", ["journal"]),  # awaited, and in no other queue
        ("idle", []),
        ("nobody.knows", []),
    ],
)
@pytest.mark.parametrize("body", [b"{", b"\xff", b'"' + b"x" * MAX_BODY_BYTES + b'"'])
async def test_what_cannot_be_read_is_a_dead_letter_once_or_where_nobody_wants_it_not_at_all(
    event: str, letters: list[str], body: bytes
) -> None:
    bench = Bench(FLOW, [])
    async with bench.working() as worker:
        await publish(bench, event, body, message_id="m-1")
        await bench.send("m-2", event="idle", payload={"n": 1})
        await bench.until_idle(worker)
        assert [letter.handler for letter in await bench.store.dead_letters(limit=9)] == letters
        assert [entry.meta.id for entry in await log(bench)] == ["m-2"]


async def test_a_message_without_an_id_is_logged_under_the_id_of_the_run_that_it_begins() -> None:
    bench = Bench(FLOW, [])
    async with bench.working() as worker:
        await publish(bench, "asked", b'{"n": 1}')
        await bench.until_all_done(worker, 1)
        asked, told = await log(bench)
        [run] = await bench.store.runs(limit=9)
        assert asked.meta.id == run.trigger["id"] == told.meta.causation_id


async def test_an_event_that_breaks_the_reading_of_it_keeps_no_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    read = intake.read_event

    def breaks(*args: Any) -> Any:
        if args[2].properties.message_id == "m-1":
            raise ZeroDivisionError
        return read(*args)

    monkeypatch.setattr(intake, "read_event", breaks)
    bench = Bench(FLOW, [])
    async with bench.working() as worker:
        await bench.send("m-1", "m-2", event="idle", payload={"n": 1})
        await bench.until_idle(worker)
        assert [event.meta.id for event in await log(bench)] == ["m-2"]
