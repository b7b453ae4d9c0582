"""Read models agree, however they come to be: folded as events come, anew, on reading, or up to any moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.engine import folding, projector, read_models
from runner.engine.projector import Projector
from runner.engine.read_models import ReadModels
from runner.errors import NotFoundError, NotReadyError
from runner.lang.compile import compile_project
from runner.lang.load import Sources
from runner.lang.projections import compile_projection
from runner.message import Meta, encode_json
from runner.plan import Projection
from runner.ports import AnyStore, ProjectionStore
from runner.records import AsOf, EventRecord
from runner.sqlite_file import SqliteFile
from runner.stores.postgres import PostgresStore
from runner.stores.sqlite import SqliteStore
from runner.testing import FakeClock

FLOW = """
flow: shop
events:
  {placed: {external: true}, paid: {external: true}, noted: {external: true}, gone: {external: true}, other: {}}
projections:
  orders:
    key: "{{ event.id }}"
    on:
      placed:
        set: {status: placed, was: "{{ state.status | default('new') }}", sum: "{{ event.n }}"}
        increment: {times: 1}
      paid: {set: {status: paid}, increment: {sum: "{{ event.n }}", times: 1}}
      noted: {append: {notes: "{{ event.n }}"}, remove: [was]}
      gone: {delete: true}
