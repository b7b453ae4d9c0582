"""`flowrun validate`."""

from __future__ import annotations

from pathlib import Path

import click

from runner.app import load_project
from runner.cli import options, output
from runner.diagnostics import Diagnostic, Severity
from runner.errors import SettingsError
from runner.lang import report
from runner.lang.compile import Compilation
from runner.lang.load import Sources


@click.command("validate")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@options.project_dir
@click.option(
    "--output-format",
    type=click.Choice(["full", "concise", "json"]),
    default="full",
    show_default=True,
    help="full: with the line and a caret; concise: a line each; json: for programs.",
)
@click.option("--no-plugins", is_flag=True, help="Do not import plugins; what needs them is not checked.")
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
def command(paths: tuple[Path, ...], root: Path, output_format: str, no_plugins: bool, strict: bool) -> None:
    """Check flow files: all faults of all files in one pass.

    Needs no broker, no store and no network. PATHS are flow files or folders; without them all of flows/.
    All flows of the project are read; what is reported is of PATHS only.

    Exit codes: 0 valid, 1 errors, 2 usage.
    """
    if not root.is_dir():
        raise SettingsError(f"{root} is not a folder", hint="name the project's folder with -C")
    chosen = _chosen(root, paths)
    everything = sorted({*Sources(root).flow_files(), *(chosen or ())})
    if not everything:
        raise SettingsError(
            f"no flow files found in {root / 'flows'}",
            hint="go to a project's folder, or name it with -C; flowrun init DIR makes one",
        )
    compilation = load_project(root, plugins=not no_plugins, files=everything).compilation
    found = [d for d in compilation.diagnostics if chosen is None or _is_of(d, chosen, everything)]
    files = len(everything) if chosen is None else len(chosen)
    _print(found, compilation, output_format, files)
    failed = any(strict or d.severity is Severity.ERROR for d in found)
    raise SystemExit(1 if failed else 0)


def _print(found: list[Diagnostic], compilation: Compilation, output_format: str, files: int) -> None:
    if output_format == "json":
        output.echo(report.as_json(found, compilation.documents))
        return
    if output_format == "concise":
        lines = report.concise(found)
    else:
        lines = report.full(found, compilation.documents, output.paint)
    for line in lines:
        output.echo(line)
    output.echo(report.summary(found, files))


def _chosen(root: Path, paths: tuple[Path, ...]) -> list[str] | None:
    """The flow files that PATHS name, relative to the project. Raises SettingsError."""
    if not paths:
        return None
    names: list[str] = []
    for path in paths:
        if not path.exists():
            raise SettingsError(f"there is no {path}")
        found = sorted(p for p in path.glob("*.y*ml") if not p.stem.endswith(".test")) if path.is_dir() else [path]
        if not found:
            raise SettingsError(f"no flow files found in {path}")
        for file in found:
            try:
                names.append(file.resolve().relative_to(root.resolve()).as_posix())
            except ValueError:
                raise SettingsError(
                    f"{file} is outside the project {root.resolve()}", hint="name its project with -C"
                ) from None
    return names


def _is_of(diagnostic: Diagnostic, chosen: list[str], everything: list[str]) -> bool:
    """Faults of the chosen files, and of what is no flow file: plugins, schemas, settings."""
    return diagnostic.span.filename in chosen or diagnostic.span.filename not in everything
