"""Text that remembers where it came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Scalar = None | bool | int | float | str


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a text: `offset` in characters from 0, `line` and `column` from 1."""

    offset: int
    line: int
    column: int


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A stretch of a file; `end` is exclusive. `filename` is relative to the project's root."""

    filename: str
    start: Position
    end: Position

    def __str__(self) -> str:
        return f"{self.filename}:{self.start.line}:{self.start.column}"


@dataclass(frozen=True, slots=True)
class Node:
    """Any YAML value, with its place."""

    span: Span


@dataclass(frozen=True, slots=True)
class ScalarNode(Node):
    """A scalar by the YAML 1.2 core rules. `raw` is the text as written, quotes included."""

    value: Scalar
    raw: str

    def part(self, start: int, length: int = 1) -> Span:
        """The span of `value[start:start + length]` inside the file; the whole scalar's where escapes or
        folding make that unknowable."""
        return _part(self, start, length)


@dataclass(frozen=True, slots=True)
class SequenceNode(Node):
    """A list."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class MappingNode(Node):
    """A mapping; keys are scalars, kept in the order of the file."""

    entries: tuple[tuple[ScalarNode, Node], ...]

    def get(self, key: str) -> Node | None:
        """The value of a key, or None."""
        return next((value for name, value in self.entries if name.value == key), None)

    def key(self, key: str) -> ScalarNode | None:
        """The key's own node, for pointing at it."""
        return next((name for name, _ in self.entries if name.value == key), None)

    def items(self) -> Iterator[tuple[str, ScalarNode, Node]]:
        """(key, key's node, value's node), for keys that are text."""
        for name, value in self.entries:
            if isinstance(name.value, str):
                yield name.value, name, value


@dataclass(frozen=True, slots=True)
class Document:
    """One parsed file: its text, and its root (None for an empty or unreadable one)."""

    filename: str
    text: str
    root: Node | None

    @property
    def start(self) -> Span:
        """The file's first character, for faults of the file as a whole."""
        return Span(self.filename, Position(0, 1, 1), Position(0, 1, 1))


def plain(node: Node | None) -> object:
    """The node as ordinary Python data: dict, list, str, int, float, bool, None."""
    match node:
        case ScalarNode():
            return node.value
        case SequenceNode():
            return [plain(item) for item in node.items]
        case MappingNode():
            return {str(key.value): plain(value) for key, value in node.entries}
    return None


def locate(root: Node, path: list[str | int]) -> Node:
    """The node at a path of keys and indexes, or the deepest one that exists on the way."""
    node = root
    for step in path:
        child = None
        if isinstance(node, MappingNode):
            child = node.get(str(step))
        elif isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.items):
            child = node.items[step]
        if child is None:
            return node
        node = child
    return node


def _part(node: ScalarNode, start: int, length: int) -> Span:
    value = node.value
    if not isinstance(value, str):
        return node.span
    lines = value[:start].split("\n")
    target = value.split("\n")[len(lines) - 1]
    column = len(lines[-1])
    if "\n" not in value:
        at = node.raw.find(value)
        if at < 0 or "\n" in node.raw[:at]:
            return _in_folded(node, value, start, length)
        return _shift(node.span, node.span.start, at + start, length)
    return _in_block(node, target, column, len(lines) - 1, length)


def _in_folded(node: ScalarNode, value: str, start: int, length: int) -> Span:
    """A value that the file writes over several lines, or with escapes: find the word that begins there."""
    word = value[start : start + length].split("\n")[0].strip()
    if word and value.count(word) == 1 and node.raw.count(word) == 1:
        return _span_at(node, node.raw.index(word), len(word))
    return node.span


def _in_block(node: ScalarNode, target: str, column: int, index: int, length: int) -> Span:
    """A literal block (`|`): its n-th line stands on the n-th line after the indicator."""
    raw_lines = node.raw.split("\n")
    if index + 1 >= len(raw_lines) or not target or target not in raw_lines[index + 1]:
        return node.span
    offset = sum(len(line) + 1 for line in raw_lines[: index + 1]) + raw_lines[index + 1].index(target)
    return _span_at(node, offset + column, min(length, len(target) - column) or 1)


def _span_at(node: ScalarNode, offset: int, length: int) -> Span:
    before = node.raw[:offset]
    line = node.span.start.line + before.count("\n")
    column = offset - before.rindex("\n") if "\n" in before else node.span.start.column + offset
    start = Position(node.span.start.offset + offset, line, column)
    return Span(node.span.filename, start, Position(start.offset + length, line, column + length))


def _shift(span: Span, origin: Position, by: int, length: int) -> Span:
    start = Position(origin.offset + by, origin.line, origin.column + by)
    return Span(span.filename, start, Position(start.offset + length, start.line, start.column + length))
