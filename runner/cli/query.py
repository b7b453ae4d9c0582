"""`flowrun query`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from runner.app import load_project, projector, read_models, standing_store
from runner.cli import options, output
from runner.cli.event_options import moment
from runner.clock import SystemClock
from runner.diagnostics import did_you_mean
from runner.engine.read_models import ReadModels
from runner.errors import ExpressionError, NotFoundError, SettingsError
from runner.expressions import Expression, ExpressionSyntaxError, holds, parse_expression
from runner.lang.report import printable
from runner.message import encode_json
from runner.plan import Plan
from runner.ports import AnyStore
from runner.records import AsOf, Build, Entry
from runner.settings import load_settings

MAX_COLUMNS = 8
VALUE_SHOWN = 40
NEAR = 2_000
LOOK_AGAIN_S = 0.2

T = TypeVar("T")


def _as_of(ctx: click.Context, param: click.Parameter, value: str | None) -> AsOf | None:
    if value is None:
        return None
    if value.isascii() and value.isdigit() and len(value) < 19:
        return AsOf(position=int(value))
    return AsOf(time=moment(ctx, param, value))


def _condition(ctx: click.Context, param: click.Parameter, value: str | None) -> Expression | None:
    if value is None:
        return None
    try:
        expression = parse_expression(value)
    except ExpressionSyntaxError as error:
        raise click.BadParameter(f"{error.message} (character {error.offset + 1})") from None
    for read in expression.reads:
        if read.path[0] not in ("key", "state"):
            help = f"write state.{read.path[0]}" if len(read.path) == 1 else "an entry has key and state"
            raise click.BadParameter(f'"{read.path[0]}" is not known here: {help}')
    return expression


@click.command("query")
@click.argument("name", required=False)
@click.argument("key", required=False)
@click.option("--as-of", callback=_as_of, help="As it was then: a time, how long ago (1h), or a position of the log.")
@click.option(
    "--where", callback=_condition, metavar="EXPR", help='Only entries for which it holds: "state.total > 9".'
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many entries.  [default: all]")
@click.option("--rebuild", is_flag=True, help="Fold it anew from the log, beside the one that is served, and swap.")
@options.project_dir
@options.store
@options.as_json
def command(
    name: str | None, key: str | None, as_of: AsOf | None, where: Expression | None, limit: int | None, rebuild: bool,
    root: Path, store: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Read a projection: all its entries, or the one under KEY. Without a NAME, say which there are.

    It has every event that is in the log now, whether or not a runner keeps it up to date.
    """
    if key is not None and (where is not None or limit is not None):
        raise click.UsageError("--where and --limit choose among entries, and KEY names one")
    if name is None and (as_of is not None or where is not None or limit is not None or rebuild):
        raise click.UsageError("which projection? flowrun query lists them")
    if rebuild and (key is not None or as_of is not None or where is not None or limit is not None):
        raise click.UsageError("--rebuild rebuilds it; ask afterwards")
    settings = load_settings(root, store=store)
    plan = _plan(root, settings.project, name)

    async def go() -> None:
        async with standing_store(settings) as opened:
            reads = read_models(plan, opened)
            if name is None:
                await _list(opened, reads, as_json)
            elif rebuild:
                await _rebuild(opened, plan, name, as_json)
            elif key is not None:
                await _show_one(reads, name, key, as_of, as_json)
            else:
                await _show_all(opened, reads, name, as_of, where, limit, as_json)

    asyncio.run(go())


def _plan(root: Path, project: str, name: str | None) -> Plan:
    """The project's plan; a plugin that is broken is no reason not to read."""
    compilation = load_project(root, project=project, plugins=False).compilation
    if compilation.plan is None:
        raise SettingsError("the flow files have errors", hint="flowrun validate shows them")
    known = compilation.plan.projections
    if name is not None and name not in known:
        hint = did_you_mean(name, known) or f"declared: {', '.join(sorted(known)) or 'none'}"
        raise NotFoundError(f'there is no projection "{name}"', hint=hint)
    return compilation.plan


# --- one entry


async def _show_one(reads: ReadModels, name: str, key: str, as_of: AsOf | None, as_json: bool) -> None:
    try:
        state = await (reads.get(name, key, patient=True) if as_of is None else reads.get_as_of(name, key, as_of))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    await _say_if_older(reads, name)
    if state is None:
        raise await _no_entry(reads, name, key, as_of)
    if as_json:
        output.echo(output.json_value({"key": key, "state": state}))
        return
    width = max((len(field) for field in state), default=0)
    for field, value in state.items():
        output.echo(f"{printable(field.ljust(width))}  {printable(_text(value))}")
    if not state:
        output.echo("an entry without fields")


async def _no_entry(reads: ReadModels, name: str, key: str, as_of: AsOf | None) -> NotFoundError:
    if as_of is not None and await reads.get(name, key, patient=True) is not None:
        return NotFoundError(f'{name} had no entry "{key}" yet', hint="flowrun query without --as-of has it")
    near = []
    async for entry in reads.all(name, most=None):
        near.append(entry.key)
        if len(near) == NEAR:
            break
    hint = did_you_mean(key, near) or f"flowrun query {name} shows all"
    return NotFoundError(f'{name} has no entry "{key}"', hint=hint)


# --- many entries


