"""Files → Documents: YAML read by the 1.2 core rules, every node with its place.

Built on PyYAML's event stream and not on its tree, so that depth, aliases and size are counted before
anything is built, and `on`, `010` and `12:30:45` stay what they look like.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NoReturn

import yaml

from runner.diagnostics import Diagnostic, Related, Severity
from runner.source import Document, MappingNode, Node, Position, Scalar, ScalarNode, SequenceNode, Span

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 100
MAX_ALIASES = 100
MAX_NODES = 100_000

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {text: text.lower() == "true" for text in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_JSON = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True, slots=True)
class Sources:
    """The texts of a project, by name relative to its root: from its folder, or as a store kept them."""

    root: Path | None
    kept: Mapping[str, str] = field(default_factory=dict)

    def read(self, name: str) -> bytes:
        """The bytes of a file inside the project. Raises OSError, also for what lies outside it."""
        if self.root is None:
            if name not in self.kept:
                raise FileNotFoundError(name)
            return self.kept[name].encode()
        root = self.root.resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise PermissionError(f"{name} lies outside the project")
        return path.read_bytes()

    def flow_files(self) -> tuple[str, ...]:
        """The project's flow files, sorted."""
        if self.root is None:
            return tuple(sorted(name for name in self.kept if _is_flow_file(name)))
        found = [path for ending in ("*.yaml", "*.yml") for path in (self.root / "flows").glob(ending)]
        return tuple(sorted(n for p in found if _is_flow_file(n := p.relative_to(self.root).as_posix())))


