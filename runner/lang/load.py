"""Files → Documents: YAML read by the 1.2 core rules, every node with its place.

Built on PyYAML's event stream and not on its tree, so that depth, aliases and size are counted before
anything is built, and `on`, `010` and `12:30:45` stay what they look like.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from json import JSONDecodeError
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import yaml

from runner.diagnostics import Diagnostic, Related, Severity, did_you_mean
from runner.lang.json_text import parse_json
from runner.lang.syntax import MAX_DEPTH, explain, no_text
from runner.source import Document, Lines, MappingNode, Node, Position, Scalar, ScalarNode, SequenceNode, Span

MAX_BYTES = 1024 * 1024
MAX_ALIASES = 100
MAX_NODES = 100_000

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {text: text.lower() == "true" for text in ("true", "True", "TRUE", "false", "False", "FALSE")}
_NUMERIC = frozenset("+-.0123456789")
"""What a number begins with."""
_INT = re.compile(r"[-+]?[0-9]{1,400}")
_BASED = re.compile(r"0o[0-7]{1,400}|0x[0-9a-fA-F]{1,400}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_JSON = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)+")
_TAG = re.compile(r"![^\s,\]}]*")


@dataclass(frozen=True, slots=True)
class Sources:
    """The texts of a project, by name relative to its root: from its folder, or as a store kept them. Where there are
    both, the text that is kept stands for the file."""

    root: Path | None
    kept: Mapping[str, str] = field(default_factory=dict)

    def read(self, name: str) -> bytes:
        """The bytes of a file inside the project, no more than one above MAX_BYTES. Raises OSError, also for what
        lies outside it."""
        if name in self.kept:
            return self.kept[name].encode()
        if self.root is None:
            raise FileNotFoundError(name)
        root = self.root.resolve()
        try:
            path = (root / name).resolve()
            if not path.is_relative_to(root):
                raise PermissionError("it lies outside the project")
            if path.exists() and not path.is_file() and not path.is_dir():
                raise PermissionError("it is no ordinary file")
            with path.open("rb") as file:
                return file.read(MAX_BYTES + 1)
        except (ValueError, RuntimeError) as error:  # a NUL in the name, links in a circle
            raise FileNotFoundError(str(error)) from None

    def flow_files(self) -> tuple[str, ...]:
        """The project's flow files, sorted."""
        if self.root is None:
            return tuple(sorted(name for name in self.kept if _is_flow_file(name)))
        found = [path for ending in ("*.yaml", "*.yml") for path in (self.root / "flows").glob(ending)]
        return tuple(sorted(n for p in found if _is_flow_file(n := p.relative_to(self.root).as_posix())))


def _is_flow_file(name: str) -> bool:
    path = PurePosixPath(name)
    if path.name.startswith("."):
        return False  # an editor's
    return path.suffix in (".yaml", ".yml") and not path.stem.endswith(".test") and path.parts[0] == "flows"


def load(sources: Sources, name: str) -> tuple[Document, list[Diagnostic]]:
    """One file as a Document, with what is wrong with its text."""
    try:
        data = sources.read(name)
    except OSError as error:
        nothing = Document(name, "", None)
        return nothing, [_file_fault(nothing, name, error)]
    return load_text(name, data)


def load_text(name: str, data: bytes) -> tuple[Document, list[Diagnostic]]:
    """A file's bytes as a Document, with what is wrong with its text."""
    document, fault = _decode(name, data)
    if fault is not None:
        return document, [fault]
    builder = _Builder(name, document.text)
    return replace(document, root=builder.build()), builder.diagnostics


def load_json(sources: Sources, name: str) -> tuple[Document, list[Diagnostic]]:
    """A JSON file as a Document, with what is wrong with its text."""
    try:
        document, fault = _decode(name, sources.read(name))
    except OSError as error:
        document = Document(name, "", None)
        fault = _file_fault(document, name, error)
    if fault is not None:
        return document, [fault]
    try:
        root, twice = parse_json(name, document.text)
    except JSONDecodeError as error:
        lines = Lines(document.text)
        span = Span(name, lines.position(error.pos), lines.position(error.pos + 1))
        problem = error.msg[:1].lower() + error.msg[1:]
        summary = f"this is not JSON: {problem}" if document.text.strip() else "this is not JSON: the file is empty"
        return document, [Diagnostic(code="FR303", summary=summary, span=span)]
    return replace(document, root=root), [_twice(key, first) for key, first in twice]


