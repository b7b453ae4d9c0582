"""JSON text → nodes with their places; unlike the standard library's reader it knows where every value stands."""

from __future__ import annotations

import math
import re
from json import JSONDecodeError, JSONDecoder

from runner.source import Lines, MappingNode, Node, Scalar, ScalarNode, SequenceNode, Span

MAX_DEPTH = 100

_DECODER = JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,400})(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Scalar] = {"null": None, "true": True, "false": False}
_WORD = re.compile("null|true|false")


def parse_json(name: str, text: str) -> tuple[Node, list[tuple[ScalarNode, ScalarNode]]]:
    """The root, and each key that is given twice, with the first one. Raises JSONDecodeError."""
    reader = _Reader(name, text)
    node, end = reader.value(reader.space(0), 0)
    end = reader.space(end)
    if end != len(text):
        raise JSONDecodeError("only one value may stand here", text, end)
    return node, reader.twice


class _Reader:
    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.twice: list[tuple[ScalarNode, ScalarNode]] = []
        self._lines = Lines(text)

    def space(self, at: int) -> int:
        match = _SPACE.match(self.text, at)
        return match.end() if match is not None else at

    def value(self, at: int, depth: int) -> tuple[Node, int]:
        if depth > MAX_DEPTH:
            raise JSONDecodeError(f"nested deeper than {MAX_DEPTH} levels", self.text, at)
        match self.text[at : at + 1]:
            case "{":
                return self._mapping(at, depth)
            case "[":
                return self._list(at, depth)
            case '"':
                return self._string(at)
        word = _WORD.match(self.text, at)
        if word is not None:
            return self._scalar(at, word.end(), _WORDS[word.group()])
        number = _NUMBER.match(self.text, at)
        if number is None:
            raise JSONDecodeError("a value is missing here", self.text, at)
        whole = number.group(1) is None and number.group(2) is None
        found = int(number.group()) if whole else float(number.group())
        if isinstance(found, float) and math.isinf(found):
            raise JSONDecodeError("the number is too large", self.text, at)
        return self._scalar(at, number.end(), found)

    def _string(self, at: int) -> tuple[ScalarNode, int]:
        value, end = _DECODER.raw_decode(self.text, at)
        return self._scalar(at, end, value)

    def _scalar(self, at: int, end: int, value: Scalar) -> tuple[ScalarNode, int]:
        return ScalarNode(self._span(at, end), value, self.text[at:end]), end

    def _list(self, begin: int, depth: int) -> tuple[Node, int]:
        items: list[Node] = []
        at = self.space(begin + 1)
        while self.text[at : at + 1] != "]":
            if items:
                at = self._expect(",", at, "]")
                if self.text[at : at + 1] == "]":
                    raise JSONDecodeError("a comma must not stand before this", self.text, at)
            item, at = self.value(at, depth + 1)
            items.append(item)
            at = self.space(at)
        return SequenceNode(self._span(begin, at + 1), tuple(items)), at + 1

    def _mapping(self, begin: int, depth: int) -> tuple[Node, int]:
        entries: dict[str, tuple[ScalarNode, Node]] = {}
        at = self.space(begin + 1)
        while self.text[at : at + 1] != "}":
            if entries:
                at = self._expect(",", at, "}")
            if entries and self.text[at : at + 1] == "}":
                raise JSONDecodeError("a comma must not stand before this", self.text, at)
            if self.text[at : at + 1] != '"':
                raise JSONDecodeError("a key in double quotes is missing here", self.text, at)
            key, at = self._string(at)
            value, at = self.value(self._expect(":", self.space(at)), depth + 1)
            if key.text in entries:
                self.twice.append((key, entries[key.text][0]))
            else:
                entries[key.text] = (key, value)
            at = self.space(at)
        return MappingNode(self._span(begin, at + 1), tuple(entries.values())), at + 1

    def _expect(self, mark: str, at: int, closing: str | None = None) -> int:
        if self.text[at : at + 1] != mark:
            wanted = f'"{mark}"' if closing is None else f'"{mark}" or "{closing}"'
            raise JSONDecodeError(f"{wanted} is missing here", self.text, at)
        return self.space(at + 1)

    def _span(self, at: int, end: int) -> Span:
        return Span(self.name, self._lines.position(at), self._lines.position(end))
