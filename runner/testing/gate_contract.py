# ruff: noqa: D102  a test's name says what holds
"""What a store must do for the gates of handlers: inherit `GateContract` beside `StoreContract`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import datetime, timedelta
from itertools import count, cycle
from random import Random
from typing import Any, ClassVar

from runner.ports import AnyStore
from runner.records import SUSPECT_CRASHES, Change, GateRules, Intervention, Passed, Place, RunState, StoredRun, Tokens
from runner.testing.store_contract import START, at, begin, go_on, run_id

HANDLER = "orders.place"
PLAIN = GateRules(handler=HANDLER)
FIVE_A_SECOND = GateRules(handler=HANDLER, tokens=Tokens(limit=5, period_s=1.0, burst=1))
ONE_SLOT = GateRules(handler=HANDLER, slots=1)
TWO_SLOTS = GateRules(handler=HANDLER, slots=2)


def queue(number: int, **place: Any) -> Change:
    """A run that comes to the gate."""
    return begin(number, state=RunState.QUEUED, place=Place(handler=HANDLER, **place))


def in_line(number: int, line: str, **place: Any) -> Change:
    """A run that comes to the gate in an ordered line."""
    return queue(number, line=line, is_ordered=True, **place)


def end(number: int, state: RunState = RunState.COMPLETED) -> Change:
    """A run that is over."""
    return go_on(number, state, finished_at=at(number), gate=HANDLER)


def park(number: int, seconds: float = 0) -> Change:
    """A run that goes on so many seconds after the beginning of the tests."""
    return go_on(number, RunState.WAITING, due_at=at(seconds), gate=HANDLER)


def numbers(runs: Passed | Sequence[StoredRun]) -> list[int]:
    """Which runs these are."""
    return [int(run.started.run_id[:8], 16) for run in (runs.runs if isinstance(runs, Passed) else runs)]


class GateContract:
    """Inherit it, and say how to open a store: twice opened, it stands for two processes."""

    seeds: ClassVar[Iterable[int]] = range(12)

    def store(self) -> AbstractAsyncContextManager[AnyStore]:
        """A store on this test's own data."""
        raise NotImplementedError

    async def test_a_queued_run_stands_and_is_nobodys(self) -> None:
        async with self.store() as store:
            assert await store.commit(queue(1))
            assert not await store.commit(queue(1))
            run = await store.run(run_id(1))
            assert run is not None
            assert run.state is RunState.QUEUED
            assert numbers(await store.take(START, 10)) == []
            assert await store.gate.gates() == [HANDLER]
            assert (await store.figures(START))[HANDLER].queued == 1
            assert (await store.backlog()).runs == 1

    async def test_who_is_let_in_is_owned_and_runs(self) -> None:
        async with self.store() as store:
            await _all(store, queue(1), queue(2), queue(3))
            assert numbers(await store.gate.admit(PLAIN, START, 2)) == [1, 2]
            run = await store.run(run_id(1))
            assert run is not None
            assert run.state is RunState.RUNNING
            assert await store.gate.waiting(HANDLER, 10) == 1
            assert await store.commit(end(1))
            assert numbers(await store.gate.admit(PLAIN, START, 2)) == [3]

    async def test_no_more_are_counted_than_are_asked_for(self) -> None:
        async with self.store() as store:
            await _all(store, *(queue(number) for number in range(5)))
            assert await store.gate.waiting(HANDLER, 3) == 3
            assert await store.gate.waiting("orders.other", 3) == 0

    async def test_gates_do_not_see_each_other(self) -> None:
        async with self.store() as store:
            other = "orders.other"
            place = Place(handler=other, line="a", is_ordered=True)
            await _all(store, in_line(1, "a"), begin(2, state=RunState.QUEUED, place=place, begun={"handler": other}))
            assert numbers(await store.gate.admit(GateRules(handler=other), START, 10)) == [2]
            assert numbers(await store.gate.admit(PLAIN, START, 10)) == [1]

    async def test_the_lowest_rank_passes_first_and_of_equal_ones_the_first_that_came(self) -> None:
        async with self.store() as store:
            await _all(store, queue(1, rank=5), queue(2, rank=5), queue(3, rank=-1))
            assert numbers(await store.gate.admit(PLAIN, START, 10)) == [3, 1, 2]

    # --- lines

    async def test_in_an_ordered_line_the_next_passes_only_when_the_one_before_is_final(self) -> None:
        async with self.store() as store, self.store() as other:
            await _all(store, in_line(1, "a"), in_line(2, "a"), in_line(3, "b"))
            assert numbers(await store.gate.admit(PLAIN, START, 10)) == [1, 3]
            assert numbers(await other.gate.admit(PLAIN, START, 10)) == []
            assert await store.commit(park(1, 5))
            assert numbers(await other.gate.admit(PLAIN, START, 10)) == []
            assert numbers(await other.take(START + timedelta(seconds=5), 10)) == [1]
            assert numbers(await store.gate.admit(PLAIN, START, 10)) == []
            assert await other.commit(end(1, RunState.COMPENSATED))
            assert numbers(await store.gate.admit(PLAIN, START, 10)) == [2]

    async def test_whoever_comes_while_the_one_before_runs_stands_behind_it(self) -> None:
        async with self.store() as store:
            await _all(store, in_line(1, "a"))
            assert numbers(await store.gate.admit(PLAIN, START, 10)) == [1]
            await _all(store, in_line(2, "a"))
            assert numbers(await store.gate.admit(PLAIN, START, 10)) == []
            assert await store.commit(end(1))
            assert numbers(await store.gate.admit(PLAIN, START, 10)) == [2]

    async def test_in_an_ordered_line_a_higher_priority_does_not_overtake(self) -> None:
        async with self.store() as store:
            await _all(store, in_line(1, "a", rank=9), in_line(2, "a", rank=1), in_line(3, "b", rank=5))
            assert numbers(await store.gate.admit(PLAIN, START, 10)) == [3, 1]
            assert await store.commit(end(1))
            assert numbers(await store.gate.admit(PLAIN, START, 10)) == [2]

    async def test_one_that_is_ended_while_it_waits_lets_the_next_step_forward(self) -> None:
        async with self.store() as store:
            await _all(store, in_line(1, "a"), in_line(2, "a"), in_line(3, "a"))
            for number in (2, 1):  # one behind, then the first
                assert await store.seize(run_id(number)) is not None
                assert await store.commit(end(number, RunState.CANCELLED))
            assert numbers(await store.gate.admit(PLAIN, START, 10)) == [3]

    async def test_one_that_is_asked_to_end_while_it_waits_is_taken_up_for_that(self) -> None:
        async with self.store() as store:
            await _all(store, in_line(1, "a", slot="x"), in_line(2, "a", slot="x"))
            assert await store.request(run_id(2), _cancel())
            assert numbers(await store.take(START, 10)) == [2]
            assert await store.commit(end(2, RunState.CANCELLED))
            assert numbers(await store.gate.admit(TWO_SLOTS, START, 10)) == [1]

    async def test_a_store_that_leaves_puts_its_runs_down_in_their_line(self) -> None:
        async with self.store() as store:
            async with self.store() as other:
                await _all(store, in_line(1, "a", slot="x"), in_line(2, "a", slot="x"), queue(3, slot="x"))
                one = GateRules(handler=HANDLER, slots=1)
                assert numbers(await other.gate.admit(one, START, 10)) == [1]
            assert numbers(await store.gate.admit(one, START + timedelta(days=1), 10)) == [1]
            assert await store.commit(end(1))
            assert numbers(await store.gate.admit(one, START, 10)) == [2]

    async def test_one_that_was_seized_and_is_let_go_waits_as_before(self) -> None:
        async with self.store() as store:
            await _all(store, in_line(1, "a"), in_line(2, "a"))
            async with self.store() as other:
                assert await other.seize(run_id(2)) is not None
            assert numbers(await store.take(START + timedelta(days=1), 10)) == []
            assert numbers(await store.gate.admit(PLAIN, START, 10)) == [1]
            assert await store.commit(end(1))
            assert numbers(await store.gate.admit(PLAIN, START, 10)) == [2]

    # --- slots

    async def test_a_slot_is_taken_while_a_run_runs_and_free_while_it_is_parked(self) -> None:
        async with self.store() as store, self.store() as other:
            await _all(store, *(queue(number, slot="x") for number in (1, 2, 3, 4)), queue(5, slot="y"))
            assert numbers(await store.gate.admit(TWO_SLOTS, START, 10)) == [1, 2, 5]
            assert numbers(await other.gate.admit(TWO_SLOTS, START, 10)) == []
            assert await store.commit(park(1, 5))
            assert numbers(await other.gate.admit(TWO_SLOTS, START, 10)) == [3]
            later = START + timedelta(seconds=5)
            assert numbers(await store.take(later, 10)) == []  # it has no slot
            assert await store.commit(end(2))
            assert numbers(await other.gate.admit(TWO_SLOTS, later, 10)) == [1]  # it came before 4
            assert await other.commit(end(3))
            assert numbers(await store.gate.admit(TWO_SLOTS, later, 10)) == [4]

    async def test_more_slots_are_noticed_when_the_gate_is_opened(self) -> None:
        async with self.store() as store:
            await _all(store, *(queue(number, slot="x") for number in range(1, 5)))
            assert numbers(await store.gate.admit(TWO_SLOTS, START, 10)) == [1, 2]
            await store.gate.open(HANDLER)
            assert numbers(await store.gate.admit(GateRules(handler=HANDLER, slots=4), START, 10)) == [3, 4]

    async def test_a_gate_that_is_shut_lets_those_go_on_that_have_begun(self) -> None:
        async with self.store() as store:
            await _all(store, queue(1, slot="x"), queue(2, slot="y"), queue(3))
            assert numbers(await store.gate.admit(ONE_SLOT, START, 1)) == [1]
            assert await store.commit(park(1))
            shut = GateRules(handler=HANDLER, slots=1, is_shut=True)
            assert numbers(await store.gate.admit(shut, START, 10)) == [1]
            assert numbers(await store.gate.admit(ONE_SLOT, START, 10)) == [2, 3]

    async def test_a_gate_is_known_while_a_run_is_parked_that_needs_a_slot_to_go_on(self) -> None:
        async with self.store() as store:
            await _all(store, queue(1, slot="x"))
            assert numbers(await store.gate.admit(TWO_SLOTS, START, 10)) == [1]
            assert await store.commit(park(1))
            assert await store.gate.gates() == [HANDLER]

    async def test_a_run_that_crashed_processes_needs_a_slot_as_well(self) -> None:
        async with self.store() as store, self.store() as other:
            await _all(store, queue(1, slot="x"), queue(2, slot="x"))
            assert numbers(await store.gate.admit(ONE_SLOT, START, 10)) == [1]
            for _ in range(SUSPECT_CRASHES):
                assert await store.commit(go_on(1, suspect=True))
            assert await store.commit(park(1))
            assert numbers(await other.gate.admit(ONE_SLOT, START - timedelta(seconds=1), 10)) == [2]
            assert numbers(await store.gate.admit(ONE_SLOT, START, 10)) == []
            assert numbers(await store.take(START, 10, suspects=True)) == []
            assert await other.commit(end(2))
            assert numbers(await other.gate.admit(ONE_SLOT, START, 10)) == []  # the slot is kept for it
            assert numbers(await store.take(START, 10)) == []
            assert numbers(await store.take(START, 10, suspects=True)) == [1]

    # --- tokens

    async def test_a_throttle_lets_in_what_its_tokens_allow_and_says_when_the_next_may(self) -> None:
        async with self.store() as store:
            await _all(store, *(queue(number, bucket="") for number in (1, 2)))
            passed = await store.gate.admit(FIVE_A_SECOND, START, 10)
            assert numbers(passed) == [1]
            assert passed.next_at == START + timedelta(seconds=0.2)
            assert numbers(await store.gate.admit(FIVE_A_SECOND, passed.next_at - timedelta(milliseconds=1), 10)) == []
            assert numbers(await store.gate.admit(FIVE_A_SECOND, passed.next_at, 10)) == [2]

    async def test_a_larger_limit_is_not_held_up_by_what_was_taken_under_a_smaller_one(self) -> None:
        async with self.store() as store:
            await _all(store, *(queue(number, line=key, bucket=key) for number, key in enumerate("aab", 1)))
            hourly = GateRules(handler=HANDLER, tokens=Tokens(limit=1, period_s=3600.0, burst=1))
            assert numbers(await store.gate.admit(hourly, START, 10)) == [1, 3]
            assert numbers(await store.gate.admit(hourly, START, 10)) == []
            await store.gate.open(HANDLER)
            assert numbers(await store.gate.admit(FIVE_A_SECOND, START + timedelta(seconds=0.1), 10)) == []
            assert numbers(await store.gate.admit(FIVE_A_SECOND, START + timedelta(seconds=0.4), 10)) == [2]

    async def test_a_clock_that_is_behind_lets_nobody_in_too_early(self) -> None:
        async with self.store() as store:
            await _all(store, *(queue(number, bucket="") for number in range(1, 5)))
            assert numbers(await store.gate.admit(FIVE_A_SECOND, START + timedelta(seconds=10), 10)) == [1]
            for seconds in (0, 5, 10.1):
                assert numbers(await store.gate.admit(FIVE_A_SECOND, START + timedelta(seconds=seconds), 10)) == []
            assert numbers(await store.gate.admit(FIVE_A_SECOND, START + timedelta(seconds=10.2), 10)) == [2]

    async def test_each_value_of_a_key_has_a_throttle_of_its_own(self) -> None:
        async with self.store() as store:
            keyed = [queue(number, line=key, bucket=key) for number, key in enumerate("aabb", 1)]
            await _all(store, *keyed)
            passed = await store.gate.admit(FIVE_A_SECOND, START, 10)
            assert numbers(passed) == [1, 3]
            assert passed.next_at == START + timedelta(seconds=0.2)
            assert numbers(await store.gate.admit(FIVE_A_SECOND, passed.next_at, 10)) == [2, 4]

    async def test_a_run_that_goes_on_needs_no_second_token(self) -> None:
        async with self.store() as store:
            await _all(store, queue(1, bucket="", slot="x"), queue(2, bucket="", slot="y"))
            rules = GateRules(handler=HANDLER, tokens=FIVE_A_SECOND.tokens, slots=1)
            assert numbers(await store.gate.admit(rules, START, 10)) == [1]
            assert await store.commit(park(1))
            assert numbers(await store.gate.admit(rules, START, 10)) == [1]

    async def test_a_run_that_goes_on_waits_behind_nobody_who_needs_a_token(self) -> None:
        async with self.store() as store:
            rules = GateRules(handler=HANDLER, tokens=FIVE_A_SECOND.tokens, slots=1)
            await _all(store, queue(1, bucket="", slot="x", rank=5))
            assert numbers(await store.gate.admit(rules, START, 10)) == [1]
            assert await store.commit(park(1))
            await _all(store, queue(2, bucket="", slot="y", rank=1))
            assert numbers(await store.gate.admit(rules, START, 10)) == [1]

    async def test_whoever_waits_for_a_token_keeps_a_free_slot_from_nobody(self) -> None:
        async with self.store() as store:
            rules = GateRules(handler=HANDLER, tokens=FIVE_A_SECOND.tokens, slots=1)
            keyed = [queue(number, line=f"x {key}", slot="x", bucket=key) for number, key in enumerate("aab", 1)]
            await _all(store, *keyed)
            assert numbers(await store.gate.admit(rules, START, 10)) == [1]
            assert await store.commit(end(1))
            assert numbers(await store.gate.admit(rules, START, 10)) == [3]

    async def test_a_throttle_is_kept_to_within_a_percent_by_one_process_and_by_four(self) -> None:
        for processes in (1, 4):
            first = 10_000 * processes
            async with AsyncExitStack() as stack:
                stores = [await stack.enter_async_context(self.store()) for _ in range(processes)]
                await _all(stores[0], *(queue(first + number, bucket="") for number in range(400)))
                rules = GateRules(handler=HANDLER, tokens=Tokens(limit=300, period_s=60.0, burst=1))
                begins = START + timedelta(hours=processes)
                let_in = 0
                for tick, store in zip(range(601), cycle(stores), strict=False):  # each tenth of a second one asks
                    let_in += len((await store.gate.admit(rules, begins + timedelta(seconds=tick / 10), 10)).runs)
                assert abs(let_in - 301) <= 3  # one at once, then five a second
                await _drain(stores[0], begins)

    async def test_four_that_ask_at_once_share_the_tokens(self) -> None:
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(self.store()) for _ in range(4)]
            await _all(stores[0], *(queue(number, bucket="") for number in range(40)))
            rules = GateRules(handler=HANDLER, tokens=Tokens(limit=10, period_s=1.0, burst=10))
            found = await asyncio.gather(*(store.gate.admit(rules, START, 10) for store in stores))
            assert sorted(number for passed in found for number in numbers(passed)) == list(range(10))

    # --- all together

    async def test_whatever_happens_order_slots_and_tokens_hold_and_everybody_passes(self) -> None:
        for seed in self.seeds:
            async with self.store() as one, self.store() as two:
                await _Crowd([one, two], Random(seed), first=1000 * (seed + 1)).live()  # noqa: S311


