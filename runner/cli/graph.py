"""`flowrun graph`."""

from __future__ import annotations

from pathlib import Path

import click

from runner.cli import options, output
from runner.cli.compiled import compiled
from runner.cli.graphs import dot, mermaid
from runner.cli.graphs.model import draw
from runner.diagnostics import did_you_mean
from runner.errors import NotFoundError


@click.command("graph")
@click.argument("flows", nargs=-1)
@options.project_dir
@click.option(
    "--format",
    "form",
    type=click.Choice(["mermaid", "dot", "svg"]),
    default="mermaid",
    show_default=True,
    help="svg needs Graphviz.",
)
@click.option("--no-compensations", is_flag=True, help="Leave out what happens only after a failure.")
def command(flows: tuple[str, ...], root: Path, form: str, no_compensations: bool) -> None:
    """Draw the project: handlers, events, commands, schedules, endpoints, and other programs.

    FLOWS are names of flows; without them the whole project is drawn. Thick lines are commands, dotted ones are what
    happens after a failure: compensations, what a catch or on_failure sends, dead letters.
    """
    plan = compiled(root).plan
    known = {program.flow for program in plan.programs.values()} | {event.flow for event in plan.events.values()}
    for flow in flows:
        if flow not in known:
            hint = did_you_mean(flow, known) or f"there are: {', '.join(sorted(known))}"
            raise NotFoundError(f'there is no flow "{flow}"', hint=hint)
    graph = draw(plan, flows, failures=not no_compensations)
    if form == "svg":
        output.echo(dot.svg(graph))
        return
    for line in mermaid.lines(graph) if form == "mermaid" else dot.lines(graph):
        output.echo(line)
