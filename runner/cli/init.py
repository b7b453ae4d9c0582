"""`flowrun init`."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import click

from runner.cli import output
from runner.errors import SettingsError
from runner.settings import default_project

_FILES = {
    "flowrun.yaml": "flowrun.yaml",
    "flows/hello.yaml": "hello.yaml",
    "schemas/greeting-requested.schema.json": "greeting-requested.schema.json",
    "plugins/greetings.py": "greetings.py",
    ".gitignore": "gitignore",
}


@click.command("init")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    """Make a new project in DIR: settings, a flow, a payload schema and a handler plugin, ready to start."""
    if folder.is_file():
        raise SettingsError(f"{folder} is a file", hint="name a folder")
    standing = [name for name in _FILES if (folder / name).exists()]
    if standing:
        raise SettingsError(f"{folder / standing[0]} stands already", hint="name an empty folder")
    try:
        _write(folder)
    except OSError as error:
        raise SettingsError(f"{error.filename or folder} cannot be made: {error.strerror}") from None
    for name in (*_FILES, "schemas/flow.schema.json"):
        output.echo(f"  {folder / name}")
    output.echo("")
    output.echo("Next:")
    if folder.resolve() != Path().resolve():
        output.echo(f"  cd {folder}")
    output.echo("  flowrun validate")
    output.echo("  flowrun start")
    output.echo("and in another terminal, there:")
    output.echo('  flowrun emit greeting.requested --data \'{"name": "Ada"}\'')


def _write(folder: Path) -> None:
    project = default_project(folder)
    for name, template in _FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_template(template).replace("@PROJECT@", project))
    with as_file(files("runner.schemas").joinpath("flow.schema.json")) as schema:
        (folder / "schemas" / "flow.schema.json").write_bytes(schema.read_bytes())


def _template(name: str) -> str:
    return files("runner.cli").joinpath("templates", name).read_text()
