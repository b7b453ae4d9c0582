"""`flowrun validate`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runner import __version__
from runner.app import Project, load_project
from runner.cli import options, output
from runner.diagnostics import Diagnostic, did_you_mean
from runner.errors import SettingsError
from runner.lang import report
from runner.lang.compile import Compilation
from runner.lang.load import Sources

if TYPE_CHECKING:
    from runner.cli import fixing

FORMATS = ("full", "concise", "json", "github", "gitlab", "sarif", "junit")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is to be checked, and how it is to be reported."""

    root: Path
    paths: tuple[Path, ...]
    output_format: str
    plugins: bool
    strict: bool
    select: tuple[str, ...]
    ignore: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """The project's flow files, those of them that PATHS name, what it compiles to, and what is to be said of it."""

    everything: list[str]
    chosen: list[str] | None
    project: Project
    diagnostics: list[Diagnostic]


def _prefixes(ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """The codes of an option, checked: a misspelt one would silently report nothing, or all."""
    if not given:
        return ()
    from runner.lang.explanations import codes

    known = codes()
    prefixes = tuple(code.strip() for text in given for code in text.split(","))
    for prefix in prefixes:
        if not prefix or not any(code.startswith(prefix) for code in known):
            near = did_you_mean(prefix, known)
            summary = f'"{prefix}" is no code and no beginning of one: '
            raise click.BadParameter(summary + (near or "write FR203, or FR2 for all of them"))
    return prefixes


@click.command("validate")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@options.project_dir
@click.option(
    "--output-format",
    type=click.Choice(FORMATS),
    default="full",
    show_default=True,
    help="full: with the line and a caret; concise: a line each; json: for programs; the others: for CI servers.",
)
@click.option("--no-plugins", is_flag=True, help="Do not import plugins; what needs them is not checked.")
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@click.option("--select", metavar="CODES", multiple=True, callback=_prefixes, help="Report these only: FR203,FR3.")
@click.option("--ignore", metavar="CODES", multiple=True, callback=_prefixes, help="Do not report these.")
@click.option("--fix", is_flag=True, help="Mend what can be mended for certain, then report what is left.")
@click.option("--diff", is_flag=True, help="Show what --fix would change, and write nothing.")
@click.option("--watch", is_flag=True, help="Check again whenever a file changes, until Ctrl-C.")
def command(
    paths: tuple[Path, ...],
    root: Path,
    output_format: str,
    no_plugins: bool,
    strict: bool,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    fix: bool,
    diff: bool,
    watch: bool,
) -> None:
    """Check flow files: all faults of all files in one pass.

    Needs no broker, no store and no network. PATHS are flow files or folders; without them all of flows/.
    All flows of the project are read; what is reported is of PATHS only. What is selected or ignored here counts for
    this report; a comment `# flowrun: ignore[CODE]`, on the line or alone above it, counts for start as well.

    --fix puts the one name that is meant in the place of a misspelt one, adds irreversible: true to steps with an
    effect that nothing undoes, and takes away comments that ignore nothing. All else in the files stays as it is.

    Exit codes: 0 valid, 1 errors, or with --diff changes to make, 2 usage.
    """
    if watch and (fix or diff):
        raise click.UsageError("--watch changes nothing: leave out --fix and --diff")
    if diff and output_format not in ("full", "concise"):
        raise click.UsageError("--diff prints a diff: leave out --output-format")
    asked = _Asked(
        root=root,
        paths=paths,
        output_format=output_format,
        plugins=not no_plugins,
        strict=strict,
        select=select,
        ignore=ignore,
    )
    if watch:
        from runner.cli.watch import again_and_again

        again_and_again(root, paths, lambda: _validate(asked))
    if diff:
        raise SystemExit(_diff(asked))
    if fix:
        _fix(asked)
    raise SystemExit(_validate(asked))


def _validate(asked: _Asked) -> int:
    """Check and report once; returns the exit code. Raises SettingsError."""
    found = _look(asked)
    files = found.everything if found.chosen is None else found.chosen
    for line in _rendered(found.diagnostics, found.project.compilation, files, asked):
        output.echo(line)
    return 1 if any(asked.strict or d.is_error for d in found.diagnostics) else 0


def _fix(asked: _Asked) -> None:
    """Write what can be mended, and say so: beside a report for programs, where it is not read as part of it."""
    from runner.cli import fixing

    fixes = _fixes(asked, _look(asked))
    fixing.write(asked.root, fixes)
    for line in fixing.told(fixes):
        output.echo(line, err=asked.output_format not in ("full", "concise"))


def _diff(asked: _Asked) -> int:
    """Print what would be mended; returns the exit code."""
    from runner.cli import fixing

    fixes = _fixes(asked, _look(asked))
    for line in fixing.diff(fixes):
        output.echo(line)
    return 1 if fixes.fixed.texts else 0


def _fixes(asked: _Asked, found: _Found) -> fixing.Fixes:
    from runner.cli import fixing

    def wanted(diagnostic: Diagnostic) -> bool:
        return _is_meant(diagnostic, asked, found.chosen, found.everything)

    return fixing.find(asked.root, found.project, found.everything, wanted)


def _look(asked: _Asked) -> _Found:
    """What there is, and what is to be said of it. Raises SettingsError."""
    root = asked.root
    if not root.is_dir():
        raise SettingsError(f"{root} is not a folder", hint="name the project's folder with -C")
    chosen = _chosen(root, asked.paths)
    everything = sorted({*Sources(root).flow_files(), *(chosen or ())})
    if not everything:
        raise SettingsError(
            f"no flow files found in {root / 'flows'}",
            hint="go to a project's folder, or name it with -C; flowrun init DIR makes one",
        )
    project = load_project(root, plugins=asked.plugins, files=everything)
    said = [d for d in project.compilation.diagnostics if _is_meant(d, asked, chosen, everything)]
    return _Found(everything, chosen, project, said)


def _rendered(found: list[Diagnostic], compilation: Compilation, files: list[str], asked: _Asked) -> Iterable[str]:
    """The report's lines. The formats of others are imported when they are asked for."""
    match asked.output_format:
        case "json":
            yield report.as_json(found, compilation.documents)
        case "github":
            from runner.lang.reports import github

            yield from github.lines(found, _folder(asked.root))
        case "gitlab":
            from runner.lang.reports import gitlab

            yield gitlab.text(found, _folder(asked.root))
        case "sarif":
            from runner.lang.reports import sarif

            yield sarif.text(found, _folder(asked.root), __version__)
        case "junit":
            from runner.lang.reports import junit

            yield junit.text(found, compilation.documents, files, _folder(asked.root), strict=asked.strict)
        case "concise":
            yield from report.concise(found)
            yield report.summary(found, len(files))
        case _:
            yield from report.full(found, compilation.documents, output.paint)
            yield report.summary(found, len(files))


def _folder(root: Path) -> str:
    """The project's folder as CI servers name it, from the repository's root, where they run; "" if it is that, or lies
    elsewhere."""
    folder = Path(os.path.relpath(root)).as_posix()
    return "" if folder.startswith(".") else f"{folder}/"


def _is_meant(diagnostic: Diagnostic, asked: _Asked, chosen: list[str] | None, everything: list[str]) -> bool:
    return (chosen is None or _is_of(diagnostic, chosen, everything)) and _is_asked_for(diagnostic, asked)


def _is_asked_for(diagnostic: Diagnostic, asked: _Asked) -> bool:
    selected = not asked.select or diagnostic.code.startswith(asked.select)
    return selected and not (asked.ignore and diagnostic.code.startswith(asked.ignore))


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
