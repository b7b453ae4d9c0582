# ruff: noqa: D102  a test's name says what holds
"""What a store must do for circuit breakers and feedback: inherit `TrafficContract` beside `StoreContract`."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

from runner.message import Meta, Outgoing, Properties
from runner.plan import Breaker
from runner.ports import AnyStore
from runner.records import EventFilter, EventRecord
from runner.testing.store_contract import START, at

NAME = "handler orders.place"
THREE = Breaker(failures=3, period_s=10.0, pause_s=5.0)


def event(name: str) -> EventRecord:
    """An event that tells of it."""
    meta = Meta(id=name, type="told", source="/t", subject=None, time=at(), correlation_id=name, causation_id=None)
    return EventRecord(meta=meta, data=b"{}")


def message(name: str) -> Outgoing:
    """The message of that event."""
    return Outgoing(exchange="x", routing_key="told", body=b"{}", properties=Properties(message_id=name))


class TrafficContract:
    """Inherit it, and say how to open a store: twice opened, it stands for two processes."""

    def store(self) -> AbstractAsyncContextManager[AnyStore]:
        """A store on this test's own data."""
        raise NotImplementedError

    async def test_so_many_failures_open_a_circuit_and_it_is_told_once(self) -> None:
        async with self.store() as store, self.store() as other:
            for number, each in enumerate([store, other, store, other]):
                is_open = await each.traffic.failed(NAME, THREE, START + timedelta(seconds=number), event(f"o{number}"))
                assert is_open is (number >= 2)
            circuit = (await other.traffic.circuits())[NAME]
            assert circuit.open_until == at(7)
            assert circuit.state(at(6)) == "open"
            assert circuit.state(at(7)) == "half_open"
            assert await _told(store) == ["o2"]

    async def test_failures_that_are_long_ago_do_not_count(self) -> None:
        async with self.store() as store:
            for seconds in (0, 1, 11.5, 12):
                now = START + timedelta(seconds=seconds)
                assert not await store.traffic.failed(NAME, THREE, now, event("o"))
            assert not await store.traffic.circuits()

    async def test_four_that_fail_at_once_see_each_others_failures(self) -> None:
        async with self.store() as store, self.store() as other:
            each = (store, other, store, other)
            told = [s.traffic.failed(NAME, THREE, START, event(f"o{n}")) for n, s in enumerate(each)]
            assert sorted(await asyncio.gather(*told)) == [False, False, True, True]

    async def test_one_probe_is_let_through_once_the_pause_is_over(self) -> None:
        async with self.store() as store, self.store() as other:
            await _open(store)
            until = START + timedelta(seconds=20)
            assert not await store.traffic.probe(NAME, START + timedelta(seconds=4), until)
            now = START + timedelta(seconds=5)
            probes = [each.traffic.probe(NAME, now, until) for each in (store, other, store)]
            assert sorted(await asyncio.gather(*probes)) == [False, False, True]
            assert (await store.traffic.circuits())[NAME].lets_in_at(at(5)) == at(20)
            assert await other.traffic.probe(NAME, until, until + timedelta(seconds=9))  # the other one never came back

    async def test_a_probe_that_succeeds_closes_it_and_what_failed_before_is_forgotten(self) -> None:
        async with self.store() as store:
            await _open(store)
            assert not await store.traffic.succeeded(NAME, event("c"))  # it was begun before the circuit opened
            assert await store.traffic.probe(NAME, START + timedelta(seconds=5), START + timedelta(seconds=20))
            assert await store.traffic.succeeded(NAME, event("c"))
            assert not await store.traffic.succeeded(NAME, event("d"))
            assert not await store.traffic.circuits()
            assert not await store.traffic.failed(NAME, THREE, START + timedelta(seconds=6), event("e"))
            assert await _told(store) == ["o", "c"]

    async def test_a_probe_that_fails_opens_it_for_another_pause_and_tells_nothing(self) -> None:
        async with self.store() as store:
            await _open(store)
            assert await store.traffic.probe(NAME, START + timedelta(seconds=5), START + timedelta(seconds=20))
            assert await store.traffic.failed(NAME, THREE, START + timedelta(seconds=6), event("again"))
            assert (await store.traffic.circuits())[NAME].lets_in_at(at(6)) == at(11)
            assert await _told(store) == ["o"]

    async def test_that_a_handler_is_behind_is_told_once_and_so_is_that_it_is_no_more(self) -> None:
        async with self.store() as store, self.store() as other:
            told: list[bool] = []
            for each, is_high in ((store, False), (store, True), (other, True), (other, False), (store, False)):
                name = f"{len(told)}"
                told.append(await each.traffic.tell("f.h", is_high, event(name), message(name)))
            assert told == [False, True, False, True, False]
            assert await _told(store) == ["1", "3"]
            assert [row.outgoing.properties.message_id for row in await store.outbox(10)] == ["1", "3"]
            assert not await store.traffic.pressures()


async def _open(store: AnyStore) -> None:
    for _ in range(3):
        await store.traffic.failed(NAME, THREE, START, event("o"))
    assert (await store.traffic.circuits())[NAME].open_until == at(5)


async def _told(store: AnyStore) -> list[str]:
    return [each.meta.id for each in await store.events(EventFilter(), limit=10)]
