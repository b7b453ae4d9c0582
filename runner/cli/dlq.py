"""`flowrun dlq`."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from runner.app import App, standing_store
from runner.cli import options, output, story
from runner.engine.intake import second_chance
from runner.errors import NotFoundError, SettingsError
from runner.lang.report import printable
from runner.ports import DeadLetterStore
from runner.records import DeadLetter
from runner.settings import Settings, load_settings

EVERY = 1_000_000
BATCH = 200

_filters = [
    click.option("--reason", help="Only those of this reason, like schema_violation."),
    click.option("--handler", help="Only those of this handler (flow.handler)."),
]


def _filtered(function: Any) -> Any:
    for option in reversed(_filters):
        function = option(function)
    return function


@click.group("dlq")
def command() -> None:
    """Dead letters: messages that could not begin a run, with their cause."""


@command.command("list")
@_filtered
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, EVERY), help="At most so many.")
@options.project_dir
@options.store
@options.as_json
def list_command(
    reason: str | None, handler: str | None, limit: int, root: Path, store: str | None, as_json: bool
) -> None:
    """List dead letters, newest first, and how many there are of each reason and handler."""
    settings = load_settings(root, store=store)
    letters = asyncio.run(_read(settings, reason, handler, EVERY))
    if as_json:
        output.echo(output.json_value([_json(letter) for letter in letters[:limit]]))
        return
    if not letters:
        output.echo("No dead letters.")
        return
    for line in _listing(letters, limit):
        output.echo(line)


@command.command("show")
@click.argument("ident", metavar="ID")
@options.project_dir
@options.store
@options.as_json
def show_command(ident: str, root: Path, store: str | None, as_json: bool) -> None:
    """Show one dead letter whole. ID is its id, or the beginning of it."""
    settings = load_settings(root, store=store)
    [letter] = asyncio.run(_named(settings, (ident,)))
    if as_json:
        output.echo(output.json_value(_json(letter)))
        return
    for line in _described(letter):
        output.echo(line)


@command.command("retry")
@click.argument("idents", metavar="[ID]...", nargs=-1)
@_filtered
@click.option("--all", "everything", is_flag=True, help="All that the filters leave.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@options.settings
def retry_command(
    idents: tuple[str, ...],
    reason: str | None,
    handler: str | None,
    everything: bool,
    dry_run: bool,
    root: Path,
    broker: str | None,
    store: str | None,
) -> None:
    """Give dead letters to their own handlers again, and to no one else.

    A letter is dropped once the broker has confirmed the message; interrupted, it is sent again under the same
    id. One that fails again comes back.
    """
    settings = load_settings(root, broker=broker, store=store)
    letters = _chosen(settings, idents, reason, handler, everything)
    if not dry_run:
        asyncio.run(_retry(settings, letters))
    output.echo(f"{'would retry' if dry_run else 'retried'} {_count(letters)}")


@command.command("drop")
@click.argument("idents", metavar="[ID]...", nargs=-1)
@_filtered
@click.option("--all", "everything", is_flag=True, help="All that the filters leave.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.project_dir
@options.store
def drop_command(
    idents: tuple[str, ...],
    reason: str | None,
    handler: str | None,
    everything: bool,
    dry_run: bool,
    yes: bool,
    root: Path,
    store: str | None,
) -> None:
    """Forget dead letters, for good."""
    settings = load_settings(root, store=store)
    letters = _chosen(settings, idents, reason, handler, everything)
    if not dry_run and letters and not yes:
        click.confirm(f"Drop {_count(letters)} for good?", abort=True, err=True)
    if not dry_run:
        asyncio.run(_drop(settings, letters))
    output.echo(f"{'would drop' if dry_run else 'dropped'} {_count(letters)}")


# --- choosing


def _chosen(
    settings: Settings, idents: tuple[str, ...], reason: str | None, handler: str | None, everything: bool
) -> list[DeadLetter]:
    if idents and (everything or reason or handler):
        raise click.UsageError("name dead letters by id, or choose them by --reason, --handler or --all")
    if not (idents or everything or reason or handler):
        raise click.UsageError("which ones? name their ids, or say --reason, --handler or --all")
    if idents:
        return asyncio.run(_named(settings, idents))
    return asyncio.run(_read(settings, reason, handler, EVERY))


async def _read(settings: Settings, reason: str | None, handler: str | None, limit: int) -> list[DeadLetter]:
    async with standing_store(settings) as store:
        return list(await store.dead_letters(limit=limit, reason=reason, handler=handler))


async def _named(settings: Settings, idents: tuple[str, ...]) -> list[DeadLetter]:
    async with standing_store(settings) as store:
        return [await _one(store, ident) for ident in idents]


async def _one(store: DeadLetterStore, ident: str) -> DeadLetter:
    letter = await store.dead_letter(ident)
    if letter is None:
        raise NotFoundError(f'there is no dead letter "{ident}"', hint="flowrun dlq list shows them")
    return letter


# --- doing


async def _retry(settings: Settings, letters: list[DeadLetter]) -> None:
    refused = []
    async with App(settings) as app:
        for start in range(0, len(letters), BATCH):
            batch = letters[start : start + BATCH]
            answers = await app.transport.publish([second_chance(letter, settings.project) for letter in batch])
            taken = [letter for letter, answer in zip(batch, answers, strict=True) if answer is None]
            refused += [answer for answer in answers if answer is not None]
            await app.store.drop(taken)
    if refused:
        raise SettingsError(f"{len(refused)} stay: {refused[0]}", hint="has the handler been renamed?")


async def _drop(settings: Settings, letters: list[DeadLetter]) -> None:
    async with standing_store(settings) as store:
        await store.drop(letters)


# --- showing


def _listing(letters: list[DeadLetter], limit: int) -> Iterator[str]:
    groups = Counter((letter.reason, letter.handler) for letter in letters)
    yield from output.table(
        ["COUNT", "REASON", "HANDLER"], [(str(n), reason, handler) for (reason, handler), n in groups.most_common()]
    )
    yield ""
    rows = [
        (story.short(letter.id), letter.received_at, letter.reason, letter.handler, letter.error.message[:80])
        for letter in letters[:limit]
    ]
    yield from output.table(["ID", "RECEIVED", "REASON", "HANDLER", "ERROR"], rows)
    if len(letters) > limit:
        yield f"… and {len(letters) - limit} more: --limit"


def _described(letter: DeadLetter) -> Iterator[str]:
    for name, value in (
        ("letter", letter.id),
        ("reason", letter.reason),
        ("error", letter.error.message),
        ("handler", letter.handler),
        ("type", letter.type or "-"),
        ("id", letter.message_id or "-"),
        ("source", letter.source or "-"),
        ("received", letter.received_at),
        ("origin", f"exchange {letter.exchange or '(default)'}, routing key {letter.routing_key}"),
    ):
        yield f"{output.paint(name.ljust(9), 'bold')} {printable(value)}"
    for name, value in letter.headers.items():
        yield f"{output.paint('header'.ljust(9), 'bold')} {printable(f'{name}: {value}')}"
    yield ""
    for line in letter.body.decode("utf-8", "backslashreplace").splitlines():
        yield printable(line)


def _json(letter: DeadLetter) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": letter.id,
        "reason": letter.reason,
        "error": output.error_json(letter.error),
        "handler": letter.handler,
        "type": letter.type,
        "source": letter.source,
        "message_id": letter.message_id,
        "received_at": letter.received_at,
    }
    try:
        shown["body"] = letter.body.decode()
    except UnicodeDecodeError:
        shown["body_base64"] = base64.b64encode(letter.body).decode()
    return shown


def _count(letters: list[DeadLetter]) -> str:
    return f"{len(letters)} dead letter{'' if len(letters) == 1 else 's'}"
