"""LANGUAGE §6: schedules: one event a slot, by the wall clock of a time zone, whatever was down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.engine.scheduler import MOST_AT_ONCE, Scheduler, due, latest_slot, slots
from runner.lang.compile import compile_project
from runner.lang.load import Sources
from runner.message import decode_json
from runner.plan import Schedule
from runner.records import OutboxRow
from runner.sqlite_file import SqliteFile
from runner.stores.sqlite import SqliteStore
from runner.testing import FakeClock

FLOW = """
flow: f
events:
  report.due: {schema: {type: object, required: [day], properties: {day: {type: string, pattern: "^2"}}}}
schedules:
  nightly: {cron: "0 2 * * *", timezone: Europe/Berlin, emit: report.due, with: {day: "{{ slot | date }}"}}
handlers: {}
"""
CatchUp = Literal["last", "all", "none"]


def schedule(cron: str, timezone: str = "Europe/Berlin", catch_up: CatchUp = "last") -> Schedule:
    return Schedule(
        name="f.s", flow="f", cron=cron, timezone=timezone, event="e", data=lambda scope: {}, catch_up=catch_up
    )


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def times(found: list[datetime]) -> list[str]:
    return [slot.strftime("%d %H:%M") for slot in found]


# --- slots


def test_slots_are_by_the_wall_clock_of_the_time_zone() -> None:
    found = islice(slots(schedule("30 9 * * MON-FRI"), utc("2026-07-03T00:00")), 2)
    assert times(list(found)) == ["03 07:30", "06 07:30"]


def test_a_time_that_the_change_of_clocks_leaves_out_comes_right_after_it() -> None:
    # Berlin, 29 March 2026: 02:00 is 03:00, which is 01:00 UTC.
    found = islice(slots(schedule("30 2 * * *"), utc("2026-03-28T02:00")), 2)
    assert times(list(found)) == ["29 01:00", "30 00:30"]


def test_a_time_that_comes_twice_comes_once() -> None:
    # Berlin, 25 October 2026: 03:00 is 02:00 again, which is 01:00 UTC.
    found = islice(slots(schedule("30 2 * * *"), utc("2026-10-24T12:00")), 2)
    assert times(list(found)) == ["25 00:30", "26 01:30"]


@given(
    st.sampled_from(["30 2 * * *", "*/7 * * * *", "0 */5 * * *", "15 3 1 * *", "0 12 * * SUN"]),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)),
)
def test_what_is_found_backwards_is_what_came_last(cron: str, zone: str, moment: datetime) -> None:
    now = moment.replace(tzinfo=UTC)
    each = schedule(cron, zone)
    latest = latest_slot(each, now)
    assert latest is not None
    assert latest <= now
    assert next(slots(each, latest)) > now


# --- what is due


@pytest.mark.parametrize(
    ("catch_up", "found"),
    [("last", ["05 01:00"]), ("all", ["03 01:00", "04 01:00", "05 01:00"]), ("none", [])],
)
def test_what_was_missed_while_nothing_ran_is_caught_up_with_as_it_says(catch_up: CatchUp, found: list[str]) -> None:
    now = utc("2026-12-05T12:00")
    assert times(due(schedule("0 2 * * *", catch_up=catch_up), utc("2026-12-02T01:00"), now)) == found


@pytest.mark.parametrize("catch_up", ["last", "all", "none"])
def test_a_slot_that_has_just_come_is_due_and_none_before_its_time(catch_up: CatchUp) -> None:
    each, last = schedule("0 2 * * *", catch_up=catch_up), utc("2026-12-04T01:00")
    assert due(each, last, utc("2026-12-05T00:59:59")) == []
    assert times(due(each, last, utc("2026-12-05T01:00:00"))) == ["05 01:00"]
    assert due(each, utc("2026-12-05T01:00"), utc("2026-12-05T01:00:05")) == []


def test_a_long_time_is_caught_up_with_by_and_by() -> None:
    now = utc("2026-12-05T12:00")
    found = due(schedule("* * * * *", catch_up="all"), now - timedelta(days=3), now)
    assert len(found) == MOST_AT_ONCE
    assert all(later - earlier == timedelta(minutes=1) for earlier, later in pairwise(found))


# --- publishing


class Desk:
    """A store, a clock, and as many schedulers as one likes."""

    def __init__(self, text: str, now: str) -> None:
        compilation = compile_project(Sources(None, {"flows/f.yaml": text}), project="p", signatures={})
        assert compilation.plan is not None, compilation.diagnostics
        self.plan = compilation.plan
        self.clock = FakeClock(utc(now))
        self.store = SqliteStore(SqliteFile(":memory:"))
        self.poked = 0

    def poke(self) -> None:
        self.poked += 1

    def scheduler(self) -> Scheduler:
        return Scheduler(plan=self.plan, store=self.store, clock=self.clock, env=lambda _: {}, poke=self.poke)

    async def at(self, moment: str) -> None:
        await self.clock.sleep_until(utc(moment))

    async def outbox(self) -> list[OutboxRow]:
        return list(await self.store.outbox(100))

    async def payloads(self) -> list[Any]:
        return [decode_json(row.outgoing.body) for row in await self.outbox()]


@asynccontextmanager
async def desk(text: str = FLOW, now: str = "2026-12-04T12:00") -> AsyncIterator[Desk]:
    made = Desk(text, now)
    async with made.store:
        yield made


async def test_a_new_schedule_begins_with_its_next_slot() -> None:
    async with desk() as d:
        scheduler = d.scheduler()
        await scheduler.tick()
        assert await d.payloads() == []
        assert scheduler.next_look() == d.clock.now() + timedelta(seconds=30)
        await d.at("2026-12-05T00:59:45")
        assert scheduler.next_look() == utc("2026-12-05T01:00")
        await d.at("2026-12-05T01:00")
        await scheduler.tick()
        assert await d.payloads() == [{"day": "2026-12-05"}]
        assert d.poked == 1
        [row] = await d.outbox()
        assert row.outgoing.properties.headers["ce-source"] == "/flowrun/p/f"


async def test_of_many_processes_one_publishes_for_a_slot() -> None:
    async with desk() as d:
        many = [d.scheduler() for _ in range(5)]
        await many[0].tick()
        await d.at("2026-12-05T01:00")
        await asyncio.gather(*(scheduler.tick() for scheduler in many))
        await asyncio.gather(*(scheduler.tick() for scheduler in many))
        assert len(await d.outbox()) == 1


async def test_a_slot_whose_payload_does_not_fit_is_said_and_passed(caplog: pytest.LogCaptureFixture) -> None:
    async with desk(FLOW.replace("slot | date", "'x' ~ slot")) as d:
        scheduler = d.scheduler()
        await scheduler.tick()
        await d.at("2026-12-05T01:00")
        await scheduler.tick()
        await scheduler.tick()
        assert await d.outbox() == []
    assert caplog.text.count("f.nightly published nothing for 2026-12-05T01:00:00.000Z") == 1
