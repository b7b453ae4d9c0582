"""`flowrun diff`: what a change of the flow files breaks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Literal

import click

from runner.app import Project, compile_kept
from runner.cli import options, output
from runner.cli.compiled import compiled
from runner.lang.evolution.changes import Change, Direction, Side
from runner.lang.evolution.compare import compare
from runner.lang.load import Sources
from runner.lang.report import printable
from runner.settings import project_name, read_file
from runner.source import MappingNode, ScalarNode

_SECTIONS = {
    "messages": ("event", "request", "reply"),
    "names": ("event", "command", "handler", "route", "endpoint", "project"),
    "runs in flight": ("run",),
}
_MARKS = {"breaking": ("✗", "red"), "unknown": ("?", "yellow"), "compatible": ("✓", "green")}
_SAID = {"breaking": "breaks", "unknown": "may break", "compatible": "breaks nothing"}
MAX_EXAMPLE = 80


@click.command("diff")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path), required=False)
@options.project_dir
@click.option(
    "--compatibility",
    type=click.Choice(["backward", "forward", "full"]),
    default="full",
    show_default=True,
    help="backward: new readers, old messages; forward: old readers, new messages.",
)
@click.option("--strict", is_flag=True, help="What may break counts as breaking.")
@click.option("--no-plugins", is_flag=True, help="Do not import plugins: runs in flight are not looked at.")
@options.as_json
def command(
    old: Path,
    new: Path | None,
    root: Path,
    compatibility: Literal["backward", "forward", "full"],
    strict: bool,
    no_plugins: bool,
    as_json: bool,
) -> None:
    """Say what the files of NEW break that stand by the files of OLD: consumers, queued messages, runs in flight.

    OLD and NEW are folders of one project; NEW is the present one unless it is given. Needs no broker and no store.

    Exit codes: 0 nothing breaks, 1 something does, or a project has errors, 2 usage.
    """
    if new is not None and root != Path():
        raise click.UsageError("NEW and -C are the same: give one of them")
    new = root if new is None else new
    found = [change for change in _changes(old, new, not no_plugins) if _is_asked_for(change, compatibility)]
    breaks = any(change.level == "breaking" or (strict and change.level == "unknown") for change in found)
    if as_json:
        shown = {"breaks": breaks, "changes": [_json_one(change) for change in found]}
        output.echo(output.json_value(shown))
    else:
        for line in _text(found, old):
            output.echo(line)
    raise SystemExit(1 if breaks else 0)


def _changes(old: Path, new: Path, plugins: bool) -> list[Change]:
    """Both are compiled under the new one's name: that of a folder is not what changed."""
    name = project_name(new) if new.is_dir() else None
    before, now = _compiled(old, name, plugins), _compiled(new, name, plugins)
    sources = next(iter(before.plan.sources.values()), {})
    resumed = None if now.registry is None else compile_kept(sources, now.plan.project, now.registry)
    return [*_project_renamed(old, new), *compare(_side(before, old), _side(now, new), resumed)]


def _project_renamed(old: Path, new: Path) -> Iterator[Change]:
    """Where a file says what the project is called. Else it is called after its folder, which may be any here."""
    before, now = (_name(root) for root in (old, new))
    if now is not None and (before is None or before.value != now.value):
        what = "every queue and the store are others: what waits in the old ones is not read"
        yield Change(
            kind="project",
            name="the project" if before is None else str(before.value),
            level="unknown" if before is None else "breaking",
            text=f'is called "{now.value}" now: {what}'
            if before is not None
            else f'is called "{now.value}" now: if its folder is not, {what}',
            span=now.span,
        )


def _name(root: Path) -> ScalarNode | None:
    document, _ = read_file(root)
    node = document.root.get("project") if document is not None and isinstance(document.root, MappingNode) else None
    return node if isinstance(node, ScalarNode) else None


def _side(project: Project, root: Path) -> Side:
    return Side.of(project.compilation, Sources(root))


def _compiled(root: Path, name: str | None, plugins: bool) -> Project:
    try:
        return compiled(root, name, plugins=plugins)
    except SystemExit:
        output.echo(f"{printable(str(root))} has errors: nothing can be said of what it breaks.", err=True)
        raise


def _is_asked_for(change: Change, compatibility: Direction | Literal["full"]) -> bool:
    return compatibility == "full" or change.direction in (None, compatibility)


# --- for people


def _text(found: list[Change], old: Path) -> Iterator[str]:
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
    yield _sum(found)


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
        yield f"      hits {printable(_listed(change.hits))}{_why(change)}"


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


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


def _sum(found: list[Change]) -> str:
    def count(level: str) -> int:
        return sum(change.level == level for change in found)

    if not found:
        return "Nothing changed that anybody else could notice."
    return f"{count('breaking')} breaking, {count('unknown')} undecided, {count('compatible')} compatible."


# --- for programs


def _json_one(change: Change) -> dict[str, object]:
    start = change.span.start
    return {
        "kind": change.kind,
        "name": change.name,
        "level": change.level,
        "direction": change.direction,
        "pointer": change.pointer,
        "text": change.text,
        "example": change.example[0] if change.example else None,
        "hits": list(change.hits),
        "place": {
            "project": "old" if change.in_old else "new",
            "filename": change.span.filename,
            "line": start.line,
            "column": start.column,
        },
    }