def _decode(name: str, data: bytes) -> tuple[Document, Diagnostic | None]:
    nothing = Document(name, "", None)
    if len(data) > MAX_BYTES:
        summary = f"the file is larger than {MAX_BYTES // 1024} KiB"
        return nothing, Diagnostic(code="FR008", summary=summary, span=nothing.start)
    skipped = len(_BYTE_ORDER_MARK) if data.startswith(_BYTE_ORDER_MARK) else 0
    try:
        text = data[skipped:].decode()
    except UnicodeDecodeError as error:
        at = skipped + error.start
        summary = f"the file is not UTF-8 text (byte 0x{data[at]:02x} at offset {at})"
        return nothing, Diagnostic(code="FR002", summary=summary, span=nothing.start, help="save the file as UTF-8")
    return Document(name, text, None, skipped), None


def _file_fault(document: Document, name: str, error: OSError) -> Diagnostic:
    reason = error.strerror or str(error)
    help = None
    if isinstance(error, FileNotFoundError):
        reason = "there is no such file"
    elif isinstance(error, IsADirectoryError):
        reason = "it is a folder"
        help = "flow files stand in flows/ itself"
    summary = f"{name} cannot be read: {reason}"
    return Diagnostic(code="FR001", summary=summary, span=document.start, help=help)


def _twice(key: ScalarNode, first: ScalarNode) -> Diagnostic:
    related = (Related("the first one is here", first.span),)
    return Diagnostic(code="FR003", summary=f'key "{key.text}" is given twice', span=key.span, related=related)


class _Stop(Exception):
    """The rest of the file cannot be read."""


@dataclass(frozen=True, slots=True)
class _Anchored:
    """What `&name` stands at, with how many values it has and how many levels."""

    node: Node
    size: int
    depth: int


@dataclass(slots=True)
class _Collection:
    """A mapping or list whose end has not come yet."""

    start: Position
    anchor: str | None
    is_mapping: bool
    children: list[Node] = field(default_factory=list)
    size: int = 1
    depth: int = 1


