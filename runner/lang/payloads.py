"""Payload schemas: resolved inside the project, compiled once, never fetched.

A `$ref` may name a file below the project's root, relative to the file that has it, and nothing else.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urldefrag

import jsonschema_rs

from runner.diagnostics import Diagnostic, Related
from runner.lang.load import Sources, load_json
from runner.plan import Check
from runner.source import Document, MappingNode, Node, ScalarNode, SequenceNode, Span, locate, plain

_SCHEME = "flowrun:///"
ANYTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Payload:
    """An event's payload schema, usable: `properties` and so on of its outermost object, and its check."""

    check: Check
    outline: Mapping[str, Any] = field(default_factory=dict)
    """The schema itself, with a `$ref` at its top followed."""
    base: str = ""
    """Where relative references inside `outline` count from."""

    def fits_anything(self) -> bool:
        """It says nothing of the payload."""
        return not self.outline


def accept_all(_: Any) -> str | None:
    """The check of a schema that says nothing."""
    return None


class Payloads:
    """All payload schemas of a project; remembers which files each flow used."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._documents: dict[str, Document] = {}
        self.diagnostics: list[Diagnostic] = []
        self.used: dict[str, set[str]] = {}

    def compile(self, node: Node | None, document: Document) -> Payload:
        """The payload schema written at `node` in a flow file. Faults go to `diagnostics`."""
        if node is None:
            return Payload(accept_all)
        used = self.used.setdefault(document.filename, set())
        before = len(self.diagnostics)
        self._scan(node, document, used, seen=set())
        if len(self.diagnostics) > before:
            return Payload(accept_all)
        written = plain(node)
        assert isinstance(written, dict | bool)
        base = _SCHEME + document.filename
        try:
            validator = _validator_for(written, base, self._retrieve)
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
            self._report("FR302", f"this schema cannot be used: {_first_line(error)}", node.span)
            return Payload(accept_all)
        outline, base = self._outline(written, base)
        return Payload(_check(validator), outline, base)

    def fragment_check(self, payload: Payload, schema: Any) -> Check:
        """A check for a schema that stands inside a payload's outline."""
        try:
            return _check(_validator_for(schema, payload.base, self._retrieve))
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError):
            return accept_all  # e.g. "#/$defs/x" of the outer schema: its own check will say it at run time

    def _scan(self, node: Node, document: Document, used: set[str], seen: set[str]) -> None:
        """Check a schema against its meta-schema, and the files that it refers to, each once."""
        self._check_meta(node)
        for reference in _references(node):
            target = str(reference.value)
            if target.startswith("#"):
                continue
            name = _file_of(target, document.filename)
            if name is None:
                summary = f"a remote $ref is not allowed: {target}"
                self._report("FR601", summary, reference.span, help="copy the schema into schemas/")
                continue
            used.add(name)
            if name in seen:
                continue
            seen.add(name)
            inner = self._document(name, reference)
            if inner is not None and inner.root is not None:
                self._scan(inner.root, inner, used, seen)

    def _document(self, name: str, reference: ScalarNode) -> Document | None:
        if name not in self._documents:
            document, faults = load_json(self._sources, name)
            self._documents[name] = document
            for fault in faults:
                if fault.code == "FR001":
                    self._report("FR302", f"$ref names {name}, which cannot be read", reference.span)
                else:
                    self.diagnostics.append(fault)
        return self._documents[name]

    def _check_meta(self, node: Node) -> None:
        schema = plain(node)
        if not isinstance(schema, dict | bool):
            self._report("FR301", "a schema is an object, true or false", node.span)
            return
        try:
            jsonschema_rs.meta.validate(schema)
        except jsonschema_rs.ValidationError as error:
            place = locate(node, list(error.instance_path))
            pointer = "/" + "/".join(map(str, error.instance_path))
            self._report("FR301", f"this is no JSON Schema: {error.message} (at {pointer})", _narrow(place))
        except (jsonschema_rs.ReferencingError, ValueError) as error:
            self._report("FR301", f"this is no JSON Schema: {_first_line(error)}", _narrow(node))

    def _retrieve(self, uri: str) -> Any:
        name = _file_of(uri, "")
        if name is None:
            raise ValueError("only files of the project can be referred to")
        if name not in self._documents:
            self._documents[name], _ = load_json(self._sources, name)
        return plain(self._documents[name].root)

    def _outline(self, schema: Any, base: str) -> tuple[Mapping[str, Any], str]:
        for _ in range(10):
            if not isinstance(schema, dict):
                return ANYTHING, base
            if set(schema) - {"$ref", "description", "title", "$schema"} or "$ref" not in schema:
                return schema, base
            target, fragment = urldefrag(schema["$ref"])
            name = _file_of(target, base.removeprefix(_SCHEME)) if target else base.removeprefix(_SCHEME)
            if name is None or (not target and fragment):
                return ANYTHING, base
            schema, base = self._retrieve(_SCHEME + name), _SCHEME + name
            for part in filter(None, fragment.split("/")):
                schema = schema.get(unquote(part), ANYTHING) if isinstance(schema, dict) else ANYTHING
        return ANYTHING, base

    def _report(
        self,
        code: str,
        summary: str,
        span: Span,
        *,
        help: str | None = None,
        related: tuple[Related, ...] = (),
    ) -> None:
        self.diagnostics.append(Diagnostic(code=code, summary=summary, span=span, help=help, related=related))


def _validator_for(schema: Any, base: str, retrieve: Any) -> Any:
    return jsonschema_rs.validator_for(
        schema,
        base_uri=base,
        retriever=retrieve,
        validate_formats=True,
        pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=10_000),
    )


def _check(validator: Any) -> Check:
    def check(value: Any) -> str | None:
        if validator.is_valid(value):
            return None
        error = next(iter(validator.iter_errors(value)))
        pointer = "".join(f"/{part}" for part in error.instance_path)
        return f"{pointer or '/'}: {_clip(error.message)}"

    return check


def _clip(message: str) -> str:
    return message if len(message) <= 300 else message[:299] + "…"


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


def _file_of(reference: str, relative_to: str) -> str | None:
    """The project's file that a `$ref` names; None if it names something else."""
    target, _ = urldefrag(reference)
    if target.startswith(_SCHEME):
        return posixpath.normpath(unquote(target.removeprefix(_SCHEME)))
    if ":" in target.split("/")[0] or target.startswith("/"):
        return None
    name = posixpath.normpath(posixpath.join(posixpath.dirname(relative_to), unquote(target)))
    return None if name.startswith("..") else name


def _references(node: Node) -> Iterator[ScalarNode]:
    match node:
        case MappingNode():
            for key, _, value in node.items():
                if key == "$ref" and isinstance(value, ScalarNode) and isinstance(value.value, str):
                    yield value
                elif key not in ("const", "enum", "default", "examples"):
                    yield from _references(value)
        case SequenceNode():
            for item in node.items:
                yield from _references(item)


def _narrow(node: Node) -> Span:
    if isinstance(node, MappingNode) and node.entries:
        return node.entries[0][0].span
    return node.span
