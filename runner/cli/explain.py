"""`flowrun explain`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from runner.cli import options, output
from runner.diagnostics import did_you_mean
from runner.errors import NotFoundError
from runner.lang.explanations import Explanation, codes, explanation


@click.command("explain")
@click.argument("what", metavar="[CODE | retry HANDLER]", required=False)
@click.argument("handler", metavar="", required=False)
@options.project_dir
@options.as_json
def command(what: str | None, handler: str | None, root: Path, as_json: bool) -> None:
    """Say what a diagnostic means, with an example that has it and one that has not.

    `explain retry HANDLER` prints when each attempt of each step happens, and how long the handler takes at the worst.
    Without CODE all codes are listed, with the beginning of one, as FR2, those that begin so.
    """
    if what == "retry":
        _retry(root, handler, as_json)
    elif handler is not None:
        raise click.UsageError("one code at a time, or: flowrun explain retry HANDLER")
    elif what is None:
        _list(codes(), as_json)
    else:
        of_family = [code for code in codes() if code.startswith(what.upper()) and code != what.upper()]
        if of_family:
            _list(of_family, as_json)
        else:
            _one(what.upper(), as_json)


def _list(listed: list[str], as_json: bool) -> None:
    pages = [page for code in listed if (page := explanation(code)) is not None]
    if as_json:
        output.echo(output.json_value([{"code": page.code, "title": page.title} for page in pages]))
        return
    for line in output.table(["CODE", "MEANS"], [(page.code, page.title) for page in pages]):
        output.echo(line)


def _one(code: str, as_json: bool) -> None:
    page = explanation(code)
    if page is None:
        hint = did_you_mean(code, codes()) or "flowrun explain lists all codes"
        raise NotFoundError(f'there is no diagnostic "{code}"', hint=hint)
    if as_json:
        output.echo(output.json_value(asdict(page)))
        return
    for line in _drawn(page):
        output.echo(line)


def _drawn(page: Explanation) -> Iterator[str]:
    yield output.paint(f"{page.code}: {page.title}", "bold")
    yield ""
    yield page.text
    for title, colour, files in (("Wrong", "red", page.wrong), ("Right", "blue", page.right)):
        for name, text in files.items():
            yield ""
            yield output.paint(title, colour) + (f" ({name})" if len(files) > 1 else "")
            yield ""
            yield from (f"    {line}".rstrip() for line in text.splitlines())


def _retry(root: Path, handler: str | None, as_json: bool) -> None:
    if handler is None:
        raise click.UsageError("which handler? flowrun explain retry HANDLER")
    from runner.cli import timetable
    from runner.cli.compiled import compiled

    program = timetable.program(compiled(root).plan, handler)
    if as_json:
        output.echo(output.json_value(timetable.as_json(program)))
        return
    for line in timetable.text(program):
        output.echo(line)
