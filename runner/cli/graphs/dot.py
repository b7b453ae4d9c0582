"""A graph in DOT, the language of Graphviz, and as the SVG that Graphviz makes of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping

from runner.cli.graphs.model import Edge, Graph, Node
from runner.errors import SettingsError

_SHAPES = {
    "handler": "box",
    "event": "oval",
    "schedule": "parallelogram",
    "ingress": "cds",
    "projection": "tab",
    "outside": "circle",
    "dead": "cylinder",
}


def lines(graph: Graph) -> Iterator[str]:
    """One digraph; each flow is a cluster. Thick: commands; dotted: after a failure."""
    yield "digraph flowrun {"
    yield '  graph [rankdir=LR, compound=true, fontname="sans-serif"]'
    yield '  node [fontname="sans-serif", fontsize=11]'
    yield '  edge [fontname="sans-serif", fontsize=9]'
    for node in graph.of_flow(None):
        yield f"  {_node(node)}"
    for flow in graph.flows:
        yield f"  subgraph {_quoted(f'cluster_{flow}')} {{"
        yield f"    label={_quoted(flow)}"
        for node in graph.of_flow(flow):
            yield f"    {_node(node)}"
        yield "  }"
    heads = {f"flow.{flow}": graph.of_flow(flow)[-1].key for flow in graph.flows}
    for edge in graph.edges:
        yield f"  {_edge(edge, heads)}"
    yield "}"


def svg(graph: Graph) -> str:
    """What the program `dot` makes of it. Raises SettingsError if there is none, or if it fails."""
    program = shutil.which("dot")
    if program is None:
        raise SettingsError(
            "an SVG is drawn by the program dot, which is not installed",
            hint="install Graphviz (apt-get install graphviz, brew install graphviz), or take --format mermaid",
        )
    done = subprocess.run(  # noqa: S603 - no argument comes from outside
        [program, "-Tsvg"], input="\n".join(lines(graph)), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SettingsError(f"dot failed: {done.stderr.strip()}")
    return done.stdout.rstrip("\n")


def _node(node: Node) -> str:
    return f"{_quoted(node.key)} [label={_quoted(node.label, *node.notes)}, shape={_SHAPES[node.kind]}]"


def _edge(edge: Edge, heads: Mapping[str, str]) -> str:
    attributes = [f"label={_quoted(*edge.labels)}"] if edge.labels else []
    source = edge.source
    if source in heads:  # a line can begin at a cluster's border, but only as one of a node inside it
        attributes.append(f"ltail={_quoted('cluster_' + source.removeprefix('flow.'))}")
        source = heads[source]
    if edge.after_failure:
        attributes.append("style=dotted")
    elif edge.kind == "command":
        attributes.append("style=bold")
    shown = f" [{', '.join(attributes)}]" if attributes else ""
    return f"{_quoted(source)} -> {_quoted(edge.target)}{shown}"


def _quoted(*rows: str) -> str:
    text = "\n".join(rows)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