"""
OTHER = FLOW.replace("status: paid", "status: settled")
Open = Callable[[], AbstractAsyncContextManager[AnyStore]]
TYPES = ("placed", "paid", "noted", "gone", "other")


def projection_of(flow: str) -> Projection:
    compilation = compile_project(Sources(None, {"flows/shop.yaml": flow}), project="t", signatures={})
    assert compilation.plan is not None, compilation.diagnostics
    return compilation.plan.projections["orders"]


@dataclass
class Shop:
    """A store, the present definition, and as many processes that fold it as a test wants."""

    store: AnyStore
    projection: Projection
    clock: FakeClock = field(default_factory=FakeClock)

    def projector(
        self, owner: str | None = None, store: Any = None, declared: list[Projection] | None = None
    ) -> Projector:
        return Projector(
            projections=[self.projection] if declared is None else declared,
            log=self.store,
            store=store or self.store.projections,
            owner=owner or self.store.owner,
            clock=self.clock,
            load=compile_projection,
        )

    @property
    def reads(self) -> ReadModels:
        load = compile_projection
        return ReadModels({"orders": self.projection}, log=self.store, store=self.store.projections, load=load)

    async def log(self, *events: EventRecord) -> None:
        await self.store.append(events)

    async def all(self) -> dict[str, Any]:
        return {entry.key: entry.state async for entry in self.reads.all("orders")}

    async def all_as_of(self, as_of: AsOf) -> dict[str, Any]:
        return {entry.key: entry.state for entry in await self.reads.all_as_of("orders", as_of)}


def event(number: int, kind: str, key: Any, n: Any = 1, *, minute: int | None = None) -> EventRecord:
    hour, minute = divmod(number if minute is None else minute, 60)
    meta = Meta(
        id=f"e-{number}",
        type=kind,
        source="/t",
        subject=None,
        time=f"2026-11-23T{hour:02}:{minute:02}:00.000Z",
        correlation_id="c",
        causation_id=None,
    )
    return EventRecord(meta=meta, data=encode_json({"id": key, "n": n} if key is not None else {"n": n}))


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def open_store(request: pytest.FixtureRequest) -> Open:
    """An empty store at each call."""
    if request.param == "sqlite":
        return lambda: SqliteStore(SqliteFile(":memory:"))
    url, numbers = request.getfixturevalue("postgres_url"), count()
    return lambda: PostgresStore(url, f"shop_{next(numbers)}")


@asynccontextmanager
async def shop(open_store: Open) -> AsyncIterator[Shop]:
    async with open_store() as store:
        yield Shop(store, projection_of(FLOW))


async def fold_all(projector: Projector) -> None:
    while await projector.step():
        pass


# --- an independent reading of the definition ---------------------------------------------------------------


def expected(events: list[EventRecord], times_up_to: str | None = None) -> dict[str, Any]:
    entries: dict[str, dict[str, Any]] = {}
    for record in events:
        data, kind = json.loads(record.data), record.meta.type
        if kind == "other" or "id" not in data or (times_up_to is not None and record.meta.time > times_up_to):
            continue
        key = data["id"] if isinstance(data["id"], str) else json.dumps(data["id"])
        state = entries.get(key, {})
        match kind:
            case "placed":
                state = {
                    **state,
                    "was": state.get("status", "new"),
                    "status": "placed",
                    "sum": data["n"],
                    "times": state.get("times", 0) + 1,
                }
            case "paid" if isinstance(data["n"], int) and isinstance(state.get("sum", 0), int):
                times = state.get("times", 0) + 1
                state = {**state, "status": "paid", "sum": state.get("sum", 0) + data["n"], "times": times}
            case "paid":
                continue  # no number, or none to add it to: the whole event is left out
            case "noted":
                state = {k: v for k, v in state.items() if k != "was"}
                state = {**state, "notes": [*state.get("notes", []), data["n"]]}
            case "gone":
                entries.pop(key, None)
                continue
        entries[key] = state
    return entries


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(TYPES),
        st.sampled_from(["a", "b", 7, None]),
        st.one_of(st.integers(-3, 3), st.just("x")),
        st.integers(0, 30),  # the events' own times, in any order
        st.sampled_from(["", "", "fold", "rebuild", "other process"]),
    ),
    max_size=40,
)


@pytest.mark.parametrize("batch", [2, 500])
def test_folded_as_they_come_anew_on_reading_and_up_to_any_moment_events_give_the_same(
    open_store: Open, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(folding, "SNAPSHOT_EVERY", 3)
    monkeypatch.setattr(projector, "BATCH", batch)

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(EVENTS)
    def agree(story: list[tuple[str, Any, Any, int, str]]) -> None:
        asyncio.run(_agree(open_store, story))

    agree()


async def _agree(open_store: Open, story: list[tuple[str, Any, Any, int, str]]) -> None:
    events = [event(i, kind, key, n, minute=minute) for i, (kind, key, n, minute, _) in enumerate(story, 1)]
    async with shop(open_store) as here:
        one, two = here.projector(), here.projector("another process")
        await one.begin()
        for number, record in enumerate(events, 1):
            await here.log(record)
            match story[number - 1][4]:
                case "fold":
                    await one.step()
                case "other process":
                    await two.step()
                case "rebuild":
                    await here.store.projections.begin_build("orders", here.projection.definition, anew=True)
        as_of_each = [expected(events[:n]) for n in range(len(events) + 1)]
        assert await here.all() == as_of_each[-1]  # some of it folded, some on reading
        await fold_all(one)
        await fold_all(two)
        (build,) = await here.store.projections.builds()
        assert build.is_served
        assert {e.key: e.state for e in await here.store.projections.page(build, limit=99)} == as_of_each[-1]
        for position, entries in enumerate(as_of_each):
            assert await here.all_as_of(AsOf(position=position)) == entries
            for key in ("a", "b", 7):
                one_of_them = await here.reads.get_as_of("orders", key, AsOf(position=position))
                assert one_of_them == entries.get(str(key))
        for minute in {record.meta.time for record in events}:
            entries = expected(events, minute)
            assert await here.all_as_of(AsOf(time=minute)) == entries
            assert await here.reads.get_as_of("orders", "a", AsOf(time=minute)) == entries.get("a")


async def test_an_event_that_is_left_out_today_may_stand_in_the_past_where_what_forbade_it_had_not_happened(
    open_store: Open,
) -> None:
    events = [event(1, "placed", "a", "x", minute=9), event(2, "paid", "a", 3, minute=5)]
    async with shop(open_store) as here:
        await here.log(*events)
        one = here.projector()
        await one.begin()
        await fold_all(one)
        assert (await here.reads.get("orders", "a"))["status"] == "placed"
        then = AsOf(time=events[1].meta.time)
        assert await here.all_as_of(then) == {"a": {"status": "paid", "sum": 3, "times": 1}}
        assert await here.reads.get_as_of("orders", "a", then) == {"status": "paid", "sum": 3, "times": 1}


# --- single cases -------------------------------------------------------------------------------------------


async def test_a_changed_definition_is_built_beside_the_old_one_which_is_kept_up_and_served_until_then(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "BATCH", 2)
    async with shop(open_store) as here:
        await here.log(*(event(n, "paid", "a") for n in range(1, 6)))
        old = here.projector()
        await old.begin()
        await fold_all(old)
        here.projection = projection_of(OTHER)
        new = here.projector()
        await new.begin()
        await new.step()
        await here.log(event(6, "paid", "a"))
        assert (await here.reads.get("orders", "a"))["status"] == "paid"
        assert (await here.reads.get("orders", "a"))["sum"] == 6
        await fold_all(new)
        assert await here.reads.get("orders", "a") == {"status": "settled", "sum": 6, "times": 6}
        assert [b.definition for b in await here.store.projections.builds()] == [here.projection.definition]


async def test_an_event_that_cannot_be_folded_is_left_out_and_told(
    open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with shop(open_store) as here:
        await here.log(
            event(1, "paid", "a", 1), event(2, "paid", "a", "x"), event(3, "placed", None), event(4, "paid", "a", 2)
        )
        projector = here.projector()
        await projector.begin()
        await fold_all(projector)
        assert await here.reads.get("orders", "a") == {"status": "paid", "sum": 3, "times": 2}
        (build,) = await here.store.projections.builds()
        assert build.faults == 2
        assert build.last_fault is not None
        assert "position 2" in build.last_fault
        assert "orders leaves out" in caplog.text


ODD = """
flow: shop
events: {nested: {external: true}, summed: {external: true}, omitted: {external: true}}
projections:
  orders:
    key: "{{ event.id }}"
    on:
      nested: {set: {in: "{{ [state.in | default(0)] }}"}}
      summed: {increment: {sum: "{{ event.n }}"}}
      omitted: {key: "{{ event.none | default(omit) }}", set: {a: 1}}
