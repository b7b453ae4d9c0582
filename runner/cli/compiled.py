"""The project's plan for a command that needs one; without it the command ends with the report."""

from __future__ import annotations

from pathlib import Path

from runner.app import Project, load_project
from runner.cli import output
from runner.errors import SettingsError
from runner.lang import report
from runner.lang.load import Sources


def compiled(root: Path, project: str | None = None, *, plugins: bool = True) -> Project:
    """Compile, or print what is wrong and exit with 1. Without `plugins` what needs them is not checked."""
    if not root.is_dir():
        raise SettingsError(f"{root} is not a folder", hint="name the project's folder with -C")
    files = Sources(root).flow_files()
    if not files:
        raise SettingsError(
            f"no flow files found in {root / 'flows'}",
            hint="go to a project's folder, or name it with -C; flowrun init DIR makes one",
        )
    loaded = load_project(root, project=project, plugins=plugins)
    compilation = loaded.compilation
    if compilation.plan is None:
        for line in report.full(compilation.diagnostics, compilation.documents, output.paint):
            output.echo(line, err=True)
        output.echo(report.summary(compilation.diagnostics, len(files)), err=True)
        raise SystemExit(1)
    return loaded
