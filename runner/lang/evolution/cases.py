"""What a JSON Schema says of a value, taken apart: the cases of its alternatives, each a list of plain demands.

Whatever is asked of a case is true of every value that fits it; where a schema says more than is understood here, the
answer is merely wider.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil, floor
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

KINDS = ("null", "boolean", "integer", "fraction", "string", "array", "object")
"""Disjoint, other than the types of JSON Schema: a number is an integer or a fraction."""
NUMBERS = frozenset({"integer", "fraction"})
MAX_CASES = 48
MAX_NESTED = 5


def kinds_of_type(name: str) -> frozenset[str]:
    """The kinds that a type of JSON Schema has."""
    return NUMBERS if name == "number" else frozenset({name})


def kind_of(value: Any) -> str:
    """The kind of a JSON value."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "fraction"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def canonical(value: Any) -> str:
    """Equal for JSON values that are equal, as JSON Schema has it: 1 is 1.0, and not true."""
    return json.dumps(_whole(value), sort_keys=True)


def _whole(value: Any) -> Any:
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [_whole(item) for item in value]
        case dict():
            return {key: _whole(item) for key, item in value.items()}
    return value


@lru_cache(maxsize=1000)
def _pattern(pattern: str) -> Any:
    return jsonschema_rs.validator_for(
        {"pattern": pattern}, pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=10_000)
    )


def matches(pattern: str, text: str) -> bool:
    """Whether a text has a match of the pattern, by the rules that payloads are checked by."""
    return bool(_pattern(pattern).is_valid(text))


