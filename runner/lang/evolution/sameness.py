"""Whether two JSON Schemas say the same in the same words: prose aside, and however they are put into files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.lang.evolution.cases import Schema, canonical

FILES = "$files"
"""Where a document has the schemas of other files."""
PROSE = frozenset(
    {"$comment", "$schema", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly"}
)
"""Keywords that say nothing of a value."""
_MAX_STEPS = 24


def same(one: Any, other: Any) -> bool:
    """Whether two documents say the same of a value; prose does not count."""
    return Sameness(Schema(one), Schema(other)).holds(one, other)


class Sameness:
    """Compares two documents, and schemas inside them. Without `formats` a `format` is not the same on both sides."""

    def __init__(self, one: Schema, other: Schema, formats: bool = True) -> None:
        self._one, self._other, self._formats = one, other, formats
        self._assumed: dict[tuple[int, int], tuple[Any, Any]] = {}
        """Pairs that are alike, if those before them are; their schemas are held, so that no id is another's later."""

    def holds(self, one: Any, other: Any) -> bool:
        """As schemas: references are followed, in circles as well."""
        one, other = _referred(one, self._one), _referred(other, self._other)
        if not isinstance(one, dict) or not isinstance(other, dict):
            return type(one) is type(other) and bool(one == other)
        pair = (id(one), id(other))
        if pair in self._assumed:
            return True
        before = len(self._assumed)
        self._assumed[pair] = (one, other)
        mine, others = _said(one), _said(other)
        alike = set(mine) == set(others) and all(self._keyword(key, mine[key], others[key]) for key in mine)
        while not alike and len(self._assumed) > before:
            self._assumed.popitem()
        return alike

    def _keyword(self, key: str, one: Any, other: Any) -> bool:
        match key:
            case "$ref":
                there, where = self._one.at(str(one)), self._other.at(str(other))
                return there is not None and where is not None and self.holds(there, where)
            case "properties" | "patternProperties" | "dependentSchemas":
                return set(one) == set(other) and all(self.holds(one[name], other[name]) for name in one)
            case "allOf" | "anyOf" | "oneOf" | "prefixItems":
                return len(one) == len(other) and all(map(self.holds, one, other))
            case "additionalProperties" | "contains" | "else" | "if" | "items" | "not" | "propertyNames" | "then":
                return self.holds(one, other)
            case "required" | "enum" | "type":
                lists = [each if isinstance(each, list) else [each] for each in (one, other)]
                return {canonical(each) for each in lists[0]} == {canonical(each) for each in lists[1]}
            case "format" | "$dynamicRef" | "$recursiveRef":
                return key == "format" and self._formats and bool(one == other)
        return canonical(one) == canonical(other)


def _referred(schema: Any, whole: Schema) -> Any:
    """What a schema refers to that says nothing else."""
    for _ in range(_MAX_STEPS):
        if not isinstance(schema, dict) or set(_said(schema)) != {"$ref"}:
            break
        there = whole.at(str(schema["$ref"]))
        if there is None:
            break
        schema = there
    return schema


def _said(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema without what says nothing of a value; definitions count where they are referred to."""
    return {key: value for key, value in schema.items() if key not in PROSE | {"$defs", "definitions", FILES}}
