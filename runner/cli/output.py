"""How commands print: tables, JSON, colours only on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec

from runner.lang.report import printable
from runner.records import Error

_COLOURS = {
    "completed": "green",
    "compensated": "yellow",
    "failed": "red",
    "compensation_failed": "red",
    "running": "cyan",
    "waiting": "cyan",
    "compensating": "yellow",
    "skipped": "bright_black",
}


def has_colour(stream: object = None) -> bool:
    """NO_COLOR wins over FORCE_COLOR, that over whether it is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    stream = sys.stdout if stream is None else stream
    return bool(getattr(stream, "isatty", lambda: False)()) and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, *, stream: object = None) -> str:
    """The text in a colour, where colours are shown."""
    if not has_colour(stream):
        return text
    return click.style(text, bold=True) if colour == "bold" else click.style(text, fg=colour, bold=colour != "blue")


def state(word: str, width: int = 0, *, stream: object = None) -> str:
    """A state's word, padded, in its colour."""
    padded = word.ljust(width)
    return click.style(padded, fg=_COLOURS.get(word)) if has_colour(stream) else padded


def echo(text: str, *, err: bool = False) -> None:
    """Print; colours were decided by `paint`."""
    click.echo(text, err=err, color=True)


def json_value(value: object) -> str:
    """A value as one indented JSON text."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def error_json(error: Error | None) -> dict[str, Any] | None:
    """An error as `--json` shows it."""
    return msgspec.structs.asdict(error) if error is not None else None


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, states: str = "STATE") -> Iterable[str]:
    """Aligned columns; the one headed `states` in its colours."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *shown, strict=True)]
    yield "  ".join(header.ljust(width) for header, width in zip(headers, widths, strict=True)).rstrip()
    for row in shown:
        cells = [
            state(cell, width) if header == states else cell.ljust(width)
            for header, cell, width in zip(headers, row, widths, strict=True)
        ]
        yield "  ".join(cells).rstrip()
