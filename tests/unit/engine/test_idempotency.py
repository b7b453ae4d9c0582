"""LANGUAGE §3, `idempotency`: of messages that say the same under other ids, one run begins."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from acting import Crash, CrashingStore, Gate, Service, undoable
from bench import Bench

from runner.engine.run import run_id
from runner.engine.worker import Worker
from runner.errors import EnvelopeError, RefusedError, RetryableError, TerminalError
from runner.records import DeadLetter, RunState
from runner.testing import FlowKit, KitRun

RUN = run_id("f.h", "/amqp", "m-1")
BUSY = RetryableError("busy")
NO = TerminalError("no_luck")


def keyed(steps: str, more: str = "") -> str:
    """A handler whose key is the payload's `k`, held for an hour."""
    return f'idempotency: {{key: "{{{{ event.k }}}}", ttl: 1h{more}}}\nsteps: [{steps}]'


async def begins(kit: FlowKit, key: Any = "k-1", ident: str | None = None) -> bool:
    """Whether a message with this key begins a run."""
    return await kit.send("go", {"k": key}, ident=ident) is not None


# --- one key, one run


async def test_two_messages_with_one_key_begin_one_run_and_with_two_keys_two() -> None:
    service = Service()
    async with service.kit(keyed(undoable("a"))) as kit:
        assert [await begins(kit, key) for key in ("k-1", "k-1", "k-2", "k-1", "K-1")] == [
            True,
            False,
            True,
            False,
            True,
        ]
    assert service.done == ["a"] * 3


async def test_the_key_is_held_while_its_run_goes_on_however_long() -> None:
    service = Service({"a": [BUSY]})
    async with service.kit(keyed(undoable("a", "retry: {max_attempts: unlimited, delay: 10d, max_delay: 10d}"))) as kit:
        assert await begins(kit)
        kit.clock.advance(3600 * 24)
        assert not await begins(kit)


ENDS = [
    pytest.param([{}], [], "", RunState.COMPLETED, False, id="completed"),
    pytest.param([NO], [], "", RunState.COMPENSATED, True, id="compensated"),
    pytest.param([NO], [], "irreversible", RunState.FAILED, True, id="failed"),
    pytest.param([NO], [], "pivot: true", RunState.FAILED, False, id="failed past the pivot"),
    pytest.param([NO], [NO], "", RunState.COMPENSATION_FAILED, False, id="compensation failed"),
]


@pytest.mark.parametrize(("answers", "undo", "a", "state", "is_free"), ENDS)
async def test_the_key_is_free_where_nothing_is_left_of_what_its_run_did(
    answers: list[Any], undo: list[Any], a: str, state: RunState, is_free: bool
) -> None:
    service = Service({"b": answers, "undo_a": undo} if undo else {"b": answers})
    first = "{id: a, use: act, with: {what: a}}" if a == "irreversible" else undoable("a", a)
    async with service.kit(keyed(f"{first}, {undoable('b')}")) as kit:
        ended = await kit.send("go", {"k": "k-1"})
        assert ended is not None
        assert ended.state is state
        assert await begins(kit) is is_free


@pytest.mark.parametrize("how", ["cancel", "kill"])
async def test_a_cancelled_run_sets_its_key_free(how: str) -> None:
    async with Service({"b": [BUSY]}).kit(keyed(f"{undoable('a')}, {undoable('b')}")) as kit:
        await begins(kit, ident="m-1")
        await getattr(kit, how)(RUN)
        assert await begins(kit)


@pytest.mark.parametrize("answer", [{}, NO], ids=["completed", "failed past the pivot"])
async def test_the_ttl_counts_from_the_end_of_the_run(answer: Any) -> None:
    service = Service({"b": [RetryableError("busy", retry_after_s=7200), answer]})
    async with service.kit(keyed(f"{undoable('a', 'pivot: true')}, {undoable('b')}")) as kit:
        await begins(kit, ident="m-1")
        await kit.finish(RUN)
        kit.clock.advance(3599)
        assert not await begins(kit)
        kit.clock.advance(1)
        assert await begins(kit)


async def test_a_run_that_got_a_key_after_its_ttl_holds_it_in_its_turn() -> None:
    async with Service().kit(keyed(undoable("a"))) as kit:
        for _ in range(3):
            assert await begins(kit)
            assert not await begins(kit)
            kit.clock.advance(3600)


