"""What is known of a value before anything runs: the alternatives that it may be, from JSON Schemas.

It is silent when unsure: what a schema says in a way that is not understood here is `unknown`, and of what is unknown
nothing is said to be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from runner.plan import Parameter, Signature

Later = Callable[[], "Type"]
"""Inner types are made when they are asked for: schemas may be circles."""

KINDS = ("null", "boolean", "integer", "number", "string", "array", "object")
_NOT_UNDERSTOOD = frozenset(
    {
        "if",
        "then",
        "else",
        "not",
        "dependentSchemas",
        "dependentRequired",
        "dependencies",
        "unevaluatedProperties",
        "$dynamicRef",
        "$recursiveRef",
        "contentSchema",
    }
)
_OF_OBJECTS = frozenset({"properties", "required", "additionalProperties", "patternProperties"})
MAX_ALTERNATIVES = 64


@dataclass(frozen=True, slots=True)
class Slot:
    """A field that an object may have."""

    type: Later
    required: bool


@dataclass(frozen=True, slots=True, eq=False)
class Alt:
    """One thing that a value may be. `values` are the only ones it takes, of a scalar; `fields`, `rest` (any other
    field) and `closed` (there is no other) are an object's, `items` a list's.

    `soft`: whether it can be that hangs on what a condition says, which nobody here understands.
    """

    kind: str
    values: frozenset[Any] | None = None
    fields: Mapping[str, Slot] = field(default_factory=dict)
    closed: bool = False
    rest: Later | None = None
    items: Later | None = None
    soft: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Type:
    """All that a value may be. `unknown`: and anything else; `missing`: or not there at all."""

    alts: tuple[Alt, ...]
    unknown: bool = False
    missing: bool = False

    @property
    def is_never(self) -> bool:
        """No value is of this type."""
        return not (self.alts or self.unknown or self.missing)


ANY = Type((), unknown=True)
NEVER = Type(())


def of_kind(*kinds: str) -> Type:
    """Any value of these kinds."""
    return Type(tuple(Alt(kind) for kind in kinds))


def constant(value: Any) -> Type:
    """The type of one JSON value."""
    match value:
        case None:
            return of_kind("null")
        case bool() | int() | float() | str():
            return Type((Alt(_kind_of(value), frozenset((value,))),))
        case list():
            items = union(constant(item) for item in value)
            return Type((Alt("array", items=lambda: items),))
        case dict():
            return record({str(key): constant(item) for key, item in value.items()})
    return ANY


def one_of(*texts: str) -> Type:
    """One of these texts."""
    return Type((Alt("string", frozenset(texts)),))


def record(fields: Mapping[str, Type]) -> Type:
    """An object with these fields and no others; one whose type may be missing is optional."""
    slots = {name: _slot(kind) for name, kind in fields.items()}
    return Type((Alt("object", fields=slots, closed=True),))


def list_of(items: Type) -> Type:
    """A list of such items."""
    return Type((Alt("array", items=lambda: items),))


def union(types: Iterable[Type]) -> Type:
    """Any of them."""
    alts: list[Alt] = []
    unknown = missing = False
    for each in types:
        alts += (alt for alt in each.alts if alt not in alts)
        unknown, missing = unknown or each.unknown, missing or each.missing
    if len(alts) > MAX_ALTERNATIVES:
        return Type((), unknown=True, missing=missing)
    return Type(tuple(alts), unknown, missing)


def soft(kind: Type) -> Type:
    """The same, if a condition has it so."""
    return replace(kind, alts=tuple(replace(alt, soft=True) for alt in kind.alts))


def with_field(kind: Type, name: str, value: Type) -> Type:
    """Objects with one more field, or with another value of it."""
    slot = _slot(value)
    return replace(
        kind,
        alts=tuple(
            replace(alt, fields={**alt.fields, name: slot}) if alt.kind == "object" else alt for alt in kind.alts
        ),
    )


def _slot(kind: Type) -> Slot:
    present = replace(kind, missing=False) if kind.missing else kind
    return Slot(lambda: present, not kind.missing)


def _kind_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


# --- JSON Schema -------------------------------------------------------------------------------------------

Follow = Callable[[str], "tuple[Any, Follow] | None"]
"""What a `$ref` names, and how those in there are followed; None if that is not known."""


def of_parameter(parameter: Parameter, signature: Signature) -> Type:
    """What a handler plugin takes for a parameter."""
    return of_schema(parameter.schema, _within(signature.definitions))


def of_result(signature: Signature) -> Type:
    """What a handler plugin gives. A field with a default is there all the same: nothing is taken for optional."""
    return of_schema(_whole(signature.returns), _within(_whole_each(signature.definitions)))


def _within(definitions: Mapping[str, Any]) -> Follow:
    def follow(reference: str) -> tuple[Any, Follow] | None:
        name = reference.removeprefix("#/$defs/")
        return (definitions[name], follow) if name in definitions else None

    return follow


def _whole_each(schemas: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _whole(schema) for name, schema in schemas.items()}


def _whole(schema: Any) -> Any:
    """A schema in which every field is required."""
    if isinstance(schema, list):
        return [_whole(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _whole(each) if key not in ("enum", "const", "default") else each for key, each in schema.items()}
    if isinstance(properties := inner.get("properties"), dict):
        inner["required"] = list(properties)
    return inner


def of_schema(schema: Any, follow: Follow, depth: int = 0) -> Type:
    """The values that fit a JSON Schema (draft 2020-12)."""
    if schema is False:
        return NEVER
    if not isinstance(schema, dict) or depth > 20 or not _NOT_UNDERSTOOD.isdisjoint(schema):
        return ANY
    parts = [_plainly(schema, follow)]
    if "$ref" in schema:
        there = follow(str(schema["$ref"]))
        parts.append(ANY if there is None else of_schema(*there, depth + 1))
    parts += (of_schema(each, follow, depth + 1) for each in schema.get("allOf", ()))
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            parts.append(union(of_schema(each, follow, depth + 1) for each in schema[choice]))
    found = parts[0]
    for part in parts[1:]:
        found = _both(found, part)
    return found


def _plainly(schema: Mapping[str, Any], follow: Follow) -> Type:
    """What a schema says by itself, without those that it refers to."""
    given = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if given is not None:
        return union(constant(value) for value in given) if isinstance(given, list) else ANY
    kinds = schema.get("type")
    if kinds is None:
        kinds = ["object"] if not _OF_OBJECTS.isdisjoint(schema) else ["array"] if "items" in schema else None
    if kinds is None:
        return ANY
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return Type(tuple(_alternative(kind, schema, follow) for kind in kinds if kind in KINDS))


def _alternative(kind: str, schema: Mapping[str, Any], follow: Follow) -> Alt:
    if kind == "array":
        items = schema.get("items", True)
        return Alt("array", items=lambda: ANY if "prefixItems" in schema else of_schema(items, follow))
    if kind != "object":
        return Alt(kind)
    properties, required = schema.get("properties", {}), schema.get("required", ())
    fields = {str(name): Slot(_later(each, follow), name in required) for name, each in properties.items()}
    fields |= {str(name): Slot(lambda: ANY, True) for name in required if name not in properties}
    more = schema.get("additionalProperties")
    if "patternProperties" in schema or not fields:
        return Alt("object", fields=fields, rest=lambda: ANY)
    return Alt("object", fields=fields, closed=more is False, rest=_later(more, follow) if more else None)


def _later(schema: Any, follow: Follow) -> Later:
    @lru_cache(maxsize=1)
    def kind() -> Type:
        return of_schema(schema, follow)

    return kind


def _both(one: Type, other: Type) -> Type:
    """What is of both types."""
    if one.unknown and not one.alts:
        return other
    if other.unknown and not other.alts:
        return one
    alts = [both for a in one.alts for b in other.alts if (both := _both_alts(a, b)) is not None]
    return Type(tuple(alts[:MAX_ALTERNATIVES]), unknown=one.unknown or other.unknown or len(alts) > MAX_ALTERNATIVES)


def _both_alts(a: Alt, b: Alt) -> Alt | None:
    kinds = {a.kind, b.kind}
    if len(kinds) > 1 and kinds != {"integer", "number"}:
        return None
    kind = "integer" if "integer" in kinds else a.kind
    if kind == "object":
        return _both_objects(a, b)
    if kind == "array":
        return a if b.items is None else b
    values = a.values if b.values is None else b.values if a.values is None else a.values & b.values
    return None if values is not None and not values else Alt(kind, values)


def _both_objects(a: Alt, b: Alt) -> Alt:
    fields: dict[str, Slot] = {}
    for name in {**a.fields, **b.fields}:
        one, other = a.fields.get(name), b.fields.get(name)
        if one is None or other is None:
            there = one or other
            assert there is not None
            fields[name] = there
        else:
            fields[name] = Slot(_both_later(one.type, other.type), one.required or other.required)
    # Where one is closed, what only the other names can never be; that is not said here, so that nothing is.
    return Alt("object", fields=fields, closed=a.closed and b.closed, rest=a.rest or b.rest)


def _both_later(one: Later, other: Later) -> Later:
    return lambda: _both(one(), other())
