"""`flowrun runs`."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from runner.app import standing_store
from runner.cli import options, output, show_error, story
from runner.cli.compiled import compiled
from runner.engine.control import Hand, began_anew_as, may_cancel, may_kill, may_retry
from runner.errors import NotFoundError, RefusedError
from runner.message import REPLAY, decode_json
from runner.ports import AnyStore
from runner.records import (
    Error,
    Intervention,
    RunState,
    RunSummary,
    StepFinished,
    StoredRun,
    UndoFinished,
)
from runner.settings import load_settings

EVERY = 1_000_000

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@click.group("runs")
def command() -> None:
    """The transaction log: what ran, how, and how it ended."""


@command.command("list")
@click.option("--state", type=click.Choice([str(s) for s in RunState]), help="Only runs in this state.")
@click.option("--handler", help="Only runs of this handler (flow.handler).")
@click.option("--error", help="Only runs whose error has this type, like http.503 or http.*.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="At most so many.")
@options.project_dir
@options.store
@options.as_json
def list_command(
    state: str | None,
    handler: str | None,
    error: str | None,
    limit: int,
    root: Path,
    store: str | None,
    as_json: bool,
) -> None:
    """List runs, newest first."""
    runs = _with_store(root, store, lambda s: s.runs(limit=limit, state=state, handler=handler, error=error))
    if as_json:
        output.echo(output.json_value([_summary_json(run) for run in runs]))
        return
    if not runs:
        output.echo("No runs.")
        return
    _print_table(
        (run.id, run.handler, run.state, run.trigger["type"], run.trigger["subject"], run.started_at, run.error)
        for run in runs
    )


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


# --- doing


def _choosing(verb: str, states: Sequence[RunState]) -> Callable[[F], F]:
    """The arguments and options by which runs are chosen."""
    which = ", ".join(map(str, states))

    def decorate(function: F) -> F:
        for option in (
            click.argument("run_ids", metavar="[RUN]...", nargs=-1),
            click.option("--state", type=click.Choice([str(s) for s in states]), help="Only runs in this state."),
            click.option("--handler", help="Only runs of this handler (flow.handler)."),
            click.option("--error", help="Only runs whose error has this type, like http.503 or http.*."),
            click.option("--all", "everything", is_flag=True, help=f"All that are {which} and fit the filters."),
            click.option("--reason", help="Why: it is kept with the run."),
            click.option("--dry-run", is_flag=True, help=f"Say which runs there are to {verb}, and do nothing."),
        ):
            function = option(function)
        return options.project_dir(options.store(function))

    return decorate


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """Which runs a command line names: by id, or by filters among `states`."""

    run_ids: tuple[str, ...]
    state: str | None
    handler: str | None
    error: str | None
    everything: bool
    states: Sequence[RunState]
    but: Callable[[StoredRun], bool] = lambda run: False
    """Which of those that filters find are left alone."""

    def __post_init__(self) -> None:
        filters = self.everything or self.state or self.handler or self.error
        if self.run_ids and filters:
            raise click.UsageError("name runs by id, or choose them by --state, --handler, --error or --all")
        if not (self.run_ids or filters):
            raise click.UsageError("which ones? name their ids, or say --state, --handler, --error or --all")

    async def runs(self, store: AnyStore) -> list[StoredRun]:
        """Those that there are. Raises NotFoundError."""
        ids = list(self.run_ids)
        for state in () if ids else [self.state] if self.state is not None else map(str, self.states):
            found = await store.runs(limit=EVERY, state=state, handler=self.handler, error=self.error)
            ids += [run.id for run in found]
        runs = [await store.run(run_id) for run_id in ids]
        for run_id, run in zip(ids, runs, strict=True):
            if run is None:
                raise NotFoundError(f'there is no run "{run_id}"', hint="flowrun runs list shows them")
        there = [run for run in runs if run is not None]
        return there if self.run_ids else [run for run in there if began_anew_as(run) is None]

    def split(self, runs: Sequence[StoredRun]) -> tuple[list[StoredRun], list[StoredRun]]:
        """Those to act on, and those that only an id chooses."""
        left = [] if self.run_ids else [run for run in runs if self.but(run)]
        return [run for run in runs if run not in left], left


_FAILED = (RunState.FAILED, RunState.COMPENSATION_FAILED)
_UNDONE = (RunState.COMPENSATED, RunState.CANCELLED)
_GOING_ON = (RunState.RUNNING, RunState.WAITING)


@command.command("retry")
@_choosing("retry", (*_FAILED, *_UNDONE))
@click.option("--from", "from_step", metavar="STEP", help="Go on from this step, not from the failed one.")
def retry_command(
    root: Path, store: str | None, from_step: str | None, reason: str | None, dry_run: bool, **which: Any
) -> None:
    """Let failed runs go on.

    A failed run goes on at its failed step, one whose compensation failed repeats what could not be undone, both
    under the same idempotency keys. A compensated or cancelled one begins anew under another id, by the present
    flow files; --all takes those only with --state.

    A run that did a command has told its sender that it failed, who may have undone it: only its id chooses it.
    """
    choice = _Choice(states=_FAILED, but=_is_answered, **which)
    project = compiled(root) if _may_begin_anew(root, store, choice) else None
    present = project.plan if project is not None else None

    async def retry(hand: Hand, run: StoredRun) -> None:
        anew = await hand.retry(run, present, from_step)
        if anew != run.started.run_id:
            output.echo(f"{story.short(run.started.run_id)} begins anew as {story.short(anew)}")

    _do("retry", root, store, choice, reason, dry_run, lambda run: may_retry(run, from_step), retry)


def _may_begin_anew(root: Path, store: str | None, choice: _Choice) -> bool:
    runs = _with_store(root, store, choice.runs)
    return any(run.state in _UNDONE for run in runs)


@command.command("cancel")
@_choosing("cancel", _GOING_ON)
@click.option("--yes", is_flag=True, help="Do not ask.")
def cancel_command(root: Path, store: str | None, reason: str | None, dry_run: bool, yes: bool, **which: Any) -> None:
    """Stop runs, and undo what they did.

    Whoever runs them does it: at once in the middle of a step, or as soon as a flowrun start is there. A run that
    has passed its pivot cannot be cancelled.
    """
    choice = _Choice(states=_GOING_ON, **which)

    async def cancel(hand: Hand, run: StoredRun) -> None:
        await hand.cancel(run)

    _do("cancel", root, store, choice, reason, dry_run, may_cancel, cancel, ask=not yes)


@command.command("kill")
@_choosing("kill", (*_GOING_ON, RunState.COMPENSATING))
@click.option("--yes", is_flag=True, help="Do not ask.")
def kill_command(root: Path, store: str | None, reason: str | None, dry_run: bool, yes: bool, **which: Any) -> None:
    """End runs as they stand: nothing more is done, and nothing is undone."""
    choice = _Choice(states=(*_GOING_ON, RunState.COMPENSATING), **which)

    async def kill(hand: Hand, run: StoredRun) -> None:
        await hand.kill(run)

    _do("kill", root, store, choice, reason, dry_run, may_kill, kill, ask=not yes)


def _do(
    verb: str,
    root: Path,
    store: str | None,
    choice: _Choice,
    reason: str | None,
    dry_run: bool,
    check: Callable[[StoredRun], None],
    act: Callable[[Hand, StoredRun], Awaitable[None]],
    *,
    ask: bool = False,
) -> None:
    """Do it to each; those that refuse are said, and the exit code is 1."""
    runs, left = choice.split(_with_store(root, store, choice.runs))
    refused: list[RefusedError] = []
    willing = []
    for run in runs:
        try:
            check(run)
        except RefusedError as refusal:
            refused.append(refusal)
        else:
            willing.append(run)
    if willing and ask and not dry_run:
        click.confirm(f"{verb.capitalize()} {_count(willing)}?", abort=True, err=True)

    async def go(opened: AnyStore) -> list[StoredRun]:
        hand = Hand(
            opened,
            project=load_settings(root, store=store).project,
            by=f"{getpass.getuser()}@{os.uname().nodename}",
            now=datetime.now(UTC),
            reason=reason,
        )
        done = []
        for run in willing:
            try:
                await act(hand, run)
            except RefusedError as error:
                refused.append(error)
            else:
                done.append(run)
        return done

    done = willing if dry_run else _with_store(root, store, go)
    words = {"retry": "retried", "cancel": "asked to cancel", "kill": "killed"}
    if dry_run and done:
        started = ((run, run.started, run.started.trigger) for run in done)
        _print_table((s.run_id, s.handler, r.state, t.type, t.subject, s.started_at, r.error) for r, s, t in started)
    output.echo(f"{'would ' + verb if dry_run else words[verb]} {_count(done)}")
    if left:
        ids = ", ".join(story.short(run.started.run_id) for run in left[:5]) + (" …" if len(left) > 5 else "")
        output.echo(
            f"left {_count(left)} that did a command: who sent it was told that it failed, and may have undone it. "
            f"Retry the run that sent it; or, if nobody undid it, this one by its id: {ids}",
            err=True,
        )
    for error in refused:
        show_error(error)
    if refused:
        raise SystemExit(1)


def _print_table(
    runs: Iterable[tuple[str, str, RunState, str | None, str | None, str, Error | None]],
) -> None:
    rows = (
        (story.short(run_id), handler, str(state), type or "-", subject or "-", started_at, error.type if error else "")
        for run_id, handler, state, type, subject, started_at, error in runs
    )
    for line in output.table(["RUN", "HANDLER", "STATE", "EVENT", "SUBJECT", "STARTED", "ERROR"], rows):
        output.echo(line)


def _is_answered(run: StoredRun) -> bool:
    caller = run.started.caller
    return caller is not None and caller.reply_to is not None


def _count(runs: Sequence[StoredRun]) -> str:
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}"


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
        "correlation_id": meta.correlation_id,
        "causation_id": meta.causation_id,
        "replay": started.trace.get(REPLAY),
        "data": decode_json(started.data),
        "started_at": started.started_at,
        "finished_at": run.finished_at,
        "error": output.error_json(run.error),
        "steps": [_step_json(r) for r in run.records if isinstance(r, StepFinished)],
        "compensations": [_step_json(r) for r in run.records if isinstance(r, UndoFinished)],
        "interventions": [msgspec.to_builtins(r) for r in run.records if isinstance(r, Intervention)],
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