class _Builder:
    """Builds the tree of one file out of YAML events."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.diagnostics: list[Diagnostic] = []
        self._lines = Lines(text)
        self._stack: list[_Collection] = []
        self._anchors: dict[str, _Anchored] = {}
        self._aliases = 0
        self._nodes = 0
        self._root: Node | None = None
        self._documents = 0

    def build(self) -> Node | None:
        """The root; None if the file is empty or cannot be read to its end."""
        fault = no_text(self.name, self.text, self._lines)
        if fault is not None:
            self.diagnostics.append(fault)
            return None
        try:
            self._read()
        except _Stop:
            return None
        except yaml.YAMLError as error:
            self.diagnostics.append(explain(self.name, self.text, self._lines, error))
            return None
        if self._root is None or (isinstance(self._root, ScalarNode) and not self._root.raw):
            start = Document(self.name, self.text, None).start
            self._report("FR005", "the file is empty", start, severity=Severity.WARNING)
            return None
        return self._root

    def _read(self) -> None:
        for event in yaml.parse(self.text, Loader=_LOADER):
            match event:  # the commonest first
                case yaml.ScalarEvent():
                    self._scalar(event)
                case yaml.CollectionStartEvent():
                    self._begin(event)
                case yaml.CollectionEndEvent():
                    self._end(event)
                case yaml.AliasEvent():
                    self._alias(event)
                case yaml.DocumentStartEvent():
                    self._documents += 1
                    if self._documents > 1:
                        self._stop("FR010", "one file is one flow: a second document begins here", self._span(event))

    def _begin(self, event: yaml.CollectionStartEvent) -> None:
        if event.tag is not None and not event.implicit:
            self._tag(self._span(event))
        if len(self._stack) >= MAX_DEPTH:
            self._stop("FR008", f"nested deeper than {MAX_DEPTH} levels", self._span(event))
        start = self._lines.position(_index(event.start_mark))
        self._stack.append(_Collection(start, event.anchor, isinstance(event, yaml.MappingStartEvent)))

    def _end(self, event: yaml.CollectionEndEvent) -> None:
        frame = self._stack.pop()
        end = self._lines.position(_index(event.end_mark))
        if frame.children and frame.children[-1].span.end.offset < end.offset:
            closing = self.text[end.offset - 1 : end.offset] in ("]", "}")
            # The last value may be an alias, whose place is its anchor's; then the key before it is what ends here.
            end = end if closing else max(frame.start, *(child.span.end for child in frame.children[-2:]))
        span = Span(self.name, frame.start, end)
        node: Node
        if frame.is_mapping:
            node = MappingNode(span, self._entries(frame.children))
        else:
            node = SequenceNode(span, tuple(frame.children))
        self._nodes += 1
        self._add(node, frame.size, frame.depth)
        if frame.anchor is not None:
            self._anchors[frame.anchor] = _Anchored(node, frame.size, frame.depth)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        start, end = _index(event.start_mark), _index(event.end_mark)
        if event.tag is not None:
            self._tag(self._span(event))
        if event.tag is not None or event.anchor is not None:
            properties = _PROPERTIES.match(self.text, start, end)
            start = properties.end() if properties is not None else end
        raw = self.text[start:end].rstrip()  # a block's last line ends with it
        span = self._lines.span(self.name, start, raw)
        value: Scalar = event.value
        if event.implicit[0] and not event.style:
            value = self._resolve(event.value, span)
        self._nodes += 1
        node = ScalarNode(span, value, raw)
        self._add(node, 1, 0)
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(node, 1, 0)

    def _tag(self, span: Span) -> None:
        found = _TAG.search(self.text, span.start.offset)
        assert found is not None
        start, end = self._lines.position(found.start()), self._lines.position(found.end())
        self._report(
            "FR004", f"tags are not allowed: {found.group()}", Span(self.name, start, end), help="leave it out"
        )

    def _resolve(self, text: str, span: Span) -> Scalar:
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        if text[0] not in _NUMERIC:
            return text
        if _INT.fullmatch(text):
            return int(text)
        if _BASED.fullmatch(text):
            return int(text, 0)
        number = float(text) if _FLOAT.fullmatch(text) else None
        if _NOT_JSON.fullmatch(text) or (number is not None and math.isinf(number)):
            self._report("FR011", f"JSON cannot carry the number {text}", span, help="quote it to mean text")
            return text
        return text if number is None else number

    def _alias(self, event: yaml.AliasEvent) -> None:
        span = self._span(event)
        self._aliases += 1
        if any(frame.anchor == event.anchor for frame in self._stack):
            self._stop("FR009", f"*{event.anchor} refers to itself", span)
        if self._aliases > MAX_ALIASES:
            self._stop("FR008", f"more than {MAX_ALIASES} aliases", span)
        if event.anchor not in self._anchors:
            help = "quote it to mean text" if not self._anchors else did_you_mean(str(event.anchor), self._anchors)
            self._stop("FR007", f"there is no anchor &{event.anchor} before this", span, help=help)
        anchored = self._anchors[event.anchor]
        self._nodes += anchored.size
        if self._nodes > MAX_NODES:
            self._stop("FR008", f"more than {MAX_NODES} values once its aliases are expanded", span)
        if len(self._stack) + anchored.depth > MAX_DEPTH:
            self._stop("FR008", f"nested deeper than {MAX_DEPTH} levels once its aliases are expanded", span)
        self._add(anchored.node, anchored.size, anchored.depth)

    def _add(self, node: Node, size: int, depth: int) -> None:
        if self._nodes > MAX_NODES:
            self._stop("FR008", f"more than {MAX_NODES} values", node.span)
        if self._stack:
            parent = self._stack[-1]
            parent.children.append(node)
            parent.size += size
            parent.depth = max(parent.depth, depth + 1)
        else:
            self._root = node

    def _entries(self, children: list[Node]) -> tuple[tuple[ScalarNode, Node], ...]:
        own: dict[str, tuple[ScalarNode, Node]] = {}
        merged: dict[str, tuple[ScalarNode, Node]] = {}
        for key, value in zip(children[::2], children[1::2], strict=True):
            if not isinstance(key, ScalarNode):
                self._no_key(key)
            elif key.raw == "<<":
                for name, item in self._merge(value):
                    merged.setdefault(name.text, (name, item))
            elif key.text in own:
                self.diagnostics.append(_twice(key, own[key.text][0]))
            else:
                own[key.text] = (key, value)
        return tuple(own.values()) + tuple(item for name, item in merged.items() if name not in own)

    def _no_key(self, node: Node) -> None:
        if self.text.startswith("{{", node.span.start.offset - 1):
            summary, help = "without quotes, {{ is a mapping in a mapping", 'quote the template: "{{ … }}"'
            self._report("FR007", summary, node.span, help=help)
        else:
            self._report("FR007", "a key must be a word, not a list or a mapping", node.span)

    def _merge(self, value: Node) -> Iterator[tuple[ScalarNode, Node]]:
        if isinstance(value, MappingNode):
            yield from value.entries
        elif isinstance(value, SequenceNode) and all(isinstance(item, MappingNode) for item in value.items):
            for item in value.items:
                yield from self._merge(item)
        else:
            self._report("FR007", "<< takes a mapping or a list of mappings", value.span)

    def _span(self, event: yaml.Event) -> Span:
        start, end = _index(event.start_mark), _index(event.end_mark)
        return Span(self.name, self._lines.position(start), self._lines.position(end))

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

    def _stop(self, code: str, summary: str, span: Span, *, help: str | None = None) -> NoReturn:
        self._report(code, summary, span, help=help)
        raise _Stop


def _index(mark: Any) -> int:
    """A mark's place in characters; PyYAML's events all have theirs."""
    return int(mark.index)
