"""A graph as a Mermaid flowchart, which GitHub, GitLab and many editors draw."""

from __future__ import annotations

from collections.abc import Iterator

from runner.cli.graphs.model import Edge, Graph, Node

_SHAPES = {
    "handler": ("[", "]"),
    "event": ("([", "])"),
    "schedule": ("[/", "/]"),
    "ingress": (">", "]"),
    "projection": ("[[", "]]"),
    "outside": ("((", "))"),
    "dead": ("[(", ")]"),
}
_ARROWS = {"event": ("-->", "-.->"), "command": ("==>", "-.->"), "dead": ("-.->", "-.->")}


def lines(graph: Graph) -> Iterator[str]:
    """One flowchart; each flow is a box of its own. Thick: commands; dotted: after a failure."""
    yield "flowchart LR"
    for node in graph.of_flow(None):
        yield f"    {_node(node)}"
    for flow in graph.flows:
        yield f"    subgraph flow.{flow} [{_text(flow)}]"
        for node in graph.of_flow(flow):
            yield f"        {_node(node)}"
        yield "    end"
    for edge in graph.edges:
        yield f"    {_edge(edge)}"


def _node(node: Node) -> str:
    opening, closing = _SHAPES[node.kind]
    return f"{_id(node.key)}{opening}{_text(node.label, *node.notes)}{closing}"


def _edge(edge: Edge) -> str:
    arrow = _ARROWS[edge.kind][edge.after_failure]
    label = f"|{_text(*edge.labels)}|" if edge.labels else ""
    return f"{_id(edge.source)} {arrow}{label} {_id(edge.target)}"


def _id(key: str) -> str:
    """Keys begin with what they are, so that none is a word of Mermaid's, like `end`."""
    return "".join(c if c.isalnum() or c in "._" else f"_{ord(c):x}_" for c in key)


def _text(*rows: str) -> str:
    """Quoted; Mermaid knows entities, written with # and without &."""
    text = "\n".join(rows)
    for character, entity in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;"), ("\n", "<br>")):
        text = text.replace(character, entity)
    return f'"{text}"'