"""


@pytest.mark.parametrize(
    ("kind", "numbers", "folds"),
    [("nested", [1] * 1100, 499), ("summed", [1.5, 10**400, 2], 2), ("summed", [10**400, 2], 1), ("omitted", [1], 0)],
)
async def test_no_event_is_so_odd_that_those_behind_it_are_not_folded(
    kind: str, numbers: list[Any], folds: int
) -> None:
    async with SqliteStore(SqliteFile(":memory:")) as store:
        here = Shop(store, projection_of(ODD))
        await here.log(*(event(i, kind, "a", n, minute=0) for i, n in enumerate(numbers, 1)))
        projector = here.projector()
        await projector.begin()
        await fold_all(projector)
        (build,) = await store.projections.builds()
        assert (build.position, build.faults) == (len(numbers), len(numbers) - folds)


async def test_a_read_model_that_cannot_be_folded_keeps_no_other_from_it(
    open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with shop(open_store) as here:
        await here.store.projections.begin_build("alien", '{"placed": {"key": "{{ of_a_later_version() }}"}}')
        projector = here.projector()
        await here.store.projections.begin_build("orders", here.projection.definition)
        await here.log(event(1, "placed", "a"))
        await fold_all(projector)
        assert [b.position for b in await here.store.projections.builds()] == [0, 1]
        assert "alien is not folded on" in caplog.text


@pytest.mark.parametrize("key", ["", "k" * 513, "a\x00b", None, True, ["a"], {"a": 1}])
async def test_what_is_no_key_changes_no_entry_and_cannot_be_read(open_store: Open, key: Any) -> None:
    async with shop(open_store) as here:
        await here.log(event(1, "placed", key), event(2, "placed", "k" * 512))
        projector = here.projector()
        await projector.begin()
        await fold_all(projector)
        assert list(await here.all()) == ["k" * 512]
        with pytest.raises(ValueError, match="a key"):
            await here.reads.get("orders", key)


async def test_who_asks_too_early_is_told_how_far_it_is(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_models, "MAX_TAIL", 3)
    async with shop(open_store) as here:
        await here.log(*(event(n, "placed", "a") for n in range(1, 5)))
        with pytest.raises(NotReadyError, match="orders is being built: the log has 4 events, and 0 are folded"):
            await here.reads.get("orders", "a")
        with pytest.raises(NotFoundError, match='no projection named "order"'):
            await here.reads.get("order", "a")
        told: list[int] = []
        found = [e async for e in here.reads.all("orders", most=None, progress=told.append)]
        assert [e.key for e in found] == ["a"]
        assert sum(told) == 4


async def test_a_dead_process_whose_clock_was_ahead_keeps_a_read_model_no_longer_than_another(
    open_store: Open,
) -> None:
    async with shop(open_store) as here:
        ahead, punctual = here.projector(), here.projector("punctual")
        await ahead.begin()
        await here.log(event(1, "placed", "a"))
        here.clock.advance(3600)
        await ahead.step()
        here.clock.advance(-3600)
        await here.log(event(2, "placed", "a"))
        await punctual.step()
        assert [b.position for b in await here.store.projections.builds()] == [2]


async def test_what_a_process_of_older_files_gives_up_is_begun_again_by_one_that_declares_it(
    open_store: Open,
) -> None:
    async with shop(open_store) as here:
        new, old = here.projector(), here.projector("of older files", declared=[])
        await new.begin()
        await here.log(event(1, "placed", "a"))
        await fold_all(new)
        await old.begin()
        await fold_all(new)
        assert [(b.position, b.is_served) for b in await here.store.projections.builds()] == [(1, True)]


class Crash(BaseException):
    """The process died."""


@dataclass
class Dying:
    """The read models of a store, in a process that dies at its call number `at` of those that write: before it is
    done, or after."""

    store: ProjectionStore
    at: int
    after: bool
    calls: int = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.store, name)
        return self._dying(real) if name in ("begin_build", "fold", "serve", "sweep", "keep_only") else real

    def _dying(self, real: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.at and not self.after:
                raise Crash
            result = await real(*args, **options)
            if self.calls == self.at:
                raise Crash
            return result

        return call


@pytest.mark.parametrize("after", [False, True])
async def test_a_crash_at_any_write_of_folding_or_of_building_anew_loses_nothing_and_folds_nothing_twice(
    open_store: Open, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr(projector, "BATCH", 2)
    events = [event(n, "paid", "ab"[n % 2], n) for n in range(1, 8)]
    for at in count(1):
        async with shop(open_store) as here:
            await here.log(*events)
            dying = Dying(here.store.projections, at, after)
            has_died = False
            for flow in (FLOW, OTHER):
                here.projection = projection_of(flow)
                try:
                    projecting = here.projector(store=dying)
                    await projecting.begin()
                    await fold_all(projecting)
                except Crash:
                    has_died = True
                    here.clock.advance(60)  # what the dead one had claimed
                    next_process = here.projector("next")
                    await next_process.begin()
                    await fold_all(next_process)
                    here.clock.advance(60)
            (build,) = await here.store.projections.builds()
            sums = {e.key: e.state["sum"] for e in await here.store.projections.page(build, limit=9)}
            assert sums == {"a": 2 + 4 + 6, "b": 1 + 3 + 5 + 7}
            assert (build.definition, build.is_served) == (here.projection.definition, True)
            if not has_died:
                assert at > 15
                return


async def test_another_process_leaves_what_is_claimed_alone_until_the_claim_has_run_out(
    open_store: Open,
) -> None:
    async with shop(open_store) as here:
        first, second = here.projector(), here.projector("another")
        await first.begin()
        await here.log(event(1, "placed", "a"))
        await first.step()
        await here.log(event(2, "placed", "a"))
        await second.step()
        assert [b.position for b in await here.store.projections.builds()] == [1]
        here.clock.advance(6)
        await second.step()
        assert [b.position for b in await here.store.projections.builds()] == [2]


@dataclass
class Swapping:
    """The read models of a store, of which another process serves a new one, and sweeps the old one away, before the
    call number `at` of those that read."""

    here: Shop
    at: int
    calls: int = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.here.store.projections, name)
        return self._late(real) if name in ("entries", "page", "history") else real

    def _late(self, real: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                other = self.here.projector()
                await self.here.store.projections.begin_build("orders", self.here.projection.definition, anew=True)
                await fold_all(other)
            return await real(*args, **options)

        return call


@pytest.mark.parametrize("how", ["get", "get_as_of", "all"])
async def test_who_reads_while_another_takes_its_place_reads_on_there(
    open_store: Open, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(read_models, "PAGE", 2)
    for at in count(1):
        async with shop(open_store) as here:
            await here.log(*(event(n, "placed", f"k{n}") for n in range(1, 6)))
            folding = here.projector()
            await folding.begin()
            await fold_all(folding)
            await here.log(event(6, "placed", "k6"))
            swapping: Any = Swapping(here, at)
            reads = ReadModels({"orders": here.projection}, log=here.store, store=swapping, load=compile_projection)
            match how:
                case "get":
                    assert (await reads.get("orders", "k1"))["times"] == 1
                case "get_as_of":
                    assert (await reads.get_as_of("orders", "k1", AsOf(position=3)))["times"] == 1
                case "all":
                    assert [entry.key async for entry in reads.all("orders")] == [f"k{n}" for n in range(1, 7)]
            if swapping.calls < at:
                assert at > 1
                return