# --- which key


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param(7, 7, True, id="numbers"),
        pytest.param(7, "7", True, id="a number and its text"),
        pytest.param(0, False, False, id="zero and false"),
        pytest.param({"a": 1}, {"a": 1}, True, id="objects"),
        pytest.param("x", "x ", False, id="spaces"),
        pytest.param("ß", "ss", False, id="letters"),
        pytest.param(0, 0, True, id="zero is a key"),
    ],
)
async def test_keys_are_the_same_if_their_texts_are(one: Any, other: Any, same: bool) -> None:
    async with Service().kit(keyed(undoable("a"))) as kit:
        assert await begins(kit, one)
        assert await begins(kit, other) is not same


@pytest.mark.parametrize("payload", [{}, {"k": ""}, {"k": None}], ids=["missing", "empty", "null"])
async def test_a_message_without_a_key_is_a_dead_letter(payload: dict[str, Any]) -> None:
    service = Service()
    async with service.kit(keyed(undoable("a"))) as kit:
        with pytest.raises(EnvelopeError, match="the idempotency key: ") as caught:
            await kit.send("go", payload)
    assert caught.value.reason == "expression"
    assert service.done == []


async def test_a_key_is_evaluated_only_for_messages_that_a_route_lets_in() -> None:
    source = """
flow: f
events: {go: {external: true, schema: {}}}
routes: [{on: go, when: event.wanted | default(false), to: h}]
handlers:
  h: {idempotency: {key: "{{ event.k }}"}, steps: [{use: act, with: {what: a}}]}
"""
    async with FlowKit(source, Service().handlers()) as kit:
        assert await kit.send("go", {}) is None
        with pytest.raises(EnvelopeError):
            await kit.send("go", {"wanted": True})


async def test_the_same_message_is_known_by_its_id_whatever_has_become_of_its_key() -> None:
    service = Service({"b": [NO]})
    async with service.kit(keyed(f"{undoable('a')}, {undoable('b')}")) as kit:
        assert await begins(kit, ident="m-1")
        assert not await begins(kit, ident="m-1")
        assert await begins(kit, ident="m-2")


# --- crashes


@pytest.mark.parametrize("crash", [(n, moment) for n in (1, 2, 3) for moment in ("before", "after")])
async def test_a_crash_neither_loses_the_key_nor_holds_it_for_nobody(crash: tuple[int, str]) -> None:
    def crashing(store: Any) -> Any:
        return CrashingStore(store, {crash})

    service = Service()
    async with service.kit(keyed(f"{undoable('a')}, {undoable('b')}"), store=crashing) as kit:
        with pytest.raises(Crash):
            await begins(kit, ident="m-1")
        stands = await kit.store.known(RUN)
        assert await begins(kit, ident="m-2") is not stands, "before the first commit, another may come first"
        if stands:
            await kit.finish(RUN)
        assert len(await kit.store.runs(limit=10, state="completed")) == 1
    assert stands or service.done == ["a", "b"], "the key is its own before the first effect"


# --- retry


async def test_a_run_whose_key_another_has_now_is_not_retried() -> None:
    service = Service({"b": [NO, {}]})
    async with service.kit(keyed(f"{undoable('a')}, {undoable('b')}")) as kit:
        await begins(kit, ident="m-1")
        await begins(kit, ident="m-2")
        holder = run_id("f.h", "/amqp", "m-2")
        with pytest.raises(RefusedError, match=f"run {holder} has its idempotency key k-1 now"):
            await kit.retry(RUN)


@pytest.mark.parametrize("first", ["{id: a, use: act, with: {what: a}}", undoable("a")], ids=["go on", "begin anew"])
async def test_a_retried_run_holds_its_key_again(first: str) -> None:
    gate = Gate()
    service = Service({"b": [NO, gate]})
    async with service.kit(keyed(f"{first}, {undoable('b')}")) as kit:
        await begins(kit, ident="m-1")
        retrying = asyncio.create_task(kit.retry(RUN))
        await gate.entered.wait()
        assert not await begins(kit)
        gate.opened.set()
        assert (await retrying).state is RunState.COMPLETED
        assert not await begins(kit)


