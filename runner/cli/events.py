"""`flowrun events`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from runner.app import standing_store
from runner.cli import chronicle, options, output
from runner.cli.event_options import filtered, types_of, version_or_moment, wanted_of
from runner.cli.replay import replay_command
from runner.diagnostics import did_you_mean
from runner.errors import NotFoundError
from runner.lang.report import printable
from runner.ports import AnyStore
from runner.records import EventFilter, LoggedEvent, event_json
from runner.settings import load_settings

EVERY = 1_000_000
BATCH = 500
POLL_S = 1.0
NEAR = 200

T = TypeVar("T")


@click.group("events")
def command() -> None:
    """The event log: what happened, in which order, and by what."""


@command.command("list")
@filtered
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, EVERY), help="The last so many.")
@click.option("--follow", is_flag=True, help="Go on with those that come, until Ctrl-C; --json writes one a line then.")
@options.project_dir
@options.store
@options.as_json
def list_command(
    kind: str | None, limit: int, follow: bool, root: Path, store: str | None, as_json: bool, **which: str | None
) -> None:
    """List events in the order of the log."""
    wanted = wanted_of(which)
    if follow:
        try:
            _with_store(root, store, lambda s: _follow(s, wanted, kind, limit, as_json))
        except KeyboardInterrupt:  # the way to end it
            return
    events, doubt = _with_store(root, store, lambda s: _last(s, wanted, kind, limit))
    if as_json:
        output.echo(output.json_value([event_json(event) for event in events]))
    else:
        for line in chronicle.listing(events) if events else ["No events."]:
            output.echo(line)
    if doubt is not None:
        output.echo(printable(doubt), err=True)


@command.command("show")
@click.argument("ident", metavar="ID")
@click.option("--source", help="Whose event, if several have the id.")
@options.project_dir
@options.store
@options.as_json
def show_command(ident: str, source: str | None, root: Path, store: str | None, as_json: bool) -> None:
    """Show one event whole: its payload, what caused it and what it caused. ID is its id, or the beginning of it."""

    async def find(opened: AnyStore) -> chronicle.Account:
        return await chronicle.account(opened, await _one(opened, ident, source))

    found = _with_store(root, store, find)
    if as_json:
        output.echo(output.json_value(chronicle.account_json(found)))
        return
    for line in chronicle.account_lines(found):
        output.echo(line)


@command.command("chain")
@click.argument("subject")
@click.option("--as-of", callback=version_or_moment, help="As it stood then: a time, how long ago, or a version.")
@options.project_dir
@options.store
@options.as_json
def chain_command(subject: str, as_of: int | str | None, root: Path, store: str | None, as_json: bool) -> None:
    """Tell what happened to one subject: each event, by whom and why, and what it says that was not known before."""
    wanted = EventFilter(
        subject=subject,
        up_to_version=as_of if isinstance(as_of, int) else None,
        until=as_of if isinstance(as_of, str) else None,
    )

    async def find(opened: AnyStore) -> Sequence[chronicle.Link]:
        events = await opened.events(wanted, limit=EVERY)
        if not events:
            raise await _no_event_about(opened, subject, as_of)
        return await chronicle.links(opened, events)

    found = _with_store(root, store, find)
    if as_json:
        output.echo(output.json_value([event_json(link.event) for link in found]))
        return
    for line in chronicle.chain_lines(found):
        output.echo(line)


@command.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
@filtered
@options.project_dir
@options.store
def export_command(file: Path | None, kind: str | None, root: Path, store: str | None, **which: str | None) -> None:
    """Write events as JSON lines, with all that the log has of them, to FILE or to standard output."""
    from runner.cli.event_lines import write

    wanted = wanted_of(which)

    async def export(opened: AnyStore) -> int:
        types = await types_of(opened, kind)
        newest = await opened.events(EventFilter(), limit=1, newest=True)
        last = newest[-1].position if newest else 0
        async with aclosing(_all(opened, msgspec.structs.replace(wanted, types=types), last)) as batches:
            return await write(batches, file, last)

    count = _with_store(root, store, export)
    if file is not None:
        output.echo(f"exported {_count(count)} to {printable(str(file))}")


@command.command("import")
@click.argument("file", type=click.File("rb"))
@options.project_dir
@options.store
def import_command(file: Any, root: Path, store: str | None) -> None:
    """Add the events of FILE, JSON lines as export writes them, to the log; - is standard input.

    Those that are there already are passed over, so that it can be repeated. A fault in any line is said before
    anything is done. Versions are counted anew. No handler gets these events.
    """
    from runner.cli.event_lines import add, read

    records = read(file.name, file)
    added = _with_store(root, store, lambda s: add(s, records))
    there = len(records) - added
    output.echo(f"imported {_count(added)}" + (f", {there} were there already" if there else ""))


# --- finding


async def _last(
    store: AnyStore, wanted: EventFilter, kind: str | None, limit: int
) -> tuple[Sequence[LoggedEvent], str | None]:
    """The last events, and what may have been meant if there are none."""
    wanted = msgspec.structs.replace(wanted, types=await types_of(store, kind))
    events = await store.events(wanted, limit=limit, newest=True)
    if events or not await store.events(EventFilter(), limit=1):
        return events, None
    if kind is not None and wanted.types is not None:
        known = await store.types()
        if not set(wanted.types) & set(known):
            hint = did_you_mean(kind, known) or f"there are: {', '.join(known[:20])}"
            return events, f'there is no event of type "{kind}"; {hint}'
    if wanted.subject is not None and not await store.events(EventFilter(subject=wanted.subject), limit=1):
        return events, str((await _no_event_about(store, wanted.subject, None)).message)
    return events, None


async def _no_event_about(store: AnyStore, subject: str, as_of: object) -> NotFoundError:
    if as_of is not None and await store.events(EventFilter(subject=subject), limit=1):
        return NotFoundError(f'there was no event about "{subject}" yet', hint="flowrun events chain without --as-of")
    guess = did_you_mean(subject, await store.subjects_near(subject, NEAR))
    return NotFoundError(
        f'there is no event about "{subject}"' + (f"; {guess}" if guess else ""), hint="flowrun events list shows all"
    )


async def _one(store: AnyStore, ident: str, source: str | None) -> LoggedEvent:
    found = await store.events(EventFilter(id_begins=ident, source=source), limit=BATCH)
    exact = [event for event in found if event.meta.id == ident]
    found = exact or found
    if not found:
        raise NotFoundError(f'there is no event "{ident}"', hint="flowrun events list shows them")
    if len(found) > 1:
        if exact:
            hint = f"say whose with --source: {', '.join(event.meta.source for event in exact)}"
            raise NotFoundError(f'{len(exact)} events have the id "{ident}"', hint=hint)
        raise NotFoundError(f'more than one event begins with "{ident}"', hint="give more of its id")
    return found[0]


async def _follow(store: AnyStore, wanted: EventFilter, kind: str | None, limit: int, as_json: bool) -> None:
    events, doubt = await _last(store, wanted, kind, limit)
    after = 0
    if doubt is not None:
        output.echo(printable(doubt), err=True)
    while True:
        for event in events:
            text = msgspec.json.encode(event_json(event)).decode() if as_json else chronicle.line(event)
            output.echo(text)
            after = event.position
        if len(events) < BATCH:
            await asyncio.sleep(POLL_S)
        wanted = msgspec.structs.replace(wanted, types=await types_of(store, kind))
        events = await store.events(wanted, limit=BATCH, after=after)


async def _all(store: AnyStore, wanted: EventFilter, last: int) -> AsyncGenerator[Sequence[LoggedEvent], None]:
    """Batches of the events up to the position `last`."""
    after = 0
    while after < last:
        found = await store.events(wanted, limit=BATCH, after=after)
        if events := [event for event in found if event.position <= last]:
            yield events
        if len(found) < BATCH:
            return
        after = found[-1].position


def _with_store(root: Path, store: str | None, ask: Callable[[AnyStore], Awaitable[T]]) -> T:
    """Ask the project's store something."""
    settings = load_settings(root, store=store)

    async def go() -> T:
        async with standing_store(settings) as opened:
            return await ask(opened)

    return asyncio.run(go())


def _count(number: int) -> str:
    return f"{number} event{'' if number == 1 else 's'}"


command.add_command(replay_command)