class Schema:
    """One document in which every `$ref` names a part of it."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self._kept: list[Any] = []
        self._nested = 0

    def at(self, reference: str) -> Any:
        """What a `$ref` names; None if that is not known."""
        node = self.root
        if not reference.startswith("#"):
            return None
        for part in reference[1:].split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            elif isinstance(node, dict) and name in node:
                node = node[name]
            else:
                return None
        return node

    def any_of(self, schemas: Iterable[Any]) -> Any:
        """Any of these. It stays the same object: what is known of a schema is kept by its identity."""
        self._kept.append({"anyOf": list(schemas)})
        return self._kept[-1]

    def cases(self, schemas: Iterable[Any]) -> list[Case]:
        """The cases of a value that fits all of these schemas; none if there is no such value."""
        atoms, choices = self._flat(schemas)
        if atoms is None:
            return []
        found = [atoms]
        self._nested += 1
        for options in choices if self._nested < MAX_NESTED else ():  # an alternative may be the schema itself
            inner = [case.atoms for option in options for case in self.cases([option])]
            if len(inner) * len(found) > MAX_CASES:
                continue  # one demand less: the cases are wider than need be
            found = [[*case, *more] for case in found for more in inner]
        self._nested -= 1
        cases = (case for atoms in found for case in _by_value(Case(self, tuple(atoms))))
        return [case for case in cases if case.kinds]

    def _flat(self, schemas: Iterable[Any]) -> tuple[list[dict[str, Any]] | None, list[list[Any]]]:
        """What is demanded in any case, and the choices besides."""
        todo, atoms, choices = list(schemas), list[dict[str, Any]](), list[list[Any]]()
        while todo:
            schema = todo.pop()
            if schema is False:
                return None, []
            if not isinstance(schema, dict) or any(schema is atom for atom in atoms):
                continue
            atoms.append(schema)
            todo += schema.get("allOf", ())
            if "$ref" in schema:
                todo.append(self.at(str(schema["$ref"])))
            choices += [schema[choice] for choice in ("anyOf", "oneOf") if choice in schema]
        return atoms, choices


def _by_value(case: Case) -> Iterator[Case]:
    """One case a value, where a few values are all that there are."""
    given = case.listed
    if given is None or len(given) > MAX_CASES:
        yield case
        return
    for value in given:
        yield Case(case.schema, ({"const": value}, *(atom for atom in case.atoms)))


@dataclass(frozen=True, eq=False)
class Case:
    """A value that fits all `atoms`; what these say by `allOf`, `anyOf`, `oneOf` and `$ref` is among them already."""

    schema: Schema
    atoms: tuple[dict[str, Any], ...]

    @cached_property
    def listed(self) -> list[Any] | None:
        """The only values that it may be."""
        lists = [atom["enum"] for atom in self.atoms if isinstance(atom.get("enum"), list)]
        lists += [[atom["const"]] for atom in self.atoms if "const" in atom]
        if not lists:
            return None
        texts = [{canonical(value) for value in each} for each in lists]
        first = min(lists, key=len)
        return [value for value in first if all(canonical(value) in each for each in texts)]

    @cached_property
    def is_one(self) -> bool:
        """It is one value: `value`."""
        return self.listed is not None and len(self.listed) == 1

    @property
    def value(self) -> Any:
        """The one value that it is."""
        assert self.listed is not None
        return self.listed[0]

    @cached_property
    def kinds(self) -> frozenset[str]:
        """What kinds of value it may be."""
        found = frozenset(KINDS)
        for atom in self.atoms:
            types = atom.get("type")
            if types is not None:
                names = [types] if isinstance(types, str) else types
                found &= frozenset().union(*map(kinds_of_type, names))
        if self.listed is not None:
            found &= {kind_of(value) for value in self.listed}
        return found

    # --- numbers and lengths

    def limits(self, keyword: str) -> list[Any]:
        """What the atoms say under a keyword."""
        return [atom[keyword] for atom in self.atoms if keyword in atom]

    @cached_property
    def least(self) -> tuple[float, bool] | None:
        """The lower bound of a number, and whether it is excluded; None if there is none."""
        if self.is_one and kind_of(self.value) in NUMBERS:
            return self.value, False
        bounds = [(bound, False) for bound in self.limits("minimum")]
        bounds += [(bound, True) for bound in self.limits("exclusiveMinimum")]
        if not bounds:
            return None
        bound, excluded = max(bounds)
        if "fraction" in self.kinds:
            return bound, excluded
        return (floor(bound) + 1 if excluded else ceil(bound)), False

    @cached_property
    def most(self) -> tuple[float, bool] | None:
        """The upper bound of a number, as `least`."""
        if self.is_one and kind_of(self.value) in NUMBERS:
            return self.value, False
        bounds = [(-bound, False) for bound in self.limits("maximum")]
        bounds += [(-bound, True) for bound in self.limits("exclusiveMaximum")]
        if not bounds:
            return None
        bound, excluded = max(bounds)
        if "fraction" in self.kinds:
            return -bound, excluded
        return (ceil(-bound) - 1 if excluded else floor(-bound)), False

    def at_least(self, keyword: str) -> int:
        """The lower bound of a length or a number of things: `minLength`, `minItems`, `minProperties`."""
        if self.is_one and isinstance(self.value, str | list | dict):
            return len(self.value)
        return int(max(self.limits(keyword), default=0))

    def at_most(self, keyword: str) -> int | None:
        """The upper bound, as `at_least`; None if there is none."""
        if self.is_one and isinstance(self.value, str | list | dict):
            return len(self.value)
        return min(map(int, self.limits(keyword)), default=None)

    # --- objects and lists

    @cached_property
    def required(self) -> frozenset[str]:
        """The fields that are there for certain."""
        if self.is_one and isinstance(self.value, dict):
            return frozenset(self.value)
        return frozenset(name for names in self.limits("required") if isinstance(names, list) for name in names)

    @cached_property
    def named(self) -> tuple[str, ...]:
        """The fields that some atom names."""
        own = list(self.value) if self.is_one and isinstance(self.value, dict) else []
        return tuple(dict.fromkeys([*own, *(name for fields in self.limits("properties") for name in fields)]))

    def names(self, field: str) -> bool:
        """Whether it says what a field of that name is: under the name, a pattern, or as any other field."""
        return self.is_one or any(
            field in atom.get("properties", {})
            or atom.get("additionalProperties") is not None
            or any(matches(pattern, field) for pattern in atom.get("patternProperties", {}))
            for atom in self.atoms
        )

    def field(self, name: str) -> list[Any]:
        """The schemas that a field fits, if it is there."""
        if self.is_one and isinstance(self.value, dict):
            return [{"const": self.value[name]}] if name in self.value else [False]
        return [schema for atom in self.atoms for schema in _of_field(atom, name)]

    def field_like(self, pattern: str) -> list[Any]:
        """The schemas that any field fits whose name has a match of the pattern, and is not among `named`."""
        found = []
        for atom in self.atoms:
            patterns, rest = atom.get("patternProperties", {}), atom.get("additionalProperties", True)
            found.append(patterns[pattern] if pattern in patterns else self._any(patterns.values(), rest))
        return [False] if self.is_one else found

    def other_field(self, besides: Iterable[str]) -> list[Any]:
        """The schemas that any field fits whose name matches none of the patterns `besides`, and is not `named`."""
        found = []
        for atom in self.atoms:
            patterns, rest = atom.get("patternProperties", {}), atom.get("additionalProperties", True)
            left = [schema for pattern, schema in patterns.items() if pattern not in besides]
            found.append(self._any(left, rest))
        return [False] if self.is_one else found

    def _any(self, schemas: Iterable[Any], rest: Any) -> Any:
        options = [*schemas, rest]
        return rest if len(options) == 1 else self.schema.any_of(options)

    @cached_property
    def prefix(self) -> int:
        """How many items, from the first, have schemas of their own."""
        if self.is_one and isinstance(self.value, list):
            return len(self.value)
        return max((len(items) for items in self.limits("prefixItems")), default=0)

    def item(self, number: int) -> list[Any]:
        """The schemas that an item fits, if it is there."""
        if self.is_one and isinstance(self.value, list):
            return [{"const": self.value[number]}] if number < len(self.value) else [False]
        found = []
        for atom in self.atoms:
            prefix = atom.get("prefixItems", ())
            found.append(prefix[number] if number < len(prefix) else atom.get("items", True))
        return found


def _of_field(atom: dict[str, Any], name: str) -> Iterator[Any]:
    properties, patterns = atom.get("properties", {}), atom.get("patternProperties", {})
    matching = [schema for pattern, schema in patterns.items() if matches(pattern, name)]
    if name in properties:
        yield properties[name]
    yield from matching
    if name not in properties and not matching and "additionalProperties" in atom:
        yield atom["additionalProperties"]
