# ruff: noqa: D102  a test's name says what holds
"""What a store must do for read models: inherit `ProjectionContract` beside `StoreContract`."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager

from runner.errors import GivenUpError
from runner.message import Meta
from runner.ports import AnyStore, ProjectionStore
from runner.records import AsOf, Build, Entry, EventRecord, Folded

FIRST, SECOND = '{"e": {"key": "{{ event.k }}"}}', '{"e": {"key": "{{ event.k }}", "increment": {"n": 1}}}'
LATER = "2026-11-24T00:00:00.000Z"


def entry(key: str, position: int, *, n: int | None = None, changes: int = 1) -> Entry:
    """An entry as an event at that position left it; deleted without an `n`."""
    state = None if n is None else {"n": n}
    return Entry(key=key, state=state, position=position, changes=changes, latest=_time(position))


def event(number: int) -> EventRecord:
    """An event whose time tells its number."""
    meta = Meta(
        id=f"e-{number}",
        type="e",
        source="/t",
        subject=None,
        time=_time(number),
        correlation_id="c",
        causation_id=None,
    )
    return EventRecord(meta=meta, data=b"{}")


def _time(number: int) -> str:
    return f"2026-11-23T00:00:{number:02}.000Z"


class ProjectionContract:
    """What `ProjectionStore` promises."""

    def store(self) -> AbstractAsyncContextManager[AnyStore]:
        raise NotImplementedError

    async def built(self, store: ProjectionStore, definition: str = FIRST) -> Build:
        """What is built of that definition."""
        await store.begin_build("orders", definition)
        return next(b for b in await store.builds() if b.definition == definition)

    async def test_a_read_model_is_begun_once_a_definition(self) -> None:
        async with self.store() as opened:
            store = opened.projections
            build = await self.built(store)
            await store.begin_build("orders", FIRST)
            await store.begin_build("customers", FIRST)
            assert [(b.name, b.position, b.is_served) for b in await store.builds()] == [
                ("customers", 0, False),
                ("orders", 0, False),
            ]
            await store.serve(build)
            await store.begin_build("orders", FIRST)
            assert [b.is_served for b in await store.builds()] == [False, True]

    async def test_another_definition_is_built_beside_and_takes_the_place_of_what_was_served(self) -> None:
        async with self.store() as opened:
            store = opened.projections
            old = await self.built(store)
            await store.serve(old)
            new = await self.built(store, SECOND)
            assert [(b.id, b.is_served) for b in await store.builds()] == [(old.id, True), (new.id, False)]
            await store.serve(new)
            assert [(b.id, b.is_served) for b in await store.builds()] == [(new.id, True)]

    async def test_who_goes_back_to_the_definition_that_is_served_builds_no_other(self) -> None:
        async with self.store() as opened:
            store = opened.projections
            old = await self.built(store)
            await store.serve(old)
            await self.built(store, SECOND)
            await store.begin_build("orders", FIRST)
            assert [b.id for b in await store.builds()] == [old.id]

    async def test_a_definition_is_built_anew_beside_itself_if_that_is_asked_for(self) -> None:
        async with self.store() as opened:
            store = opened.projections
            await store.serve(await self.built(store))
            await store.begin_build("orders", FIRST, anew=True)
            await store.begin_build("orders", FIRST, anew=True)
            assert [(b.definition, b.is_served) for b in await store.builds()] == [(FIRST, True), (FIRST, False)]

    async def test_what_nobody_declares_any_more_is_given_up(self) -> None:
        async with self.store() as opened:
            store = opened.projections
            await self.built(store)
            await store.begin_build("customers", FIRST)
            await store.keep_only(["customers"])
            assert [b.name for b in await store.builds()] == ["customers"]
            await store.keep_only([])
            assert await store.builds() == []

    async def test_events_are_folded_on_from_where_the_read_model_is_or_not_at_all(self) -> None:
        async with self.store() as opened:
            store = opened.projections
            build = await self.built(store)
            first = Folded(
                position=3, entries=(entry("a", 3, n=1),), changes=(("a", 3),), faults=2, last_fault="no \u2028"
            )
            assert await store.fold(build, first, claimed_by="me", claimed_until=LATER)
            late = Folded(position=4, entries=(entry("a", 4, n=9), entry("b", 4, n=9)), changes=(("a", 4), ("b", 4)))
            assert not await store.fold(build, late, claimed_by="me", claimed_until=LATER)
            assert await store.entries(build, {"a", "b"}) == (3, {"a": entry("a", 3, n=1)})
            now = (await store.builds())[0]
            assert (now.position, now.claimed_by, now.claimed_until) == (3, "me", LATER)
            assert (now.faults, now.last_fault) == (2, "no \u2028")
            assert await store.fold(
                now, Folded(position=5, entries=(entry("a", 5, n=2),)), claimed_by="me", claimed_until=LATER
            )
            assert (await store.builds())[0].last_fault == "no \u2028"

    async def test_one_that_was_folded_since_is_not_served_yet(self) -> None:
        async with self.store() as opened:
            store = opened.projections
            build = await self.built(store)
            assert await store.fold(build, Folded(position=3), claimed_by="me", claimed_until=LATER)
            await store.serve(build)
            assert not (await store.builds())[0].is_served

    async def test_entries_come_by_key_and_in_the_order_of_keys_the_deleted_only_by_key(self) -> None:
        async with self.store() as opened:
            store = opened.projections
            build = await self.built(store)
            keys = ["Z", "a", "ä", "z", "漢"]
            made = [entry(key, 1, n=number) for number, key in enumerate(keys)]
            folded = Folded(position=1, entries=(*made, entry("b", 1)))
            assert await store.fold(build, folded, claimed_by="me", claimed_until=LATER)
            first = await store.page(build, limit=2)
            rest = await store.page(build, after=first[-1].key, limit=9)
            assert [e.key for e in (*first, *rest)] == sorted(keys)
            assert (await store.entries(build, {"b", "none"}))[1] == {"b": entry("b", 1)}

    async def test_an_entrys_history_begins_at_its_last_snapshot_from_before(self) -> None:
        async with self.store() as opened:
            store = opened.projections
            await opened.append([event(number) for number in range(1, 7)])
            assert await opened.head() == 6
            build = await self.built(store)
            folded = Folded(
                position=6,
                entries=(entry("a", 6, n=6, changes=4),),
                changes=(("a", 1), ("a", 2), ("b", 3), ("a", 4), ("a", 6)),
                snapshots=(entry("a", 2, n=2, changes=2), entry("a", 6, n=6, changes=4)),
            )
            assert await store.fold(build, folded, claimed_by="me", claimed_until=LATER)

            async def history(key: str, as_of: AsOf) -> tuple[int | None, list[int]]:
                snapshot, events = await store.history(build, key, as_of)
                return None if snapshot is None else snapshot.position, [each.position for each in events]

            assert await history("a", AsOf()) == (6, [])
            assert await history("a", AsOf(position=5)) == (2, [4])
            assert await history("a", AsOf(position=1)) == (None, [1])
            assert await history("a", AsOf(time=_time(4))) == (2, [4])
            assert await history("a", AsOf(time=_time(1))) == (None, [1])
            assert await history("b", AsOf(position=9)) == (None, [3])
            assert await history("c", AsOf()) == (None, [])

    async def test_what_was_given_up_is_read_no_more_for_it_may_be_swept_away_in_part(self) -> None:
        async with self.store() as opened:
            store = opened.projections
            old = await self.built(store)
            folded = Folded(position=1, entries=(entry("a", 1, n=1), entry("b", 1, n=1)), changes=(("a", 1), ("b", 1)))
            assert await store.fold(old, folded, claimed_by="me", claimed_until=LATER)
            await store.keep_only([])
            for _ in range(9):
                await _is_given_up(store.entries(old, {"a"}))
                await _is_given_up(store.page(old, limit=9))
                await _is_given_up(store.history(old, "a", AsOf()))
                await store.sweep(1)
            assert not await store.sweep(1)

    async def test_what_was_given_up_is_swept_away_and_nothing_else(self) -> None:
        async with self.store() as opened:
            store = opened.projections
            old = await self.built(store)
            await store.begin_build("customers", FIRST)
            kept = next(b for b in await store.builds() if b.name == "customers")
            for build in (old, kept):
                made = tuple(entry(f"k{n}", n, n=n) for n in range(5))
                changes = tuple((e.key, e.position) for e in made)
                folded = Folded(position=5, entries=made, changes=changes, snapshots=made)
                assert await store.fold(build, folded, claimed_by="me", claimed_until=LATER)
            assert not await store.sweep(2)
            await store.keep_only(["customers"])
            rounds = 0
            while await store.sweep(2):
                rounds += 1
            assert rounds == 10  # three of each of three tables, and the last
            assert len(await store.page(kept, limit=9)) == 5


async def _is_given_up(reading: Awaitable[object]) -> None:
    try:
        await reading
    except GivenUpError:
        return
    raise AssertionError("no GivenUpError was raised")
