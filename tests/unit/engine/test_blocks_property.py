"""Random programs of nested blocks: whatever a crash or a cancellation interrupts, what was done is accounted for."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from acting import Crash, CrashingStore, flow

from runner.engine.matching import patterns_of
from runner.errors import RefusedError, RetryableError, TerminalError
from runner.handler import Context, handler
from runner.plan import Parallel, Program, Step, walk
from runner.records import Change, Error, RunFailed, StepFinished, StepState, UndoFinished
from runner.testing import FlowKit, KitRun

UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SEEDS = (*range(10), 52)
BAD = ("failed", "compensated", "compensation_failed", "cancelled")


@dataclass
class Maker:
    """Draws a program. `fates` says what becomes of each thing that it does. In a calm one nothing fails or races, so
    that its end does not depend on what came first."""

    random: Random
    calm: bool
    fates: dict[str, str] = field(default_factory=dict)

    def steps(self, depth: int) -> list[dict[str, Any]]:
        return [self.step(depth) for _ in range(self.random.randint(1, 3))]

    def step(self, depth: int) -> dict[str, Any]:
        kinds = ["act"] * 5 + ["ask", "wait", "emit", "set", "hear"]
        kinds += ["parallel"] * 3 + ["foreach"] * 2 + ["switch"] if depth > 0 else []
        kinds += [] if self.calm else ["fail", "stop"] if self.random.random() < 0.3 else []
        step: dict[str, Any] = getattr(self, self.random.choice(kinds))(depth)
        if not self.calm and self.random.random() < 0.12:
            step["catch"] = [{"do": self.steps(depth - 1) if self.random.random() < 0.7 else []}]
        return step

    def fate(self, wrong: float = 0.1) -> str:
        name, drawn = f"s{len(self.fates)}", self.random.random()
        self.fates[name] = "weak" if drawn > 0.85 else "wrong" if drawn < wrong and not self.calm else "good"
        return name

    def act(self, depth: int) -> dict[str, Any]:
        name = self.fate()
        drawn = {"what": name, "id": "{{ uuid() }}", "at": "{{ now() }}", "n": "{{ vars.n }}"}
        return {"id": name, "use": "act", "with": drawn} | self.undo()

    def ask(self, depth: int) -> dict[str, Any]:
        name = self.fate()
        return {"id": name, "command": "ask", "with": {"what": name}, "retry": {"max_attempts": 2}} | self.undo()

    def undo(self) -> dict[str, Any]:
        if self.random.random() < 0.4:
            return {}
        name = self.fate(0.0 if self.random.random() < 0.8 else 0.3)
        how = {"command": "ask"} if self.random.random() < 0.2 else {"use": "act"}
        attempted = {"if": "attempted"} if self.random.random() < 0.3 else {}
        return {"compensate": how | {"with": {"what": name}} | attempted}

    def until(self) -> dict[str, str]:
        """Of which nobody can tell beforehand that it is later than a timeout around it."""
        return {"until": f"now() | plus('{self.random.randint(1, 40)}s')"}

    def wait(self, depth: int) -> dict[str, Any]:
        return {"wait": self.until()}

    def hear(self, depth: int) -> dict[str, Any]:
        wait = {"wait_for": {"event": "answer", **self.until()}}
        return wait | ({"catch": [{"do": []}]} if self.calm or self.random.random() < 0.7 else {})

    def emit(self, depth: int) -> dict[str, Any]:
        return {"emit": "told", "with": {}}

    def set(self, depth: int) -> dict[str, Any]:
        return {"set": {"n": "{{ vars.n + 1 }}"}}

    def fail(self, depth: int) -> dict[str, Any]:
        return {"fail": {"type": "meant", "message": "so"}}

    def stop(self, depth: int) -> dict[str, Any]:
        return {"stop": True}

    def switch(self, depth: int) -> dict[str, Any]:
        return {"switch": [{"when": "vars.n > 1", "do": self.steps(depth - 1)}], "default": self.steps(depth - 1)}

    def parallel(self, depth: int) -> dict[str, Any]:
        branches = {name: self.steps(depth - 1) for name in "abc"[: self.random.randint(2, 3)]}
        how = "any" if not self.calm and self.random.random() < 0.5 else "all"
        return {"parallel": {"branches": branches, "wait": how}} | self.timeout()

    def foreach(self, depth: int) -> dict[str, Any]:
        loop = {"in": f"range({self.random.randint(0, 4)})", "do": self.steps(depth - 1)}
        until = {"until": "item == 1"} if not self.calm and self.random.random() < 0.3 else {}
        return {"foreach": loop | {"concurrency": self.random.randint(1, 3)} | until} | self.timeout()

    def timeout(self) -> dict[str, Any]:
        return {} if self.calm or self.random.random() < 0.8 else {"timeout": f"{self.random.randint(5, 50)}s"}


@dataclass
class World:
    """What is outside of the flow: it does as `fates` says, and remembers what it was asked, by idempotency key."""

    fates: dict[str, str]
    cancel_at: int = 0
    drain_at: int = 0
    calls: list[tuple[str, int, Any]] = field(default_factory=list)
    kit: FlowKit | None = None
    cancelling: asyncio.Task[None] | None = None
    answered: set[str] = field(default_factory=set)

    def handlers(self) -> list[Any]:
        @handler("act")
        async def act(ctx: Context, *, what: str, **drawn: Any) -> Any:
            self.calls.append((ctx.idempotency_key, ctx.attempt, drawn))
            if len(self.calls) == self.cancel_at and self.kit is not None:
                self.cancelling = asyncio.create_task(self.cancel(self.kit, ctx.run_id))
            if len(self.calls) == self.drain_at and self.kit is not None:
                self.kit.draining = True
            await asyncio.sleep(0)
            fate = self.fates[what]
            if fate == "wrong":
                raise TerminalError("broken")
            if fate == "weak" and ctx.attempt == 1:
                raise RetryableError("busy")
            return what

        return [act]

    async def cancel(self, kit: FlowKit, run_id: str) -> None:
        """As `FlowKit.cancel`, but who plays goes on with it."""
        try:
            await kit._hand().cancel((await kit.look(run_id)).stored)
        except RefusedError:
            return
        request = (await kit.store.requests()).get(run_id)
        if request is not None and run_id in kit._going_on:
            kit._going_on[run_id][0].interrupt(request)

    async def answer(self, kit: FlowKit) -> None:
        """Once each time that a command went out."""
        for sent in kit.sent:
            if sent.id not in self.answered:
                self.answered.add(sent.id)
                is_wrong = self.fates[sent.payload["what"]] == "wrong"
                error = Error(type="broken", message="", retryable=False) if is_wrong else None
                await kit.answer(sent.id, None if is_wrong else sent.payload["what"], error=error)


@dataclass
class End:
    """How it ended, after how many commits."""

    run: KitRun
    program: Program
    world: World
    commits: int


def text_of(steps: list[dict[str, Any]]) -> str:
    body = f"timeout: 1h\nretry: {{delay: 7s, jitter: none}}\nsteps: {json.dumps([{'set': {'n': 0}}, *steps])}"
    body += "\non_failure: [{parallel: {branches: {a: [{use: act, with: {what: last}}], b: [{wait: 1s}]}}}]"
    return flow(body).replace("routes:", "commands: {ask: {schema: {}, reply: {}, external: true}}\nroutes:")


async def play(
    text: str,
    fates: dict[str, str],
    *,
    crash: tuple[int, str] | None = None,
    suspect: bool = False,
    cancel_at: int = 0,
    drain_at: int = 0,
) -> End:
    """Run it to its end. A process dies at that commit, or drains at that effect, and the next takes it up."""
    world, stores = World({**fates, "last": "good"}, cancel_at, drain_at), []

    def crashing(store: Any) -> CrashingStore:
        stores.append(CrashingStore(store, set() if crash is None else {crash}))
        return stores[0]

    async with asyncio.timeout(20), FlowKit(text, world.handlers(), store=crashing) as kit:
        world.kit = kit if cancel_at else None
        for _ in range(2):
            try:
                await kit.send("go", {}, ident="once")
                break
            except Crash:
                continue
        [row] = await kit.store.runs(limit=1)
        if stores[0].count == (crash or (0, ""))[0] and suspect:
            await blame(kit, row.id)
        for turn in range(400):
            kit.draining = False
            run = await kit.look(row.id)
            if run.state.is_final:
                break
            if turn == 1 and patterns_of([kit.plan]):
                await kit.arrive("answer", {})
            await world.answer(kit)
            try:
                await kit._resume_next(run)
            except Crash:
                if suspect:
                    await blame(kit, row.id)
        else:
            raise AssertionError("it has no end")
        if world.cancelling is not None:
            await world.cancelling
        return End(await kit.look(row.id), next(iter(kit.plan.programs.values())), world, stores[0].count)


async def blame(kit: FlowKit, run_id: str) -> None:
    """A process has died with it, and that is counted."""
    stored = await kit.store.seize(run_id)
    assert stored is not None
    if not stored.state.is_final:
        await kit.store.commit(Change(run_id=run_id, state=stored.state, error=stored.error, suspect=True))


def losers(end: End) -> Iterator[str]:
    """The places of branches that have lost."""
    every = {step.id: step for step in walk(end.program.steps)}
    for key, record in end.run.steps.items():
        step = every.get(key.partition("[")[0])
        if isinstance(step, Parallel) and step.wait == "any" and "winner" in (record.output or ()):
            rounds = key[len(step.id) :]
            for name, branch in step.branches.items():
                if name != record.output["winner"]:
                    yield from (each.id + "|" + rounds for each in walk(branch))


def check(end: End) -> None:
    """What is always so."""
    run, records = end.run, end.run.stored.records
    finished = [r for r in records if isinstance(r, StepFinished)]
    undone = [r for r in records if isinstance(r, UndoFinished)]
    assert len({r.step_id for r in finished}) == len(finished), "no step ends twice"
    assert len({r.step_id for r in undone}) == len(undone), "nothing is undone twice"
    every = {step.id: step for step in walk(end.program.steps)}
    lost = {tuple(place.split("|")) for place in losers(end)}
    must, may = [], set()
    for record in finished:
        step_id, rounds = base(record.step_id)
        step = every.get(step_id)
        is_lost = any(step_id == at and rounds.startswith(within) for at, within in lost)
        for undo in step.undo if step is not None else ():
            if run.state in BAD or is_lost:
                may.add(undo.step.id + rounds)
                if record.state is StepState.COMPLETED:
                    must.append(undo.step.id + rounds)
                elif not undo.attempted:
                    may.discard(undo.step.id + rounds)
    done = [r.step_id for r in undone]
    is_stopped = any(r.action == "stop" for r in finished)
    assert set(must) <= set(done), f"not undone: {set(must) - set(done)}"
    if not is_stopped and "catch" not in {kind(step) for step in every.values()}:
        assert set(done) <= may, f"undone without need: {set(done) - may}"
    if not lost and run.state in BAD:
        assert [key for key in since_failure(end) if key in must] == [
            key for key in must[::-1] if key in since_failure(end)
        ], "in reverse order of completion"
    for key, _, drawn in end.world.calls:
        same = [other for at, _, other in end.world.calls if at == key]
        assert all(other == drawn for other in same), f"{key} was asked with other values"
        step_id = key.partition("/")[2]
        is_known = step_id in {r.step_id for r in (*finished, *undone)}
        assert is_known or is_stopped, f"{step_id} was done and is not known"


def since_failure(end: End) -> list[str]:
    records = end.run.stored.records
    first = next(number for number, record in enumerate(records) if isinstance(record, RunFailed))
    return [record.step_id for record in records[first:] if isinstance(record, UndoFinished)]


def kind(step: Step) -> str:
    return "catch" if step.catches else step.action


def base(key: str) -> tuple[str, str]:
    step_id = key.partition("[")[0]
    return step_id, key[len(step_id) :]


def seen(end: End) -> Any:
    """What must be the same whenever a process died."""
    steps = sorted((key, str(r.state), UUID.sub("", json.dumps(r.output))) for key, r in end.run.steps.items())
    return end.run.state, steps, len(end.run.emitted), sorted({key for key, _, _ in end.world.calls})


def program(seed: int, *, calm: bool) -> tuple[str, dict[str, str]]:
    maker = Maker(Random(f"{seed} {calm}"), calm)
    text = text_of(maker.steps(3))
    return text, maker.fates


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("calm", [True, False])
async def test_after_a_crash_at_some_commit_all_is_accounted_for(seed: int, calm: bool) -> None:
    text, fates = program(seed, calm=calm)
    whole = await play(text, fates)
    check(whole)
    random = Random(seed)
    crashes = [(number, moment) for number in range(1, whole.commits + 1) for moment in ("before", "after")]
    for crash in random.sample(crashes, min(len(crashes), 8)):
        end = await play(text, fates, crash=crash, suspect=random.random() < 0.5)
        check(end)
        if calm and "wait_for" not in text:
            assert seen(end) == seen(whole), f"crash {crash}"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("how", ["cancel_at", "drain_at"])
async def test_a_run_that_is_cancelled_or_put_down_at_some_effect_accounts_for_all(seed: int, how: str) -> None:
    text, fates = program(seed, calm=False)
    effects = len((await play(text, fates)).world.calls)
    for number in Random(seed).sample(range(1, effects + 1), min(effects, 4)):
        moment = {how: number}
        check(await play(text, fates, **moment))
