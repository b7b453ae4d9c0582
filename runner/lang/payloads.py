"""Payload schemas: resolved inside the project, compiled once, never fetched.

A `$ref` may name a file below the project's root, relative to the file that has it, and nothing else.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urldefrag

import jsonschema_rs

from runner.diagnostics import Diagnostic, did_you_mean
from runner.lang.load import Sources, load_json
from runner.lang.references import (
    circles,
    file_of,
    has_own_bases,
    narrow,
    outside,
    part_of,
    pointers_in,
    references_in,
)
from runner.lang.schema_faults import schema_faults
from runner.lang.types import Follow, Type, of_schema
from runner.plan import Check
from runner.source import Document, Node, ScalarNode, Span, plain

_SCHEME = "flowrun:///"
ANYTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """An event's payload schema, usable: `properties` and so on of its outermost object, and its check."""

    check: Check
    outline: Mapping[str, Any] = field(default_factory=dict)
    """The schema itself, with a `$ref` at its top followed."""
    base: str = ""
    """Where relative references inside `outline` count from."""
    root: Any = None
    """What references without a file, `#/$defs/x`, count from."""

    def fits_anything(self) -> bool:
        """It says nothing of the payload."""
        return not self.outline


def accept_all(_: Any) -> str | None:
    """The check of a schema that says nothing."""
    return None


@dataclass(slots=True)
class _Scan:
    """The reading of one event's schema: which files it used, which references it has."""

    used: set[str]
    seen: set[str] = field(default_factory=set)
    references: dict[int, ScalarNode] = field(default_factory=dict)
    sound: bool = True


class Payloads:
    """All payload schemas of a project; remembers which files each flow used."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._targets: dict[int, Node] = {}
        self._types: dict[Payload, Type] = {}
        self.documents: dict[str, Document] = {}
        """The schema files that were read, by name."""
        self.diagnostics: list[Diagnostic] = []
        self.used: dict[str, set[str]] = {}

    def compile(self, node: Node | None, document: Document) -> Payload:
        """The payload schema written at `node` in a flow file. Faults go to `diagnostics`."""
        if node is None:
            return Payload(accept_all)
        scan = _Scan(self.used.setdefault(document.filename, set()))
        before = len(self.diagnostics)
        self._scan(node, document, scan)
        self.diagnostics += circles(scan.references.values(), self._targets)
        if len(self.diagnostics) > before or not scan.sound:
            return Payload(accept_all)
        written = _without_id(plain(node))
        base = _SCHEME + document.filename
        try:
            validator = _validator_for(written, base, self._retrieve)
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
            self._report("FR302", f"this schema cannot be used: {_first_line(error)}", narrow(node))
            return Payload(accept_all)
        outline, base, root = self._outline(written, base)
        return Payload(_check(validator), outline, base, root)

    def type_of(self, payload: Payload) -> Type:
        """What is known of a payload before it comes."""
        if payload not in self._types:
            self._types[payload] = of_schema(payload.outline, self._follow(payload.base, payload.root))
        return self._types[payload]

    def _follow(self, base: str, root: Any) -> Follow:
        def follow(reference: str) -> tuple[Any, Follow] | None:
            target, fragment = urldefrag(reference)
            there, schema = base, root
            if target:
                name = file_of(target, base.removeprefix(_SCHEME))
                if name is None or name not in self.documents:
                    return None
                there, schema = _SCHEME + name, self._retrieve(_SCHEME + name)
            if fragment and not fragment.startswith("/"):
                return None
            return _at(schema, fragment), self._follow(there, schema)

        return follow

    def fragment_check(self, payload: Payload, schema: Any) -> Check:
        """A check for a schema that stands inside a payload's outline."""
        try:
            return _check(_validator_for(schema, payload.base, self._retrieve))
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError):
            return accept_all  # e.g. "#/$defs/x" of the outer schema: its own check will say it at run time

    def _scan(self, node: Node, document: Document, scan: _Scan) -> None:
        """Check a schema, and the files that it refers to, each once."""
        self.diagnostics += schema_faults(node)
        for reference in references_in(node):
            scan.references[id(reference)] = reference
            target, fragment = urldefrag(str(reference.value))
            root: Node | None = node
            if target:
                name = file_of(target, document.filename)
                if name is None:
                    self.diagnostics.append(outside(reference))
                    continue
                root = self._file(name, reference, scan)
            if root is not None:
                self._point(reference, unquote(fragment), root)

    def _file(self, name: str, reference: ScalarNode, scan: _Scan) -> Node | None:
        """The root of a file that a `$ref` names, itself checked."""
        document = self._document(name, reference)
        if document.root is None:
            scan.sound = False
        elif name not in scan.seen:
            scan.seen.add(name)
            scan.used.add(name)
            self._scan(document.root, document, scan)
        return document.root

    def _point(self, reference: ScalarNode, fragment: str, root: Node) -> None:
        """Note what a `$ref` names inside a schema."""
        target = part_of(root, fragment)
        if target is not None:
            self._targets[id(reference)] = target
        elif not has_own_bases(root):  # below an inner $id, references count from there: jsonschema follows those
            help = did_you_mean(fragment, pointers_in(root))
            self._report("FR302", f"$ref names #{fragment}, which is not there", reference.span, help=help)

    def _document(self, name: str, reference: ScalarNode) -> Document:
        if name not in self.documents:
            self.documents[name], faults = load_json(self._sources, name)
            for fault in faults:
                if fault.code == "FR001":
                    self._report("FR302", f"$ref: {fault.summary}", reference.span, help=fault.help)
                else:
                    self.diagnostics.append(fault)
        return self.documents[name]

    def _retrieve(self, uri: str) -> Any:
        """A file of the project for jsonschema, which resolves references against `flowrun:///`."""
        target, _ = urldefrag(uri)
        document = self.documents.get(posixpath.normpath(unquote(target.removeprefix(_SCHEME))))
        if not target.startswith(_SCHEME) or document is None:
            raise ValueError("only files of the project can be referred to")
        return _without_id(plain(document.root))

    def _outline(self, schema: Any, base: str) -> tuple[Mapping[str, Any], str, Any]:
        root = schema
        for _ in range(10):
            if not isinstance(schema, dict):
                break
            if set(schema) - {"$ref", "description", "title", "$schema"} or "$ref" not in schema:
                return schema, base, root
            target, fragment = urldefrag(schema["$ref"])
            name = file_of(target, base.removeprefix(_SCHEME)) if target else base.removeprefix(_SCHEME)
            if name is None or (not target and fragment):
                break
            root, base = self._retrieve(_SCHEME + name), _SCHEME + name
            schema = _at(root, fragment)
        return ANYTHING, base, root

    def _report(self, code: str, summary: str, span: Span, *, help: str | None = None) -> None:
        self.diagnostics.append(Diagnostic(code=code, summary=summary, span=span, help=help))


def _at(schema: Any, fragment: str) -> Any:
    """What a JSON pointer names in a schema."""
    for part in fragment.split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and name.isdecimal() and int(name) < len(schema):
            schema = schema[int(name)]
        else:
            schema = schema.get(name, ANYTHING) if isinstance(schema, dict) else ANYTHING
    return schema


def _without_id(schema: Any) -> Any:
    """A schema's own `$id` is a label here: its references count from its file."""
    return {key: value for key, value in schema.items() if key != "$id"} if isinstance(schema, dict) else schema


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
