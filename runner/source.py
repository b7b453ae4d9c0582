"""Text that remembers where it came from."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

Scalar = None | bool | int | float | str

_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|\r?\n[ \t]*|.)")
_FOLD = re.compile(r"[ \t]*(?:\r?\n[ \t]*)+")
_BREAK = re.compile(r"\r?\n")


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


class Lines:
    """Offsets of a text → positions in it."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._text = text

    def position(self, offset: int) -> Position:
        """The place of a character; of the text's end for what lies beyond it."""
        offset = min(offset, len(self._text))
        line = bisect_right(self._starts, offset)
        return Position(offset, line, offset - self._starts[line - 1] + 1)

    def span(self, filename: str, start: int, text: str) -> Span:
        """The place of a text that begins at an offset."""
        begin = self.position(start)
        if "\n" in text:
            return Span(filename, begin, self.position(start + len(text)))
        return Span(filename, begin, Position(start + len(text), begin.line, begin.column + len(text)))

    def line(self, filename: str, number: int) -> Span:
        """The words of a line, counted from 1; of the nearest one if there is none such."""
        number = min(max(number, 1), len(self._starts))
        start = self._starts[number - 1]
        text = self._text[start : self._starts[number] if number < len(self._starts) else None]
        start += len(text) - len(text.lstrip())
        return Span(filename, self.position(start), self.position(start + len(text.strip())))


@dataclass(frozen=True, slots=True)
class Node:
    """Any YAML value, with its place."""

    span: Span


@dataclass(frozen=True, slots=True)
class ScalarNode(Node):
    """A scalar by the YAML 1.2 core rules. `raw` is the text as written, quotes included."""

    value: Scalar
    raw: str

    @property
    def text(self) -> str:
        """What it is called as a key: JSON has texts only, so `7`, `true` and `null` are as they are written."""
        return self.value if isinstance(self.value, str) else self.raw

    def part(self, start: int, length: int = 1) -> Span:
        """The span of `value[start:start + length]` inside the file, however the file writes the value; the whole
        scalar's for what is no part of it."""
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
        for name, value in self.entries:
            if name.text == key:
                return value
        return None

    def key(self, key: str) -> ScalarNode | None:
        """The key's own node, for pointing at it."""
        for name, _ in self.entries:
            if name.text == key:
                return name
        return None

    def items(self) -> Iterator[tuple[str, ScalarNode, Node]]:
        """(key, key's node, value's node)."""
        for name, value in self.entries:
            yield name.text, name, value


@dataclass(frozen=True, slots=True)
class Document:
    """One file: its text, with its own line ends, and its root (None if it is empty, unreadable or not YAML)."""

    filename: str
    text: str
    root: Node | None
    skipped_bytes: int = 0
    """Bytes of the file before `text`: a byte-order mark's."""

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
            return {key.text: plain(value) for key, value in node.entries}
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
    places = _places(node.raw, value)
    if places is None or start >= len(value):
        return node.span
    begin, end = places[start], places[min(start + length, len(value))]
    return Span(node.span.filename, _moved(node, begin), _moved(node, max(end, begin + 1)))


@lru_cache(maxsize=1)
def _places(raw: str, value: str) -> list[int] | None:
    """Where each character of a value stands in its text, and where the text ends. Kept for the next call: a long text
    may have many faults."""
    return _block_places(raw, value) if raw[:1] in ("|", ">") else _flow_places(raw, value)


def _moved(node: ScalarNode, by: int) -> Position:
    """The position so many characters after the beginning of a scalar's text."""
    before, origin = node.raw[:by], node.span.start
    line = origin.line + before.count("\n")
    column = by - before.rindex("\n") if "\n" in before else origin.column + by
    return Position(origin.offset + by, line, column)


def _flow_places(raw: str, value: str) -> list[int] | None:
    """Where each character of a plain or quoted scalar's value stands in its text, and where the text ends.

    Folding and escapes as YAML 1.2, chapters 7.3 and 5.7; None if the two do not agree.
    """
    quote = raw[:1] if raw[:1] in ("'", '"') else ""
    places: list[int] = []
    at = len(quote)
    while len(places) < len(value):
        escape = _ESCAPE.match(raw, at) if quote == '"' else None
        if escape is not None:
            if "\n" not in escape.group():  # else the line goes on, and stands for nothing
                places.append(at)
            at = escape.end()
        elif quote == "'" and raw.startswith("''", at):
            places.append(at)
            at += 2
        elif (fold := _FOLD.match(raw, at)) is not None:
            places += [at] * max(1, fold.group().count("\n") - 1)
            at = fold.end()
        elif raw[at : at + 1] == value[len(places)]:
            places.append(at)
            at += 1
        else:
            return None
    return [*places, at]


def _block_places(raw: str, value: str) -> list[int] | None:
    """As `_flow_places`, of a block scalar (`|` or `>`), YAML 1.2 chapter 8.1."""
    at = raw.find("\n")
    content = next((line for line in raw[at + 1 :].split("\n") if line.strip()), "")
    first = next((line for line in value.split("\n") if line.strip()), "")
    indent = _leading(content) - _leading(first)
    if at < 0 or indent < 0:
        return None
    places = [at] * (len(value) - len(value.lstrip("\n")))
    at = _skip_breaks(raw, at, indent)
    while len(places) < len(value):
        i = len(places)
        if at >= len(raw):
            places.append(len(raw))  # line breaks that end the value
        elif _BREAK.match(raw, at) is not None:
            places += [at] * max(1, len(value) - i - len(value[i:].lstrip("\n")))
            at = _skip_breaks(raw, at, indent)
        elif raw[at] == value[i]:
            places.append(at)
            at += 1
        else:
            return None
    return [*places, at]


def _skip_breaks(raw: str, at: int, indent: int) -> int:
    """Past the line breaks at `at`, and the indentation of the line after each."""
    while (found := _BREAK.match(raw, at)) is not None:
        at = found.end()
        at += min(indent, _leading(raw[at : at + indent]))
    return at


def _leading(text: str) -> int:
    return len(text) - len(text.lstrip(" "))
