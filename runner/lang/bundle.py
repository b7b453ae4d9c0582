"""Payload schemas of many files → one document, in which every `$ref` names a part of that document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote, urldefrag

from runner.lang.references import DATA, NAMED, file_of
from runner.source import Document, Node, plain

_NEWER = frozenset(
    {
        "$dynamicAnchor", "$dynamicRef", "$recursiveRef", "dependentRequired", "dependentSchemas", "maxContains",
        "minContains", "prefixItems", "unevaluatedItems", "unevaluatedProperties",
    }
)  # fmt: skip
"""Keywords that draft-07 does not know, and would pass over."""


@dataclass(frozen=True, slots=True)
class _Base:
    """Where references count from: `root` of the file `filename`, which is put at the pointer `at`."""

    filename: str
    root: Any
    at: str


class Bundle:
    """The schemas of one document. `shared` are those of the project's schema files, by a name that can be part of a
    pointer; they are to be put below `place`, as in `#/components/schemas`, and `inside` follows their names there."""

    def __init__(self, documents: Mapping[str, Document], place: str, inside: str = "") -> None:
        self._documents = documents
        self._place = place
        self._inside = inside
        self.shared: dict[str, Any] = {}

    def schema(self, node: Node | None, document: Document, at: str) -> Any:
        """The schema that is written at `node`, as it is to stand at the pointer `at` of the document: an object, also
        for `true` and `false`."""
        written = {} if node is None else plain(node)
        return _as_object(self._schema(written, _Base(document.filename, written, at), at))

    def _schema(self, value: Any, base: _Base, here: str) -> Any:
        """A schema, or a list or a mapping of some, that stands at the pointer `here`."""
        if isinstance(value, list):
            return [self._schema(item, base, f"{here}/{n}") for n, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if "$id" in value and value is not base.root:  # from here on, references count from it
            base = replace(base, root=value, at=here)
        found: dict[str, Any] = {}
        for key, inner in value.items():
            place = f"{here}/{_part(key)}"
            if key == "$ref" and isinstance(inner, str):
                found[key] = self._reference(inner, base)
            elif key in NAMED and isinstance(inner, dict):
                found[key] = {name: self._schema(one, base, f"{place}/{_part(name)}") for name, one in inner.items()}
            elif key in DATA:
                found[key] = inner
            elif key not in ("$schema", "$id"):  # what they say holds for a file of its own
                found[key] = self._schema(inner, base, place)
        return _with_reference_apart(found)

    def _reference(self, reference: str, base: _Base) -> str:
        target, fragment = urldefrag(reference)
        root, at = base.root, base.at
        if target:
            name = file_of(target, base.filename)
            if name is None or name not in self._documents:
                return reference
            root, at = plain(self._documents[name].root), self._share(name)
        if fragment and not fragment.startswith("/"):
            path = _path_of(unquote(fragment), root)
            return reference if path is None else at + path
        return at + fragment

    def _share(self, filename: str) -> str:
        """Where a file's schema stands in the document."""
        name = filename.removesuffix(".json").replace("/", ".")
        name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
        at = f"{self._place}/{name}{self._inside}"
        if name not in self.shared:
            self.shared[name] = {}  # it may refer to itself
            root = plain(self._documents[filename].root)
            self.shared[name] = _as_object(self._schema(root, _Base(filename, root, at), at))
        return at


def _with_reference_apart(schema: dict[str, Any]) -> dict[str, Any]:
    """Before draft 2019-09 whatever stands beside a `$ref` is passed over."""
    if "$ref" not in schema or len(schema) == 1:
        return schema
    rest = {key: value for key, value in schema.items() if key != "$ref"}
    return {**rest, "allOf": [*rest.get("allOf", ()), {"$ref": schema["$ref"]}]}


def _part(name: object) -> str:
    """A name as it stands in a pointer."""
    return quote(str(name).replace("~", "~0").replace("/", "~1"), safe="$")


def _as_object(schema: Any) -> Any:
    return {} if schema is True else {"not": {}} if schema is False else schema


def is_newer(schemas: Iterable[Node | None]) -> bool:
    """Whether a schema says something that draft-07 would pass over."""
    return any(has_newer(plain(node)) for node in schemas)


def has_newer(value: Any) -> bool:
    """The same of a schema as data."""
    if isinstance(value, dict):
        return bool(_NEWER & set(value)) or any(map(has_newer, value.values()))
    return isinstance(value, list) and any(map(has_newer, value))


def _path_of(anchor: str, value: Any) -> str | None:
    """The JSON pointer of an anchor."""
    if isinstance(value, dict):
        if anchor in (value.get("$anchor"), value.get("$dynamicAnchor")):
            return ""
        inner: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    else:
        return None
    for key, one in inner:
        path = _path_of(anchor, one)
        if path is not None:
            return f"/{_part(key)}{path}"
    return None
