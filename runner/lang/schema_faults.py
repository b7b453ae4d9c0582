"""FR301: a payload schema against the JSON Schema draft that it is written in. Nothing is fetched for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jsonschema_rs

from runner.diagnostics import Diagnostic, did_you_mean
from runner.lang.references import narrow, schemas_in
from runner.source import MappingNode, Node, ScalarNode, locate, plain

DRAFTS = (
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-04/schema",
)
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")


def schema_faults(node: Node) -> Iterator[Diagnostic]:
    """What keeps a schema from being one."""
    schema = plain(node)
    if not isinstance(schema, dict | bool):
        yield _fault("a schema is an object, true or false", node)
        return
    unknown = [draft for inner in schemas_in(node) if (draft := inner.get("$schema")) and _draft(draft) is None]
    for draft in unknown:
        help = f"without $schema it is {DRAFTS[0]}"
        yield _fault(f"{json.dumps(plain(draft))} is no draft of JSON Schema that is known here", draft, help)
    if unknown:
        return
    own = node.get("$schema") if isinstance(node, MappingNode) else None
    bad = False
    for error in _validator((_draft(own) if own is not None else None) or DRAFTS[0]).iter_errors(schema):
        bad = True
        yield _explained(error, node)
    if not bad:
        yield from _patterns(node)


def _draft(node: Node) -> str | None:
    name = str(plain(node)).removesuffix("#")
    return name if name in DRAFTS else None


@lru_cache
def _validator(draft: str) -> Any:
    uri = draft + "#" if draft.startswith("http:") else draft
    return jsonschema_rs.validator_for({"$schema": uri, "$ref": uri}, offline=True, validate_formats=False)


def _explained(error: Any, root: Node) -> Diagnostic:
    path = list(error.instance_path)
    place = locate(root, path)
    keyword = next((step for step in reversed(path) if isinstance(step, str)), None)
    shown = json.dumps(plain(place), ensure_ascii=False)
    shown = shown if len(shown) <= 60 else shown[:59] + "…"
    if keyword == "type":
        help = did_you_mean(str(plain(place)), _TYPES) or f"one of: {', '.join(_TYPES)}"
        return _fault(f"{shown} is no type of JSON Schema", place, help)
    if error.kind.name in ("anyOf", "oneOf") or len(error.message) > 160:
        return _fault(f'{shown} cannot be the value of "{keyword}" in a JSON Schema', place)
    return _fault(f"this is no JSON Schema: {error.message}", place)


def _patterns(node: Node) -> Iterator[Diagnostic]:
    for schema in schemas_in(node):
        named = schema.get("patternProperties")
        keys = [key for key, _ in named.entries] if isinstance(named, MappingNode) else []
        for pattern in [schema.get("pattern"), *keys]:
            if isinstance(pattern, ScalarNode) and not _compiles(pattern.text):
                yield _fault(f"{json.dumps(pattern.text, ensure_ascii=False)} is no regular expression", pattern)


def _compiles(pattern: str) -> bool:
    try:
        jsonschema_rs.validator_for({"pattern": pattern}, offline=True)
    except (jsonschema_rs.ValidationError, ValueError):
        return False
    return True


def _fault(summary: str, node: Node, help: str | None = None) -> Diagnostic:
    return Diagnostic(code="FR301", summary=summary, span=narrow(node), help=help)
