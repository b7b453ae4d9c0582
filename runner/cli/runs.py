"""`flowrun runs`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from runner.app import standing_store
from runner.cli import options, output, story
from runner.errors import NotFoundError
from runner.ports import AnyStore
from runner.records import (
    RunState,
    RunSummary,
    StepFinished,
    StoredRun,
    UndoFinished,
)
from runner.settings import load_settings

T = TypeVar("T")


@click.group("runs")
def command() -> None:
    """The transaction log: what ran, how, and how it ended."""


@command.command("list")
@click.option("--state", type=click.Choice([str(s) for s in RunState]), help="Only runs in this state.")
@click.option("--handler", help="Only runs of this handler (flow.handler).")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="At most so many.")
@options.project_dir
@options.store
@options.as_json
def list_command(
    state: str | None, handler: str | None, limit: int, root: Path, store: str | None, as_json: bool
) -> None:
    """List runs, newest first."""
    runs = _with_store(root, store, lambda s: s.runs(limit=limit, state=state, handler=handler))
    if as_json:
        output.echo(output.json_value([_summary_json(run) for run in runs]))
        return
    if not runs:
        output.echo("No runs.")
        return
    rows = [
        (
            story.short(run.id),
            run.handler,
            str(run.state),
            str(run.trigger["type"]),
            run.trigger["subject"] or "-",
            run.started_at,
            run.error.type if run.error is not None else "",
        )
        for run in runs
    ]
    for line in output.table(["RUN", "HANDLER", "STATE", "EVENT", "SUBJECT", "STARTED", "ERROR"], rows):
        output.echo(line)


@command.command("show")
@click.argument("run_id", metavar="RUN")
@options.project_dir
@options.store
@options.as_json
def show_command(run_id: str, root: Path, store: str | None, as_json: bool) -> None:
    """Show one run as a timeline. RUN is its id, or the beginning of it."""
    run = _with_store(root, store, lambda s: s.run(run_id))
    if run is None:
        raise NotFoundError(f'there is no run "{run_id}"', hint="flowrun runs list shows them")
    if as_json:
        output.echo(output.json_value(_run_json(run)))
        return
    for line in story.timeline(run):
        output.echo(line)


def _with_store(root: Path, store: str | None, ask: Callable[[AnyStore], Awaitable[T]]) -> T:
    """Ask the project's store something."""
    settings = load_settings(root, store=store)

    async def go() -> T:
        async with standing_store(settings) as opened:
            return await ask(opened)

    return asyncio.run(go())


def _summary_json(run: RunSummary) -> dict[str, Any]:
    return {**msgspec.structs.asdict(run), "error": output.error_json(run.error)}


def _run_json(run: StoredRun) -> dict[str, Any]:
    started = run.started
    meta = started.trigger
    return {
        "id": started.run_id,
        "flow": started.flow,
        "handler": started.handler,
        "state": run.state,
        "trigger": {"id": meta.id, "type": meta.type, "source": meta.source, "subject": meta.subject},
        "started_at": started.started_at,
        "finished_at": run.finished_at,
        "error": output.error_json(run.error),
        "steps": [_step_json(r) for r in run.records if isinstance(r, StepFinished)],
        "compensations": [_step_json(r) for r in run.records if isinstance(r, UndoFinished)],
    }


def _step_json(record: StepFinished | UndoFinished) -> dict[str, Any]:
    return {
        "id": record.step_id,
        "action": record.action,
        "state": record.state,
        "attempts": record.attempts,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "output": record.output,
        "error": output.error_json(record.error),
    }
