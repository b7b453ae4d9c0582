"""`flowrun diff --live`: what a store and a broker hold that the new files cannot serve. No message is taken out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from runner.app import Project, compile_kept, standing_store
from runner.cli import difference
from runner.lang.evolution.changes import Change, Level, Side
from runner.lang.evolution.compare import compare
from runner.lang.load import Sources
from runner.plan import Difference, Emit, Send
from runner.ports import AnyStore
from runner.records import RunState, StepFinished, StoredRun, UndoFinished
from runner.settings import Settings

MANY = 1000
"""As many runs of a state are looked at, the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Runs of a handler that are not over (`ids`), or messages in a queue, and what becomes of them."""

    kind: Literal["runs", "messages"]
    name: str
    level: Level
    text: str
    count: int
    ids: tuple[str, ...] = ()


async def look(settings: Settings, new: Project, present: Side, changes: Sequence[Change]) -> list[Held]:
    """What the new files cannot serve; `changes` are those from the old ones.

    Raises StoreError, TransportError, and NotFoundError if there is no store yet.
    """
    async with standing_store(settings) as store:
        runs = await _runs(store, new, present)
    planned, left_over = await difference.compare(settings, new.plan)
    return [*runs, *_left(left_over), *_queued(planned, new, changes)]


# --- runs


async def _runs(store: AnyStore, new: Project, present: Side) -> list[Held]:
    """A run goes on by the plan that it began with, and meets the new files where it calls a plugin, sends a command,
    or emits what a handler takes."""
    kept = {of: texts for of, texts in (await store.unfinished_plans()).items() if of not in new.plan.sources}
    found: dict[tuple[str, Level, str], list[str]] = {}
    changes = {plan_hash: _since(texts, new, present) for plan_hash, texts in kept.items()}
    for run in await _unfinished(store) if kept else ():
        if run.started.plan_hash in kept:
            for level, text in _met(run, *changes[run.started.plan_hash]):
                found.setdefault((run.started.handler, level, text), []).append(run.started.run_id)
    return [
        Held(kind="runs", name=handler, level=level, text=text, count=len(ids), ids=tuple(ids))
        for (handler, level, text), ids in found.items()
    ]


async def _unfinished(store: AnyStore) -> list[StoredRun]:
    summaries = [
        summary for state in RunState if not state.is_final for summary in await store.runs(limit=MANY, state=state)
    ]
    runs = [await store.run(summary.id) for summary in summaries]
    return [run for run in runs if run is not None]


def _since(texts: Mapping[str, str], new: Project, present: Side) -> tuple[Side | None, list[Change]]:
    """The state of the project by files of before, None if they do not compile any more; and what changed since."""
    assert new.registry is not None
    compilation = compile_kept(texts, new.plan.project, new.registry)
    if compilation.plan is None:
        return None, [
            Change(
                kind="run",
                name="",
                level="breaking",
                text=f"cannot go on: {fault.code}, {fault.summary} ({fault.span} when they began)",
                span=fault.span,
                in_old=True,
            )
            for fault in compilation.diagnostics
            if fault.is_error
        ]
    side = Side.of(compilation, Sources(None, texts))
    return side, list(compare(side, present))


def _met(run: StoredRun, side: Side | None, changes: Iterable[Change]) -> Iterator[tuple[Level, str]]:
    """What a run may meet in the steps that are not over."""
    if side is None:
        yield from ((change.level, change.text) for change in changes)
        return
    over = {record.step_id for record in run.records if isinstance(record, StepFinished | UndoFinished)}
    left = [step for step in side.plan.programs[run.started.handler].every.values() if step.id not in over]
    sends = {step.command for step in left if isinstance(step, Send)}
    emits = {step.event for step in left if isinstance(step, Emit)}
    for change in changes:
        pointer = "" if change.pointer is None else f"{change.pointer or 'the payload'} "
        what = f"{change.name}: {pointer}{change.text}"
        match change.kind, change.direction:
            case ("command", _) | ("request", "backward") if change.level != "compatible" and change.name in sends:
                yield change.level, f"may yet send {what}"
            case "reply", "forward" if change.level != "compatible" and change.name in sends:
                yield change.level, f"may yet get the reply of {what}"
            case "event", "backward" if change.level != "compatible" and change.name in emits:
                yield change.level, f"may yet emit {what}"


# --- messages


def _left(left_over: Iterable[Difference]) -> Iterator[Held]:
    for queue in left_over:
        if queue.kind == "queue" and queue.messages:
            yield Held(
                kind="messages", name=queue.name, level="breaking", text="nobody reads them", count=queue.messages
            )


def _queued(planned: Iterable[Difference], new: Project, changes: Sequence[Change]) -> Iterator[Held]:
    """What waits in the queue of a handler that a change hits. It is not read: that would count as a delivery."""
    depths = {each.name: each.messages for each in planned if each.kind == "queue" and each.messages}
    for program in new.plan.programs.values():
        hit = [change for change in changes if change.level != "compatible" and _is_hit(program.name, change)]
        if hit and program.queue in depths:
            names = ", ".join(sorted({change.name for change in hit}))
            text = f"may not be served, or passed over, because of what changed: {names}"
            yield Held(
                kind="messages", name=program.queue, level="unknown", text=text, count=depths[program.queue] or 0
            )


def _is_hit(handler: str, change: Change) -> bool:
    is_read = change.direction == "backward" and change.kind in ("event", "request")
    return handler in change.hits and (is_read or change.kind == "route" or _is_event_gone(change))


def _is_event_gone(change: Change) -> bool:
    return change.kind == "event" and change.direction is None
