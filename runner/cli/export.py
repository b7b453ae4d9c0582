"""`flowrun export`."""

from __future__ import annotations

from pathlib import Path

import click

from runner.cli import asyncapi as description
from runner.cli import options, output
from runner.cli.compiled import compiled
from runner.lang.declare import declare
from runner.lang.load import Sources


@click.group("export")
def command() -> None:
    """Describe the project for other programs."""


@command.command("asyncapi")
@options.project_dir
def asyncapi(root: Path) -> None:
    """Print an AsyncAPI 3.0 document: events, commands and their schemas, with exchanges, routing keys and queues."""
    project = compiled(root)
    documents = project.compilation.documents
    flows = [flow for name in Sources(root).flow_files() if (flow := declare(documents[name])) is not None]
    output.echo(output.json_value(description.document(project.plan, flows, documents)))