async def test_a_run_past_its_pivot_is_retried_although_it_holds_its_own_key() -> None:
    service = Service({"b": [NO, {}]})
    async with service.kit(keyed(f"{undoable('a', 'pivot: true')}, {undoable('b')}")) as kit:
        await begins(kit, ident="m-1")
        assert (await kit.retry(RUN)).state is RunState.COMPLETED


async def test_a_key_that_another_had_and_that_is_free_again_does_not_keep_a_run_from_being_retried() -> None:
    service = Service({"b": [NO, {}]})
    async with service.kit(keyed(f"{{use: act, with: {{what: a}}}}, {undoable('b')}")) as kit:
        await begins(kit, ident="m-1")
        await begins(kit, ident="m-2")
        kit.clock.advance(3600)
        retried: KitRun = await kit.retry(RUN)
        assert retried.state is RunState.COMPLETED
        assert not await begins(kit)


# --- in a worker


FLOW = """
flow: f
events: {e: {external: true}, other: {external: true}}
routes: [{on: e, to: [h, twin]}, {on: other, to: strict}]
handlers:
  h: &handler
    idempotency: {key: "{{ event.k }}"}
    steps: [{use: act, with: {what: one, k: "{{ event.k }}"}}, {use: act, with: {what: two}}]
  twin: *handler
  strict:
    idempotency: {key: "{{ event.k }}", on_duplicate: fail}
    steps: [{use: act, with: {what: strict}}]
"""


class Desk:
    """A worker for FLOW, and its service."""

    def __init__(self) -> None:
        self.service = Service()
        self.bench = Bench(FLOW, self.service.handlers())

    def open(self) -> AbstractAsyncContextManager[Worker]:
        return self.bench.working()

    async def letters(self) -> list[DeadLetter]:
        return list(await self.bench.store.dead_letters(limit=100))


async def test_of_many_messages_with_one_key_at_once_each_handler_begins_one_run_and_has_one_effect() -> None:
    desk = Desk()
    async with desk.open() as worker:
        await desk.bench.send(*(f"m-{n}" for n in range(20)), payload={"k": "k-1"})
        await desk.bench.until_idle(worker)
        assert len(await desk.bench.store.runs(limit=100)) == 2
        assert await desk.letters() == []
        assert worker.counts.duplicates == 38
    assert sorted(desk.service.done) == ["one", "one", "two", "two"], "keys of two handlers do not meet"


async def test_on_duplicate_fail_makes_it_a_dead_letter_that_names_the_holder() -> None:
    desk = Desk()
    async with desk.open() as worker:
        await desk.bench.send("m-1", event="other", payload={"k": 7})
        await desk.bench.until_idle(worker)
        await desk.bench.send("m-2", "m-1", event="other", payload={"k": 7})
        await desk.bench.until_idle(worker)
        [letter] = await desk.letters()
        assert (letter.reason, letter.message_id, letter.handler) == ("duplicate", "m-2", "f.strict")
        holder = run_id("f.strict", "/amqp", "m-1")
        assert letter.error.message == f"run {holder} has the idempotency key 7"
        assert (worker.counts.duplicates, worker.counts.dead_letters) == (1, 1), "m-1 again is the same message"
    assert desk.service.done == ["strict"]


async def test_of_strict_messages_at_once_one_runs_and_all_others_are_dead_letters() -> None:
    desk = Desk()
    async with desk.open() as worker:
        await desk.bench.send(*(f"m-{n}" for n in range(10)), event="other", payload={"k": "k"})
        await desk.bench.until_idle(worker)
        assert [letter.reason for letter in await desk.letters()] == ["duplicate"] * 9
    assert desk.service.done == ["strict"]


async def test_in_a_worker_too_a_message_without_a_key_harms_no_other() -> None:
    desk = Desk()
    async with desk.open() as worker:
        await desk.bench.send("m-1", payload={})
        await desk.bench.send("m-2", payload={"k": "k"})
        await desk.bench.until_idle(worker)
        assert sorted((letter.handler, letter.reason) for letter in await desk.letters()) == [
            ("f.h", "expression"),
            ("f.twin", "expression"),
        ]
    assert len(desk.service.done) == 4