async def _show_all(
    store: AnyStore, reads: ReadModels, name: str, as_of: AsOf | None, where: Expression | None, limit: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    choose = _Chooser(where)
    found: list[Entry] = []
    with _bar("folding", await store.head()) as bar:
        async for entry in _entries(reads, name, as_of, bar.update):
            if choose.wants(entry):
                found.append(entry)
            if len(found) == limit:
                break
    for line in choose.doubts():
        output.echo(line, err=True)
    await _say_if_older(reads, name)
    if as_json:
        output.echo(output.json_value([{"key": entry.key, "state": entry.state} for entry in found]))
        return
    for line in _table(found) if found else ["No entries."]:
        output.echo(line)


async def _entries(
    reads: ReadModels, name: str, as_of: AsOf | None, progress: Callable[[int], None]
) -> AsyncIterator[Entry]:
    if as_of is None:
        async for entry in reads.all(name, most=None, progress=progress):
            yield entry
        return
    for entry in await reads.all_as_of(name, as_of, progress=progress):
        yield entry


class _Chooser:
    """Which entries a condition holds for. One that it cannot be told of is left out, and counted."""

    def __init__(self, where: Expression | None) -> None:
        self._where = where
        self._left_out = 0
        self._why = ""

    def wants(self, entry: Entry) -> bool:
        if self._where is None:
            return True
        try:
            return holds(self._where.evaluate({"key": entry.key, "state": entry.state}))
        except ExpressionError as error:
            self._left_out += 1
            self._why = self._why or f"{entry.key}: {error}"
            return False

    def doubts(self) -> Iterator[str]:
        if self._left_out:
            many = f"{self._left_out} {'entry is' if self._left_out == 1 else 'entries are'} left out"
            yield printable(f"{many}: {self._why}")


async def _say_if_older(reads: ReadModels, name: str) -> None:
    served, built = (await reads.standing())[name]
    if served is not None and not reads.is_declared(served):
        how = "it is being rebuilt" if built is not None else "flowrun start rebuilds it"
        output.echo(f"{name} is shown by its definition from before; {how}", err=True)


def _table(entries: Sequence[Entry]) -> Iterator[str]:
    """A column a field, if they are few; else the entry as JSON."""
    fields = list(dict.fromkeys(field for entry in entries for field in entry.state or {}))
    if len(fields) > MAX_COLUMNS:
        yield from output.table(["KEY", "ENTRY"], [(e.key, encode_json(e.state).decode()) for e in entries])
        return
    rows = [(e.key, *(_short((e.state or {})[f]) if f in (e.state or {}) else "" for f in fields)) for e in entries]
    yield from output.table(["KEY", *(printable(field).upper() for field in fields)], rows, states="")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else encode_json(value).decode()


def _short(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= VALUE_SHOWN else f"{text[: VALUE_SHOWN - 1]}…"


# --- which there are


async def _list(store: AnyStore, reads: ReadModels, as_json: bool) -> None:
    standing, head = await reads.standing(), await store.head()
    if as_json:
        output.echo(output.json_value([_as_json(name, *builds, head) for name, builds in standing.items()]))
        return
    if not standing:
        output.echo("No projections; declare some under projections:")
        return
    rows = [
        (name, _how(reads, served, built, head), str((served or built or _NONE).faults))
        for name, (served, built) in standing.items()
    ]
    for line in output.table(["PROJECTION", "STANDS", "LEFT OUT"], rows):
        output.echo(line)
    for name, (served, built) in standing.items():
        if (fault := (served or built or _NONE).last_fault) is not None:
            output.echo(printable(f"{name} left out {fault}"), err=True)


_NONE = Build(id=0, name="", definition="", position=0, is_served=False)


def _how(reads: ReadModels, served: Build | None, built: Build | None, head: int) -> str:
    if built is not None:
        how = "being rebuilt" if served is not None else "being built"
        return f"{how}: {100 * built.position // max(head, 1)} %"
    if served is None:
        return "not built: flowrun start builds it"
    return "served" if reads.is_declared(served) else "served by its definition from before: flowrun start rebuilds it"


def _as_json(name: str, served: Build | None, built: Build | None, head: int) -> dict[str, Any]:
    stands = served or built or _NONE
    return {
        "name": name,
        "served": served is not None,
        "rebuilding": built is not None,
        "position": (built or stands).position,
        "head": head,
        "faults": stands.faults,
        "last_fault": stands.last_fault,
    }


# --- rebuilding


async def _rebuild(store: AnyStore, plan: Plan, name: str, as_json: bool) -> None:
    """Fold it here, unless a runner does so already; then look on."""
    declared, clock = plan.projections[name], SystemClock()
    await store.projections.begin_build(name, declared.definition, anew=True)
    ours = projector(plan, store)
    with _bar(f"rebuilding {name}", await store.head()) as bar:
        while (build := await _being_built(store, name)) is not None:
            if ours.may_fold(build):
                await ours.fold(build)
            else:
                await clock.sleep_until(clock.now() + timedelta(seconds=LOOK_AGAIN_S))
            bar.update(build.position - bar.pos)
        bar.update((bar.length or 0) - bar.pos)
    output.echo(output.json_value({"name": name, "rebuilt": True}) if as_json else f"{name} is rebuilt")


async def _being_built(store: AnyStore, name: str) -> Build | None:
    return next((b for b in await store.projections.builds() if b.name == name and not b.is_served), None)


def _bar(label: str, length: int) -> Any:
    return click.progressbar(length=length, label=label, file=sys.stderr, hidden=not sys.stderr.isatty(), show_pos=True)
