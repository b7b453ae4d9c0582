"""FR401: names that AMQP can carry: a queue's name and a routing key have at most 255 bytes."""

from __future__ import annotations

from collections.abc import Iterator

from runner.diagnostics import Diagnostic
from runner.lang.project import Declarations
from runner.source import ScalarNode

MAX_BYTES = 255


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Names that are too long for the broker."""
    for flow in project.flows:
        for handler in flow.handlers:
            yield from _length(f"{project.project}.{handler.full_name}", handler.node, "the queue's name")
        for event in flow.events:
            yield from _length(event.name, event.node, "the routing key")
            for key in event.keys:
                yield from _length(key.text, key, "the routing key")
        for command in flow.commands:
            yield from _length(command.name, command.node, "the routing key")
        for route in flow.routes:
            for pattern in route.patterns:
                yield from _length(pattern.text, pattern, "the binding's pattern")


def _length(name: str, node: ScalarNode, what: str) -> Iterator[Diagnostic]:
    size = len(name.encode(errors="replace"))
    if size > MAX_BYTES:
        shown = f"{name[:40]}…"
        summary = f'{what} "{shown}" has {size} bytes: a broker takes {MAX_BYTES}'
        yield Diagnostic(code="FR401", summary=summary, span=node.span, help="choose a shorter name")
