"""`flowrun diff`: what a change of the flow files breaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import click

from runner.app import Project, compile_kept
from runner.cli import options, output
from runner.cli.compiled import compiled
from runner.cli.in_flight import Held, look
from runner.lang.evolution.changes import Change, Direction, Level, Side
from runner.lang.evolution.compare import compare
from runner.lang.load import Sources
from runner.lang.report import printable
from runner.settings import Settings, load_settings, project_name, read_file
from runner.source import MappingNode, ScalarNode

_SECTIONS = {
    "messages": ("event", "request", "reply"),
    "names": ("event", "command", "handler", "route", "endpoint", "project"),
    "runs in flight": ("run",),
}
_MARKS = {"breaking": ("✗", "red"), "unknown": ("?", "yellow"), "compatible": ("✓", "green")}
_SAID = {"breaking": "breaks", "unknown": "may break", "compatible": "breaks nothing"}
MAX_EXAMPLE = 80
SHOWN_IDS = 5


@click.command("diff")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path), required=False)
@options.settings
@click.option(
    "--compatibility",
    type=click.Choice(["backward", "forward", "full"]),
    default="full",
    show_default=True,
    help="backward: new readers, old messages; forward: old readers, new messages.",
)
@click.option("--live", is_flag=True, help="Look into NEW's store and broker as well, for what they hold.")
@click.option("--strict", is_flag=True, help="What may break counts as breaking.")
@click.option("--no-plugins", is_flag=True, help="Do not import plugins: runs in flight are not looked at.")
@options.as_json
def command(
    old: Path,
    new: Path | None,
    root: Path,
    broker: str | None,
    store: str | None,
    compatibility: Literal["backward", "forward", "full"],
    live: bool,
    strict: bool,
    no_plugins: bool,
    as_json: bool,
) -> None:
    """Say what the files of NEW break that stand by the files of OLD: consumers, queued messages, runs in flight.

    OLD and NEW are folders of one project; NEW is the present one unless it is given. Without --live it needs no
    broker and no store. With it, the store is opened, which brings its tables up to date, and nothing else is changed.

    Exit codes: 0 nothing breaks, 1 something does, or a project has errors, 2 usage, 69 broker or store unreachable.
    """
    if new is not None and root != Path():
        raise click.UsageError("NEW and -C both name the new project: give one of them")
    if live and no_plugins:
        raise click.UsageError("--live asks whether runs can go on, which needs the plugins")
    if not live and (broker is not None or store is not None):
        raise click.UsageError("--broker and --store are for --live")
    root = root if new is None else new
    settings = load_settings(root, broker=broker, store=store) if live else None
    compared = _compare(old, root, settings, not no_plugins)
    found = [change for change in compared.changes if _is_asked_for(change, compatibility)]
    held = None
    if settings is not None:
        held = asyncio.run(look(settings, compared.project, compared.present, compared.changes))
    levels = {each.level for each in (*found, *(held or ()))}
    breaks = "breaking" in levels or (strict and "unknown" in levels)
    if as_json:
        output.echo(output.json_value(_json(found, held, breaks)))
    else:
        for line in _text(found, held, old):
            output.echo(line)
    raise SystemExit(1 if breaks else 0)


@dataclass(frozen=True, slots=True)
class _Compared:
    """The new project, as it is and as it is compared, and all that changed."""

    project: Project
    present: Side
    changes: list[Change]


def _compare(old: Path, new: Path, settings: Settings | None, plugins: bool) -> _Compared:
    """Both are compiled under the new one's name: that of a folder is not what changed."""
    name = settings.project if settings is not None else project_name(new) if new.is_dir() else None
    before, now = _compiled(old, name, plugins), _compiled(new, name, plugins)
    sources = next(iter(before.plan.sources.values()), {})
    resumed = None if now.registry is None else compile_kept(sources, now.plan.project, now.registry)
    present = _side(now, new)
    return _Compared(now, present, [*_project_renamed(old, new), *compare(_side(before, old), present, resumed)])


def _compiled(root: Path, name: str | None, plugins: bool) -> Project:
    try:
        return compiled(root, name, plugins=plugins)
    except SystemExit:
        output.echo(f"{printable(str(root))} has errors: nothing can be said of what it breaks.", err=True)
        raise


def _project_renamed(old: Path, new: Path) -> Iterator[Change]:
    """Where a file says what the project is called. Else it is called after its folder, which may be any here."""
    before, now = (_name(root) for root in (old, new))
    if now is not None and (before is None or before.value != now.value):
        what = "every queue and the store are others: what waits in the old ones is not read"
        unless = "" if before is not None else "unless its folder is, "
        yield Change(
            kind="project",
            name=str((before or now).value),
            level="unknown" if before is None else "breaking",
            text=f'is called "{now.value}" now: {unless}{what}',
            span=now.span,
        )