class _Crowd:
    """Runs that come, pass, are parked, go on and end, in any order, at a gate with everything: lines, slots, a
    throttle with a key, priorities; and what must hold at every moment."""

    RULES = GateRules(handler=HANDLER, tokens=Tokens(limit=4, period_s=1.0, burst=2), slots=2)

    def __init__(self, stores: Sequence[AnyStore], random: Random, *, first: int) -> None:
        self._stores, self._random = stores, random
        self._now = START + timedelta(days=first)
        self._names = count(first)
        self._ordered = random.random() < 0.5
        self._owners: dict[int, AnyStore] = {}
        self._places: dict[int, Place] = {}
        self._parked: set[int] = set()
        self._let_in: dict[str, list[int]] = {}
        self._came: dict[str, list[int]] = {}
        self._tokens: list[tuple[str, float]] = []
        self._unfinished: set[int] = set()

    async def live(self) -> None:
        for _ in range(60):
            await self._random.choice(
                [self._come, self._admit, self._admit, self._park, self._end, self._end_waiting]
            )()
            self._now += timedelta(seconds=self._random.choice([0, 0, 0.1, 0.5]))
        for _ in range(400):
            if not self._unfinished:
                break
            self._now += timedelta(seconds=0.5)
            await self._admit()
            await self._end()
        assert not self._unfinished, "somebody waits for ever"
        self._mind_the_order()
        self._mind_the_tokens()

    async def _come(self) -> None:
        for _ in range(self._random.randint(1, 3)):
            number, key = next(self._names), self._random.choice("abc")
            slot, bucket = self._random.choice([None, "s", "t"]), self._random.choice([None, f"k-{key}"])
            line = f"l-{key}" if self._ordered or bucket else None
            line = line if self._ordered or line is None else f"{line} {slot}"
            place = Place(
                handler=HANDLER,
                line=line,
                is_ordered=self._ordered,
                slot=slot,
                bucket=bucket,
                rank=self._random.randint(0, 9),
            )
            assert await self._random.choice(self._stores).commit(begin(number, state=RunState.QUEUED, place=place))
            self._places[number] = place
            self._unfinished.add(number)
            if self._ordered:
                self._came.setdefault(str(line), []).append(number)

    async def _admit(self) -> None:
        store = self._random.choice(self._stores)
        for run in (*(await store.take(self._now, 10)), *(await store.gate.admit(self.RULES, self._now, 3)).runs):
            (number,) = numbers([run])
            assert number not in self._owners
            self._owners[number] = store
            place = self._places[number]
            if number not in self._parked:
                self._let_in.setdefault(str(place.line), []).append(number)
                if place.bucket is not None:
                    self._tokens.append((place.bucket, self._now.timestamp()))
            self._parked.discard(number)
        running = Counter(slot for number in self._owners if (slot := self._places[number].slot) is not None)
        assert all(number <= 2 for number in running.values()), running
        past = Counter(self._places[number].line for number in (*self._owners, *self._parked))
        assert not self._ordered or all(number == 1 for number in past.values()), past

    async def _park(self) -> None:
        if self._owners:
            number = self._random.choice(sorted(self._owners))
            due = (self._now - START).total_seconds() + self._random.choice([0.0, 0.3])
            assert await self._owners.pop(number).commit(park(number, due))
            self._parked.add(number)

    async def _end(self) -> None:
        if self._owners:
            number = self._random.choice(sorted(self._owners))
            assert await self._owners.pop(number).commit(end(number))
            self._unfinished.discard(number)

    async def _end_waiting(self) -> None:
        waiting = sorted(self._unfinished - self._owners.keys() - self._parked)
        if waiting and self._random.random() < 0.3:
            number, store = self._random.choice(waiting), self._random.choice(self._stores)
            assert await store.seize(run_id(number)) is not None
            assert await store.commit(end(number, RunState.CANCELLED))
            self._unfinished.discard(number)
            line = str(self._places[number].line)
            if self._ordered:
                self._came[line].remove(number)

    def _mind_the_order(self) -> None:
        if self._ordered:
            assert self._let_in == self._came

    def _mind_the_tokens(self) -> None:
        for bucket in {bucket for bucket, _ in self._tokens}:
            times = [time for name, time in self._tokens if name == bucket]
            for begins in times:
                assert sum(begins <= time < begins + 1.0 - 1e-6 for time in times) <= 6  # two at once, four in a second


async def _all(store: AnyStore, *changes: Change) -> None:
    """Commit them, in this order."""
    done: list[Awaitable[bool]] = [store.commit(change) for change in changes]
    assert all(await asyncio.gather(*done))


async def _drain(store: AnyStore, now: datetime) -> None:
    """Let in whoever is left, whatever the throttle says, so that the next finds the gate empty."""
    free = GateRules(handler=HANDLER)
    while (await store.gate.admit(free, now + timedelta(days=1), 500)).runs:
        pass


def _cancel() -> Intervention:
    return Intervention(action="cancel", by="me@here", at=at(), was=RunState.QUEUED)
