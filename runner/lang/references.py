"""FR302, FR601: the `$ref`s of payload schemas, and what they name."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from urllib.parse import unquote, urldefrag

from runner.diagnostics import Diagnostic, Related
from runner.source import Document, MappingNode, Node, ScalarNode, SequenceNode, Span

DATA = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are data and no schemas."""
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose values are schemas by name: the names are no keywords."""


def schemas_in(node: Node) -> Iterator[MappingNode]:
    """A schema and every schema inside it, as objects."""
    if isinstance(node, SequenceNode):
        for item in node.items:
            yield from schemas_in(item)
    if not isinstance(node, MappingNode):
        return
    yield node
    for key, _, value in node.items():
        if key in NAMED and isinstance(value, MappingNode):
            for _, inner in value.entries:
                yield from schemas_in(inner)
        elif key not in DATA:
            yield from schemas_in(value)


def references_in(node: Node) -> Iterator[ScalarNode]:
    """The value of every `$ref`."""
    for schema in schemas_in(node):
        reference = schema.get("$ref")
        if isinstance(reference, ScalarNode) and isinstance(reference.value, str):
            yield reference


def file_of(reference: str, relative_to: str) -> str | None:
    """The project's file that a `$ref` names; None if it names something else."""
    target, _ = urldefrag(reference)
    if ":" in target.split("/")[0] or target.startswith(("/", "\\")):
        return None
    name = posixpath.normpath(posixpath.join(posixpath.dirname(relative_to), unquote(target)))
    return None if name.startswith(("..", "/")) else name


def outside(reference: ScalarNode) -> Diagnostic:
    """FR601 for a `$ref` that names no file of the project."""
    target = str(reference.value)
    remote = "://" in target
    summary = f"a remote $ref is not allowed: {target}" if remote else f"$ref leads out of the project: {target}"
    help = "copy the schema into schemas/, and name that file"
    return Diagnostic(code="FR601", summary=summary, span=reference.span, help=help)


def part_of(root: Node, fragment: str) -> Node | None:
    """What `#fragment` names in a schema: a JSON pointer, or an anchor."""
    if fragment and not fragment.startswith("/"):
        return next((schema for schema in schemas_in(root) if fragment in _anchors(schema)), None)
    node: Node | None = root
    for part in fragment.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, MappingNode):
            node = node.get(name)
        elif isinstance(node, SequenceNode) and name.isdecimal() and int(name) < len(node.items):
            node = node.items[int(name)]
        else:
            return None
    return node


def pointers_in(root: Node) -> list[str]:
    """The definitions and anchors that a `$ref` may name."""
    found = []
    for keyword in ("$defs", "definitions"):
        definitions = root.get(keyword) if isinstance(root, MappingNode) else None
        if isinstance(definitions, MappingNode):
            found += [f"/{keyword}/{name}" for name, _, _ in definitions.items()]
    return found + [anchor for schema in schemas_in(root) for anchor in _anchors(schema)]


def has_own_bases(root: Node) -> bool:
    """Whether a schema inside has an `$id`, from which its references count."""
    return any(schema.get("$id") is not None for schema in schemas_in(root) if schema is not root)


def circles(references: Iterable[ScalarNode], targets: Mapping[int, Node]) -> Iterator[Diagnostic]:
    """FR302 for references that lead, by nothing but references, back to themselves; once a circle."""
    reported: set[int] = set()
    for first in references:
        path = [first]
        while (step := _next(path[-1], targets)) is not None and all(step is not known for known in path):
            path.append(step)
        if step is first and not reported & {id(reference) for reference in path}:
            reported |= {id(reference) for reference in path}
            related = tuple(Related("by way of", reference.span) for reference in path[1:])
            summary = "this $ref leads back to itself, and says nothing"
            yield Diagnostic(code="FR302", summary=summary, span=first.span, related=related)


def narrow(node: Node) -> Span:
    """A mapping's first word is enough to point at."""
    if isinstance(node, MappingNode) and node.entries and node.span.start.line != node.span.end.line:
        return node.entries[0][0].span
    return node.span


def _next(reference: ScalarNode, targets: Mapping[int, Node]) -> ScalarNode | None:
    target = targets.get(id(reference))
    onward = target.get("$ref") if isinstance(target, MappingNode) else None
    return onward if isinstance(onward, ScalarNode) and id(onward) in targets else None


def _anchors(schema: MappingNode) -> list[str]:
    nodes = (schema.get("$anchor"), schema.get("$dynamicAnchor"))
    return [node.value for node in nodes if isinstance(node, ScalarNode) and isinstance(node.value, str)]


def place_in_schema(
    node: Node, document: Document, documents: Mapping[str, Document], path: Sequence[str | int], keyword: str
) -> tuple[int, Span]:
    """Where a schema speaks of the part of a value that `path` leads to, and there of `keyword`; and how many steps of
    the path it follows. References are followed, alternatives are not; a step `*` is any item or field."""
    root, name = node, None
    steps = path[:-1] if keyword in ("required", "additionalProperties") else path
    taken = 0
    while True:
        node, root, document = _referred(node, root, document, documents)
        found = _part_for(node, steps[taken]) if taken < len(steps) else None
        if found is None:
            break
        name, node = found
        taken += 1
    key = node.key(keyword) if isinstance(node, MappingNode) else None
    if key is not None:
        return taken, key.span
    return taken, narrow(node) if name is None else name.span


def _referred(
    node: Node, root: Node, document: Document, documents: Mapping[str, Document]
) -> tuple[Node, Node, Document]:
    """What a schema that only refers to another refers to, with the root and the file that it stands in."""
    for _ in range(10):
        reference = node.get("$ref") if isinstance(node, MappingNode) else None
        if not isinstance(reference, ScalarNode):
            break
        target, fragment = urldefrag(str(reference.value))
        if target:
            there = documents.get(file_of(target, document.filename) or "")
            if there is None or there.root is None:
                break
            root, document = there.root, there
        part = part_of(root, unquote(fragment))
        if part is None:
            break
        node = part
    return node, root, document


def _part_for(node: Node, step: str | int) -> tuple[ScalarNode, Node] | None:
    """The key and the schema of a field or an item."""
    if not isinstance(node, MappingNode):
        return None
    properties = node.get("properties")
    if isinstance(properties, MappingNode) and (key := properties.key(str(step))) is not None:
        inner = properties.get(str(step))
        return None if inner is None else (key, inner)
    for keyword in ("items", "additionalProperties") if step == "*" else ("items",) if isinstance(step, int) else ():
        key, inner = node.key(keyword), node.get(keyword)
        if key is not None and inner is not None:
            return key, inner
    return None