def _name(root: Path) -> ScalarNode | None:
    document, _ = read_file(root)
    node = document.root.get("project") if document is not None and isinstance(document.root, MappingNode) else None
    return node if isinstance(node, ScalarNode) else None


def _side(project: Project, root: Path) -> Side:
    return Side.of(project.compilation, Sources(root))


def _is_asked_for(change: Change, compatibility: Direction | Literal["full"]) -> bool:
    return compatibility == "full" or change.direction in (None, compatibility)


# --- for people


def _text(found: list[Change], held: list[Held] | None, old: Path) -> Iterator[str]:
    for title, kinds in _SECTIONS.items():
        is_message = title == "messages"
        here = [c for c in found if c.kind in kinds and (c.kind != "event" or (c.direction is not None) == is_message)]
        if not here:
            continue
        yield output.paint(title, "bold")
        for (kind, name), changes in groupby(here, lambda change: (change.kind, change.name)):
            yield f"  {kind} {printable(name)}"
            for change in changes:
                yield from _one(change, old)
        yield ""
    if held is not None:
        yield output.paint("live", "bold")
        for each in held:
            yield from _held(each)
        yield "" if held else "  no run that is not over and no message in a queue is hit\n"
    yield _sum([change.level for change in found] + [each.level for each in held or ()])


def _held(held: Held) -> Iterator[str]:
    mark, colour = _MARKS[held.level]
    noun = "run" if held.kind == "runs" else "message"
    count = f"{held.count} {noun}{'' if held.count == 1 else 's'}"
    where = f"of {held.name}" if held.kind == "runs" else f"in {held.name}"
    yield f"  {output.paint(mark, colour)} {count} {printable(f'{where}: {held.text}')}"
    if held.ids:
        more = ", …" if len(held.ids) > SHOWN_IDS else ""
        yield f"      {', '.join(ident[:8] for ident in held.ids[:SHOWN_IDS])}{more}"


def _one(change: Change, old: Path) -> Iterator[str]:
    mark, colour = _MARKS[change.level]
    direction = f" {change.direction}" if change.direction is not None else ""
    head = output.paint(f"{mark} {_SAID[change.level]}{direction}", colour)
    pointer = "" if change.pointer is None else f"{change.pointer or 'the payload'} "
    undecided = "" if change.level != "unknown" or change.example else " (that cannot be decided)"
    yield f"    {head}: {printable(pointer + change.text)}{undecided}"
    yield f"      {output.paint('-->', 'blue')} {printable(_place(change, old))}"
    for example in change.example:
        yield f"      {_example(change, example)}"
    if change.hits and change.level != "compatible":
        yield f"      hits {printable(', '.join(change.hits))}{_why(change)}"


def _place(change: Change, old: Path) -> str:
    """A file of the old project by the way to it, one of the new one as its own commands name it."""
    return f"{old.as_posix()}/{change.span}" if change.in_old else str(change.span)


def _example(change: Change, example: object) -> str:
    first = (change.pointer or "").split("/")[1:2]
    if isinstance(example, dict) and first and first[0] in example:
        example = {first[0]: example[first[0]], **example}
    text = json.dumps(example, ensure_ascii=False)
    text = text if len(text) <= MAX_EXAMPLE else text[: MAX_EXAMPLE - 1] + "…"
    said = "fitted, and does not any more" if change.direction == "backward" else "fits now, and did not before"
    return f"{printable(text)} {said}"


def _why(change: Change) -> str:
    if change.direction is None:
        return ""
    if change.direction == "forward":
        return ": until all are updated, they refuse it"
    return ": what was sent before, or by who is not updated, is refused"


def _sum(levels: list[Level]) -> str:
    if not levels:
        return "Nothing changed that anybody else could notice."
    counts = (levels.count(level) for level in ("breaking", "unknown", "compatible"))
    return "{} breaking, {} undecided, {} compatible.".format(*counts)


# --- for programs


def _json(found: list[Change], held: list[Held] | None, breaks: bool) -> dict[str, object]:
    shown: dict[str, object] = {"breaks": breaks, "changes": [_json_one(change) for change in found]}
    if held is not None:
        shown["live"] = [asdict(each) for each in held]
    return shown


def _json_one(change: Change) -> dict[str, object]:
    start = change.span.start
    return {
        "kind": change.kind,
        "name": change.name,
        "level": change.level,
        "direction": change.direction,
        "pointer": change.pointer,
        "text": change.text,
        "examples": list(change.example),
        "hits": list(change.hits),
        "place": {
            "project": "old" if change.in_old else "new",
            "filename": change.span.filename,
            "line": start.line,
            "column": start.column,
        },
    }