def _is_flow_file(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix in (".yaml", ".yml") and not path.stem.endswith(".test") and path.parts[0] == "flows"


def load(sources: Sources, name: str) -> tuple[Document, list[Diagnostic]]:
    """One file as a Document, with what is wrong with its text."""
    nothing = Document(name, "", None)
    try:
        data = sources.read(name)
    except OSError as error:
        return nothing, [_file_fault(nothing, name, error)]
    if len(data) > MAX_BYTES:
        return nothing, [
            Diagnostic(code="FR008", summary=f"the file is larger than {MAX_BYTES // 1024} KiB", span=nothing.start)
        ]
    return load_text(name, data)


def load_text(name: str, data: bytes) -> tuple[Document, list[Diagnostic]]:
    """A file's bytes as a Document, with what is wrong with its text."""
    nothing = Document(name, "", None)
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        summary = f"the file is not UTF-8 text (byte 0x{data[error.start]:02x} at offset {error.start})"
        return nothing, [Diagnostic(code="FR002", summary=summary, span=nothing.start, help="save the file as UTF-8")]
    builder = _Builder(name, text.replace("\r\n", "\n"))
    return builder.build(), builder.diagnostics


def _file_fault(document: Document, name: str, error: OSError) -> Diagnostic:
    reason = error.strerror or str(error)
    if isinstance(error, FileNotFoundError):
        reason = "there is no such file"
    return Diagnostic(code="FR001", summary=f"{name} cannot be read: {reason.lower()}", span=document.start)


class _Stop(Exception):
    """The rest of the file cannot be read."""


@dataclass(slots=True)
class _Collection:
    start: Position
    anchor: str | None
    is_mapping: bool
    children: list[Node]
    size: int = 1


class _Builder:
    """Builds the tree of one file out of YAML events."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.diagnostics: list[Diagnostic] = []
        self._stack: list[_Collection] = []
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._aliases = 0
        self._nodes = 0
        self._root: Node | None = None
        self._documents = 0

    def build(self) -> Document:
        try:
            self._read()
        except _Stop:
            return Document(self.name, self.text, None)
        except yaml.YAMLError as error:
            self._syntax(error)
            return Document(self.name, self.text, None)
        document = Document(self.name, self.text, self._root)
        if self._root is None or (isinstance(self._root, ScalarNode) and self._root.value is None):
            self._report("FR005", "the file is empty", document.start, severity=Severity.WARNING)
            return Document(self.name, self.text, None)
        return document

    def _read(self) -> None:
        for event in yaml.parse(self.text, Loader=_LOADER):
            match event:
                case yaml.DocumentStartEvent():
                    self._documents += 1
                    if self._documents > 1:
                        self._stop("FR010", "one file is one flow: a second document begins here", self._span(event))
                case yaml.AliasEvent():
                    self._alias(event)
                case yaml.ScalarEvent():
                    self._scalar(event)
                case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                    self._begin(event)
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    self._end(event)

    def _begin(self, event: yaml.CollectionStartEvent) -> None:
        span = self._span(event)
        if event.tag is not None and not event.implicit:
            self._report("FR004", f"tags are not allowed: {event.tag}", span)
        if len(self._stack) >= MAX_DEPTH:
            self._stop("FR008", f"nested deeper than {MAX_DEPTH} levels", span)
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        self._stack.append(_Collection(span.start, event.anchor, is_mapping, []))

    def _end(self, event: yaml.CollectionEndEvent) -> None:
        frame = self._stack.pop()
        end = _position(event.end_mark)
        if frame.children and frame.children[-1].span.end.offset < end.offset:
            closing = self.text[end.offset - 1 : end.offset] in ("]", "}")
            end = end if closing else max(frame.children[-1].span.end, frame.start)
        span = Span(self.name, frame.start, end)
        node: Node
        if frame.is_mapping:
            node = MappingNode(span, self._entries(frame.children))
        else:
            node = SequenceNode(span, tuple(frame.children))
        self._add(node, frame.anchor, frame.size)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        span = self._span(event)
        if event.tag is not None:
            self._report("FR004", f"tags are not allowed: {event.tag}", span)
        raw = self.text[span.start.offset : span.end.offset]
        value: Scalar = event.value
        if event.implicit[0] and not event.style:
            value = self._resolve(event.value, span)
        self._add(ScalarNode(span, value, raw), event.anchor, 1)

    def _resolve(self, text: str, span: Span) -> Scalar:
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        if len(text) <= 400 and _INT.fullmatch(text):
            return int(text)
        if _BASED.fullmatch(text):
            return int(text, 0)
        if _NOT_JSON.fullmatch(text):
            self._report("FR011", f"{text} is a number that JSON cannot carry", span, help="quote it to mean text")
        elif _FLOAT.fullmatch(text):
            return float(text)
        return text

    def _alias(self, event: yaml.AliasEvent) -> None:
        span = self._span(event)
        self._aliases += 1
        if any(frame.anchor == event.anchor for frame in self._stack):
            self._stop("FR009", f"*{event.anchor} refers to itself", span)
        if self._aliases > MAX_ALIASES:
            self._stop("FR008", f"more than {MAX_ALIASES} aliases", span)
        if event.anchor not in self._anchors:
            self._stop("FR007", f"there is no anchor &{event.anchor} before this", span)
        node, size = self._anchors[event.anchor]
        self._add(node, None, size)

    def _add(self, node: Node, anchor: str | None, size: int) -> None:
        self._nodes += size if size > 1 and anchor is None else 1
        if self._nodes > MAX_NODES:
            self._stop("FR008", f"more than {MAX_NODES} values after its aliases are expanded", node.span)
        if anchor is not None:
            self._anchors[anchor] = (node, size)
        if self._stack:
            self._stack[-1].children.append(node)
            self._stack[-1].size += size
        else:
            self._root = node

    def _entries(self, children: list[Node]) -> tuple[tuple[ScalarNode, Node], ...]:
        own: dict[Scalar, tuple[ScalarNode, Node]] = {}
        merged: dict[Scalar, tuple[ScalarNode, Node]] = {}
        for key, value in zip(children[::2], children[1::2], strict=True):
            if not isinstance(key, ScalarNode):
                self._report("FR007", "a key must be a plain word, not a list or a mapping", key.span)
            elif key.raw == "<<":
                for name, item in self._merge(value):
                    merged.setdefault(name.value, (name, item))
            elif key.value in own:
                first = Related("the first one is here", own[key.value][0].span)
                self._report("FR003", f'key "{key.value}" is given twice', key.span, related=(first,))
            else:
                own[key.value] = (key, value)
        return tuple(own.values()) + tuple(item for name, item in merged.items() if name not in own)

    def _merge(self, value: Node) -> Iterator[tuple[ScalarNode, Node]]:
        if isinstance(value, MappingNode):
            yield from value.entries
        elif isinstance(value, SequenceNode) and all(isinstance(item, MappingNode) for item in value.items):
            for item in value.items:
                yield from self._merge(item)
        else:
            self._report("FR007", "<< takes a mapping or a list of mappings", value.span)

    def _syntax(self, error: yaml.YAMLError) -> None:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        position = _position(mark) if mark is not None else Position(0, 1, 1)
        span = Span(self.name, position, Position(position.offset + 1, position.line, position.column + 1))
        related: tuple[Related, ...] = ()
        context_mark = getattr(error, "context_mark", None)
        if context_mark is not None and getattr(error, "context", None):
            place = _position(context_mark)
            related = (Related(str(error.context), Span(self.name, place, place)),)  # type: ignore[attr-defined]
        if self.text[position.offset : position.offset + 1] == "\t":
            self._report("FR006", "tabs cannot indent YAML", span, help="use spaces")
        elif isinstance(error, yaml.reader.ReaderError) or "control characters" in str(problem):
            self._report("FR002", "the file holds characters that are not text", span)
        else:
            self._report("FR007", f"this is not YAML: {problem}", span, related=related)

    def _span(self, event: yaml.Event) -> Span:
        return Span(self.name, _position(event.start_mark), _position(event.end_mark))

    def _report(
        self,
        code: str,
        summary: str,
        span: Span,
        *,
        severity: Severity = Severity.ERROR,
        help: str | None = None,
        related: tuple[Related, ...] = (),
    ) -> None:
        self.diagnostics.append(
            Diagnostic(code=code, summary=summary, span=span, severity=severity, help=help, related=related)
        )

    def _stop(self, code: str, summary: str, span: Span) -> NoReturn:
        self._report(code, summary, span)
        raise _Stop


def _position(mark: yaml.Mark) -> Position:
    return Position(mark.index, mark.line + 1, mark.column + 1)


def load_json(sources: Sources, name: str) -> tuple[Document, list[Diagnostic]]:
    """A JSON file (JSON is YAML's flow style) as a Document; its faults are named as JSON's."""
    document, faults = load(sources, name)
    if document.root is not None or not faults:
        try:
            json.loads(document.text)
        except (ValueError, RecursionError) as error:
            line, column = getattr(error, "lineno", 1), getattr(error, "colno", 1)
            place = Position(getattr(error, "pos", 0), line, column)
            message = getattr(error, "msg", str(error))
            span = Span(name, place, Position(place.offset + 1, line, column + 1))
            faults = [Diagnostic(code="FR303", summary=f"{name} is not JSON: {message}", span=span)]
            return Document(name, document.text, None), faults
    return document, faults
