"""A process that dies at every transition of a five-step saga, forward and back: it ends whole, or undone."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pytest
from acting import flow
from faults.harness import Verdict, record_row, size

from runner.engine.run import run_id
from runner.errors import TerminalError
from runner.handler import Context, handler
from runner.ports import Store
from runner.records import Change, RunState
from runner.testing import FakeClock, FlowKit, KitRun

STEPS = 5
NOWHERE, AFTER_ALL = 0, STEPS + 1
RUN = run_id("f.h", "/amqp", "m-1")
SAGA = "steps:\n" + "".join(
    f"  - {{id: s{n}, use: act, with: {{n: {n}}}, compensate: {{use: undo, with: {{n: {n}}}}}}}\n"
    for n in range(1, STEPS + 1)
)


class Crash(BaseException):
    """The process died."""


@dataclass
class World:
    """What the saga changes, and how many transitions it took: a commit or an effect, the moment before and after."""

    fails_at: int
    crashes_at: frozenset[int]
    transitions: int = 0
    crashes: int = 0
    effects: dict[str, str] = field(default_factory=dict)
    """Effect by idempotency key, in the order in which they first happened."""

    def transition(self) -> None:
        self.transitions += 1
        if self.transitions in self.crashes_at:
            self.crashes += 1
            raise Crash

    def happens(self, key: str, what: str) -> None:
        self.transition()
        assert self.effects.setdefault(key, what) == what, "one key, two effects"
        self.transition()

    def handlers(self) -> list[Any]:
        @handler("act")
        async def act(ctx: Context, *, n: int) -> None:
            if n == self.fails_at:
                raise TerminalError("no_luck")
            self.happens(ctx.idempotency_key, f"s{n}")

        @handler("undo")
        async def undo(ctx: Context, *, n: int) -> None:
            self.happens(ctx.idempotency_key, f"undo s{n}")

        return [act, undo]


@dataclass
class DyingStore:
    """The real store, in a process that dies before or after its commits."""

    store: Store
    world: World

    async def commit(self, change: Change) -> bool:
        self.world.transition()
        result = await self.store.commit(change)
        self.world.transition()
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


async def story(fails_at: int, *crashes_at: int) -> tuple[World, KitRun]:
    """Run the saga to its end; after each crash a new process takes up the run, or gets the message again."""
    world = World(fails_at, frozenset(crashes_at))
    body = SAGA + ("  - {fail: {type: no_luck, message: sorry}}\n" if fails_at == AFTER_ALL else "")

    def dying(store: Store) -> Store:
        return DyingStore(store, world)  # type: ignore[return-value]

    async with FlowKit(flow(body), world.handlers(), clock=FakeClock(), store=dying) as kit:
        while True:
            try:
                if not await kit.store.known(RUN):
                    await kit.send("go", {"n": 1}, ident="m-1")
                return world, await kit.finish(RUN)
            except Crash:
                assert world.crashes <= len(crashes_at)


def check(world: World, run: KitRun) -> None:
    done = [f"s{n}" for n in range(1, STEPS + 1) if not 0 < world.fails_at <= n]
    undone = [f"undo {step}" for step in reversed(done)] if world.fails_at else []
    assert list(world.effects.values()) == done + undone, "each once, and undone in reverse"
    wanted = RunState.COMPLETED if not world.fails_at else RunState.COMPENSATED if done else RunState.FAILED
    assert run.state is wanted
    assert len(run.undone) == len(undone)


async def test_a_crash_at_any_transition_ends_in_a_whole_or_an_undone_saga() -> None:
    crashes = 0
    for fails_at in range(AFTER_ALL + 1):
        calm, run = await story(fails_at)
        check(calm, run)
        for number in range(1, calm.transitions + 1):
            world, run = await story(fails_at, number)
            assert world.crashes == 1
            check(world, run)
            crashes += world.crashes
    record_row("a crash at every transition of a five-step saga", crashes, [whole(crashes)], [], "in virtual time")


@pytest.mark.parametrize("fails_at", [NOWHERE, AFTER_ALL])
async def test_nor_do_two_crashes_change_it(fails_at: int) -> None:
    calm, _ = await story(fails_at)
    for first, second in combinations(range(1, calm.transitions + 1), 2):
        if second - first < size(4, 100):
            check(*await story(fails_at, first, second))


def whole(sagas: int) -> Verdict:
    """What `check` has made sure of."""
    all_of_them, none = frozenset(range(sagas)), frozenset[int]()
    return Verdict(
        confirmed=all_of_them,
        finished=all_of_them,
        dead=none,
        lost=none,
        doubled=(),
        stuck=(),
        unsent=none,
        broken=(),
    )
