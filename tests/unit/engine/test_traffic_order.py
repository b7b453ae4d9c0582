"""Whatever becomes of runs, the effects of a partition are in order, slots hold, and every message ends in a run."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from random import Random
from typing import Any

import pytest
from bench import Bench, Failing

from runner.errors import RetryableError, StoreError, TerminalError
from runner.handler import Context, handler

FLOW = """
flow: f
events: {e: {external: true}}
routes: [{on: e, to: h}]
handlers:
  h:
    partition_by: "{{ event.key }}"
    concurrency: {limit: 2, key: "{{ event.bank }}"}
    throttle: {limit: 500, period: 1s, burst: 5, key: "{{ event.bank }}"}
    priority: "{{ event.priority }}"
    queue: {max: 30}
    retry: {max_attempts: 3, delay: 1ms}
    steps:
      - id: take
        use: act
        with: {on: "{{ event }}", what: take}
        compensate: {use: act, with: {on: "{{ event }}", what: undo}}
      - {wait: 5ms, when: event.fate == "waits"}
      - use: act
        with: {on: "{{ event }}", what: end}
        irreversible: true
"""
FATES = ("goes through", "goes through", "is tried again", "waits", "is undone")


class Bank(Bench):
    """A bench whose plugin notes what is done for which key, and how many are at it."""

    def __init__(self, random: Random) -> None:
        self.done: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self.at_once: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

        @handler("act")
        async def act(ctx: Context, *, on: dict[str, Any], what: str) -> None:
            key, bank, fate = on["key"], on["bank"], on["fate"]
            self.at_once[bank] += 1
            self.most[bank] = max(self.most[bank], self.at_once[bank])
            try:
                await asyncio.sleep(random.choice([0.0, 0.0, 0.002]))
                self.done[key].append((on["n"], what))
                if fate == "is tried again" and what != "undo" and ctx.attempt < 3:
                    raise RetryableError("away", "not now")
                if fate == "is undone" and what == "end":
                    raise TerminalError("refused", "no")
            finally:
                self.at_once[bank] -= 1

        super().__init__(FLOW, [act])


@pytest.mark.parametrize("seed", range(4))
async def test_effects_of_a_partition_are_in_order_whatever_becomes_of_its_runs(seed: int) -> None:
    random = Random(seed)
    bench = Bank(random)
    sent = [
        {
            "key": random.choice("abcdefgh"),
            "n": n,
            "bank": random.choice("xy"),
            "priority": random.randint(0, 9),
            "fate": random.choice(FATES),
        }
        for n in range(80)
    ]

    def away_at_times(store: object) -> Failing:
        return Failing(store, "take", StoreError("the store is away"), times=random.randint(0, 2))

    async with bench.working(store=away_at_times):
        for payload in sent:
            await bench.send(f"m-{payload['n']}", payload=payload)
        async with asyncio.timeout(60):
            while len([run for run in await bench.store.runs(limit=200) if run.state.is_final]) < len(sent):  # noqa: ASYNC110 a poll
                await asyncio.sleep(0.01)
    for key, done in bench.done.items():
        expected = [payload["n"] for payload in sent if payload["key"] == key]
        assert list(dict.fromkeys(n for n, _ in done)) == expected
        assert [n for n, _ in done] == sorted(n for n, _ in done), "one began before the one before was over"
    assert max(bench.most.values()) <= 2
    fates = {payload["n"]: payload["fate"] for payload in sent}
    undone = {n for done in bench.done.values() for n, what in done if what == "undo"}
    assert undone == {n for n, fate in fates.items() if fate == "is undone"}
