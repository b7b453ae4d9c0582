"""An `emit` that expects a version of its subject: all of it or nothing, whoever else writes, whenever it crashes."""

from __future__ import annotations

from typing import Any

import pytest
from acting import Crash, CrashingStore, Service

from runner.message import decode_json
from runner.records import EventFilter, RunState
from runner.testing import FlowKit, KitRun

EXPECTING = """
steps:
  - {id: a, emit: numbered, with: {n: x}, expected_version: "{{ event.version }}"}
  - {use: act, with: {what: after}}
"""


async def log_of(kit: FlowKit) -> list[tuple[int | None, Any]]:
    events = await kit.store.events(EventFilter(subject="x"), limit=99)
    return [(event.version, decode_json(event.data)) for event in events]


async def send(kit: FlowKit, version: Any, ident: str = "m") -> KitRun:
    run = await kit.send("go", {"version": version}, ident=ident)
    assert run is not None
    return run


async def test_who_knows_the_version_writes_the_next_one() -> None:
    async with Service().kit(EXPECTING) as kit:
        for version in (0, 1, 2):
            run = await send(kit, version, f"m-{version}")
            assert run.state is RunState.COMPLETED
            assert run.emitted == (("numbered", {"n": "x"}),)
        assert [version for version, _ in await log_of(kit)] == [1, 2, 3]


@pytest.mark.parametrize("version", [0, 2])
async def test_who_does_not_fails_with_what_was_there_and_writes_nothing(version: int) -> None:
    service = Service()
    async with service.kit(EXPECTING) as kit:
        await send(kit, 0, "first")
        run = await send(kit, version, "second")
        error = run.stored.error
        assert error is not None
        assert (run.state, error.type, error.retryable, error.step) == (RunState.FAILED, "version_conflict", True, "a")
        assert error.details == {"subject": "x", "expected": version, "actual": 1}
        assert run.emitted == ()
        assert len(await log_of(kit)) == 1
        assert service.done == ["after"]  # of the first


async def test_a_conflict_can_be_caught() -> None:
    body = """
    steps:
      - {id: a, emit: numbered, with: {n: x}, expected_version: 7,
         catch: [{on: [version_conflict], do: [{emit: told, with: {actual: "{{ error.details.actual }}"}}]}]}
    """
    async with Service().kit(body) as kit:
        run = await send(kit, 0)
        assert run.state is RunState.COMPLETED
        assert run.emitted == (("told", {"actual": 0}),)


async def test_what_the_run_itself_has_emitted_before_counts() -> None:
    body = """
    steps:
      - {emit: numbered, with: {n: x}}
      - {id: a, emit: numbered, with: {n: x}, expected_version: 1}
      - {emit: numbered, with: {n: x}, expected_version: "{{ 2 }}"}
    """
    async with Service().kit(body) as kit:
        assert (await send(kit, 0)).state is RunState.COMPLETED
        assert [version for version, _ in await log_of(kit)] == [1, 2, 3]


@pytest.mark.parametrize("version", ["1", 1.5, True, None, -1])
async def test_what_is_no_version_is_invalid_input(version: Any) -> None:
    async with Service().kit(EXPECTING) as kit:
        error = (await send(kit, version)).stored.error
        assert error is not None
        assert error.type == "invalid_input"


async def test_of_many_who_expect_the_same_version_one_gets_it() -> None:
    body = """
    steps:
      - id: many
        parallel:
          branches:
            a: [{emit: numbered, with: {n: x}, expected_version: 0, catch: [{do: []}]}]
            b: [{emit: numbered, with: {n: x}, expected_version: 0, catch: [{do: []}]}]
            c: [{emit: numbered, with: {n: x}, expected_version: 0, catch: [{do: []}]}]
    """
    async with Service().kit(body) as kit:
        assert (await send(kit, 0)).state is RunState.COMPLETED
        assert [version for version, _ in await log_of(kit)] == [1]


async def test_a_crash_before_or_after_any_commit_writes_it_once() -> None:
    for at in range(1, 9):
        for when in ("before", "after"):
            crashing: list[CrashingStore] = []

            def wrap(store: Any, at: int = at, when: str = when, made: list[CrashingStore] = crashing) -> Any:
                made.append(CrashingStore(store, {(at, when)}))
                return made[-1]

            service = Service()
            async with service.kit(EXPECTING, store=wrap) as kit:
                run_id = None
                try:
                    run_id = (await send(kit, 0)).stored.started.run_id
                except Crash:
                    stored = await kit.store.runs(limit=1)
                    if stored:
                        run_id = stored[0].id
                        await kit.finish(run_id)
                    else:
                        run_id = (await send(kit, 0)).stored.started.run_id
                run = await kit.look(run_id)
                assert run.state is RunState.COMPLETED
                assert [version for version, _ in await log_of(kit)] == [1]
                assert run.emitted == (("numbered", {"n": "x"}),)
