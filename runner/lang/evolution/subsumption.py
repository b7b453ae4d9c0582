"""Whether every value that fits one JSON Schema fits another: proved from their structure, keyword by keyword.

What is proved holds. What is not is a `Misfit`, and perhaps none: whether there is a value to show it says
`witnesses`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runner.lang.evolution.cases import NUMBERS, Case, Schema, canonical, kind_of, kinds_of_type, matches

ANY = "*"
"""In a path: whichever item, or a field of whichever other name."""
Path = tuple[str | int, ...]
FILES = "$files"
"""Where a document has the schemas of other files."""

_MAX_DEPTH = 24
_MAX_WORK = 20_000
_CALLED = {
    "null": "null", "boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "a text",
    "array": "a list", "object": "an object",
}  # fmt: skip
_UNDECIDED = frozenset(
    {"$dynamicRef", "$recursiveRef", "contains", "contentEncoding", "contentMediaType", "contentSchema", "dependencies",
     "dependentRequired", "dependentSchemas", "if", "maxContains", "minContains", "propertyNames", "unevaluatedItems",
     "unevaluatedProperties"}
)  # fmt: skip
"""Keywords that are compared by their text alone."""
_WITH = {"contains": ("minContains", "maxContains"), "if": ("then", "else")}
_BY_NEIGHBOURS = frozenset({"unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef"})
"""What they say hangs on what stands around them."""
PROSE = frozenset(
    {"$comment", "$schema", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly"}
)
"""Keywords that say nothing of a value."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """Something that a reader's schema asks for and a writer's does not promise.

    `path` leads to it in the value, `keyword` asks, `asks` says so in words. `is_chance`: a value can only be amiss
    with a field that the writer's schema does not name, and that happens to be called so.
    """

    path: Path
    keyword: str
    asks: str
    is_chance: bool = False


def misfits(writer: Any, reader: Any, *, same_formats: bool = True) -> list[Misfit]:
    """What a value that fits `writer` need not have and `reader` asks for; nothing if all such values fit.

    Both are documents in which every `$ref` names a part of them, of draft 2020-12 or, with nothing in them that means
    something else there, of an older one. Without `same_formats` a `format` is not the same on both sides.
    """
    proof = _Proof(Schema(writer), Schema(reader), same_formats)
    found = list(dict.fromkeys(proof.prove([writer], reader, (), False)))
    missing = {misfit.path for misfit in found if misfit.keyword == "required"}
    return [misfit for misfit in found if not (misfit.is_chance and misfit.path in missing)]


def same(one: Any, other: Any) -> bool:
    """Whether two documents say the same of a value; prose does not count."""
    return _Sameness(Schema(one), Schema(other)).holds(one, other)


class _Sameness:
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
    for _ in range(_MAX_DEPTH):
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


class _Proof:
    def __init__(self, writer: Schema, reader: Schema, same_formats: bool) -> None:
        self._writer, self._reader = writer, reader
        self._same = _Sameness(writer, reader, same_formats).holds
        self._same_formats = same_formats
        self._pending: dict[tuple[frozenset[int], int], int] = {}
        self._following: set[tuple[int, int]] = set()
        self._work = _MAX_WORK

    def prove(self, given: list[Any], wanted: Any, path: Path, chance: bool) -> Iterator[Misfit]:
        """What is amiss with a value that fits all of `given`. `chance`: see `Misfit.is_chance`."""
        self._work -= 1
        if wanted is True or wanted == {} or any(self._same(schema, wanted) for schema in given):
            return
        key = (frozenset(map(id, given)), id(wanted))
        if key in self._pending and self._pending[key] < len(path):
            return  # the same question about a part of the value: if all parts fit, so does the whole
        if key in self._pending or len(path) > _MAX_DEPTH or self._work < 0:
            yield Misfit(path, "", "may have to be otherwise", chance)
            return
        self._pending[key] = len(path)
        try:
            for case in self._writer.cases(given):
                yield from self._case(case, wanted, path, chance)
        finally:
            del self._pending[key]

    def _fits(self, case: Case, wanted: Any, path: Path) -> bool:
        return next(self._case(case, wanted, path, False), None) is None

    def _case(self, case: Case, wanted: Any, path: Path, chance: bool) -> Iterator[Misfit]:
        if wanted is False:
            yield Misfit(path, "", "must not be there", chance)
        if not isinstance(wanted, dict) or any(self._same(atom, wanted) for atom in case.atoms):
            return
        for keyword, value in wanted.items():
            if keyword in PROSE:
                continue
            yield from self._keyword(case, wanted, keyword, value, path, chance)

    def _keyword(
        self, case: Case, wanted: Mapping[str, Any], keyword: str, value: Any, path: Path, chance: bool
    ) -> Iterator[Misfit]:
        match keyword:
            case "$ref":
                yield from self._reference(case, str(value), path, chance)
            case "allOf":
                for each in value:
                    yield from self._case(case, each, path, chance)
            case "anyOf" | "oneOf":
                yield from self._choice(case, keyword, value, path, chance)
            case "properties" | "patternProperties" | "additionalProperties" | "required":
                if "object" in case.kinds:
                    yield from self._object(case, wanted, keyword, path, chance)
            case "prefixItems" | "items":
                if "array" in case.kinds:
                    yield from self._items(case, wanted, keyword, path, chance)
            case _:
                if (asks := self._plain(case, wanted, keyword, value)) is not None:
                    yield Misfit(path, keyword, asks, chance)

    def _reference(self, case: Case, reference: str, path: Path, chance: bool) -> Iterator[Misfit]:
        there = self._reader.at(reference)
        key = (id(case), id(there))
        if there is None or key in self._following:  # a schema that is one of its own parts says nothing
            yield Misfit(path, "$ref", f"must fit {reference}", chance)
            return
        self._following.add(key)
        try:
            yield from self._case(case, there, path, chance)
        finally:
            self._following.discard(key)

    # --- choices

    def _choice(self, case: Case, keyword: str, options: list[Any], path: Path, chance: bool) -> Iterator[Misfit]:
        if any(self._all_same(atom.get(keyword), options) for atom in case.atoms):
            return
        for part in _by_kind(case):
            fitting = [option for option in options if self._fits(part, option, path)]
            others = [option for option in options if option is not fitting[0]] if fitting else []
            if not fitting or (keyword == "oneOf" and not all(self._excludes(part, option) for option in others)):
                one = "one" if keyword == "oneOf" else "at least one"
                yield Misfit(path, keyword, f"must fit {one} of {len(options)} alternatives", chance)
                return

    def _all_same(self, one: Any, other: list[Any]) -> bool:
        return isinstance(one, list) and len(one) == len(other) and all(map(self._same, one, other))

    def _excludes(self, case: Case, schema: Any, depth: int = 0) -> bool:
        """No value of the case fits the schema, as far as kinds, constants and fields tell."""
        if depth > 6:
            return False
        return all(self._apart(case, other, depth) for other in self._reader.cases([schema]))

    def _apart(self, case: Case, other: Case, depth: int) -> bool:
        if not case.kinds & other.kinds:
            return True
        if case.listed is not None and other.listed is not None:
            return not {canonical(v) for v in case.listed} & {canonical(v) for v in other.listed}
        if case.kinds & other.kinds != {"object"}:
            return False
        if any(not self._writer.cases(case.field(name)) for name in other.required):
            return True
        return any(
            all(
                self._apart(mine, others, depth + 1)
                for mine in self._writer.cases(case.field(name))
                for others in self._reader.cases(other.field(name))
            )
            for name in case.required & {*other.named}
        )

    # --- objects and lists

    def _object(
        self, case: Case, wanted: Mapping[str, Any], keyword: str, path: Path, chance: bool
    ) -> Iterator[Misfit]:
        value, properties = wanted[keyword], wanted.get("properties", {})
        patterns = wanted.get("patternProperties", {})
        match keyword:
            case "required":
                for name in value:
                    if name not in case.required:
                        yield Misfit((*path, name), keyword, "must be there", chance)
            case "properties":
                for name, schema in value.items():
                    by_chance = chance or not case.names(name)
                    yield from self.prove(case.field(name), schema, (*path, name), by_chance)
            case "patternProperties":
                for pattern, schema in value.items():
                    for name in case.named:
                        if matches(pattern, name):
                            yield from self.prove(case.field(name), schema, (*path, name), chance)
                    yield from self.prove(case.field_like(pattern), schema, (*path, ANY), chance)
            case "additionalProperties":
                for name in case.named:
                    if name not in properties and not any(matches(pattern, name) for pattern in patterns):
                        yield from self._other(case.field(name), value, (*path, name), chance)
                yield from self._other(case.other_field(patterns), value, (*path, ANY), chance)

    def _other(self, given: list[Any], wanted: Any, path: Path, chance: bool) -> Iterator[Misfit]:
        """A field that the reader's schema does not name."""
        if wanted is False and self._writer.cases(given):
            asks = "may not be there: no other fields are allowed" if path[-1] == ANY else "may not be there"
            yield Misfit(path, "additionalProperties", asks, chance)
        elif wanted is not False:
            yield from self.prove(given, wanted, path, chance)

    def _items(self, case: Case, wanted: Mapping[str, Any], keyword: str, path: Path, chance: bool) -> Iterator[Misfit]:
        value, longest = wanted[keyword], case.at_most("maxItems")
        if isinstance(value, list) and keyword == "items":
            yield Misfit(path, keyword, "may have to have other items", chance)
            return
        if keyword == "prefixItems":
            for number, schema in enumerate(value):
                if longest is None or number < longest:
                    yield from self.prove(case.item(number), schema, (*path, number), chance)
            return
        first = len(wanted.get("prefixItems", ()))
        for number in range(first, max(first, case.prefix) + 1):
            if longest is None or number < longest:
                step = number if number < case.prefix else ANY
                yield from self.prove(case.item(number), value, (*path, step), chance)

    # --- one value

    def _plain(self, case: Case, wanted: Mapping[str, Any], keyword: str, value: Any) -> str | None:
        """What a keyword asks that the case does not promise; None if it promises it."""
        if keyword in _UNDECIDED:
            return self._by_text(case, wanted, keyword)
        check = _CHECKS.get(keyword)
        if keyword == "format" and "string" in case.kinds:
            promised = self._same_formats and value in case.limits("format")
            return None if promised else f"must be a {value}, as a format"
        if keyword == "not":
            return None if self._excludes(case, value) or self._has(case, "not", value) else "must not fit a schema"
        return None if check is None else check(case, value)

    def _by_text(self, case: Case, wanted: Mapping[str, Any], keyword: str) -> str | None:
        together = (keyword, *_WITH.get(keyword, ()))
        promised = keyword not in _BY_NEIGHBOURS and any(
            all((key in atom) == (key in wanted) and self._alike(key, atom, wanted) for key in together)
            for atom in case.atoms
            if keyword in atom
        )
        return None if promised or keyword in ("minContains", "maxContains") else f"must hold to its {keyword}"

    def _has(self, case: Case, keyword: str, value: Any) -> bool:
        return any(keyword in atom and self._same(atom[keyword], value) for atom in case.atoms)

    def _alike(self, key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        if key not in one:
            return True
        return self._same({key: one[key]}, {key: other[key]})


def _by_kind(case: Case) -> Iterator[Case]:
    """One case a kind: an alternative may take each."""
    if len(case.kinds) == 1:
        yield case
        return
    for name in sorted(case.kinds):
        only = {"type": "number", "not": {"type": "integer"}} if name == "fraction" else {"type": name}
        yield Case(case.schema, (only, *case.atoms))


# --- keywords that look at one value by itself


def _type(case: Case, value: Any) -> str | None:
    names = [value] if isinstance(value, str) else value
    allowed = frozenset().union(*map(kinds_of_type, names))
    return None if case.kinds <= allowed else f"must be {_listed([_CALLED.get(name, name) for name in names])}"


def _enum(case: Case, value: Any) -> str | None:
    allowed = {canonical(each) for each in value}
    given = case.listed
    if case.kinds <= {"null", "boolean"}:
        given = given or [each for each in (None, False, True) if kind_of(each) in case.kinds]
    if given is not None and all(canonical(each) in allowed for each in given):
        return None
    shown = [json.dumps(each, ensure_ascii=False) for each in value[:6]] + (["…"] if len(value) > 6 else [])
    return f"must be {_listed(shown)}"


def _numeric(check: Callable[[Case, Any], bool], asks: str) -> Callable[[Case, Any], str | None]:
    return lambda case, value: asks.format(value) if case.kinds & NUMBERS and not check(case, value) else None


def _minimum(case: Case, value: Any) -> bool:
    return case.least is not None and case.least[0] >= value


def _maximum(case: Case, value: Any) -> bool:
    return case.most is not None and case.most[0] <= value


def _above(case: Case, value: Any) -> bool:
    return case.least is not None and (case.least[0] > value or case.least == (value, True))


def _below(case: Case, value: Any) -> bool:
    return case.most is not None and (case.most[0] < value or case.most == (value, True))


def _multiple(case: Case, value: Any) -> bool:
    given = [case.value] if case.is_one else case.limits("multipleOf")
    given += [1] if "fraction" not in case.kinds else []
    whole = isinstance(value, int)
    return any(each == value or (whole and isinstance(each, int) and each % value == 0) for each in given)


def _sized(kind: str, check: Callable[[Case, Any], bool], asks: str) -> Callable[[Case, Any], str | None]:
    return lambda case, value: asks.format(value) if kind in case.kinds and not check(case, value) else None


def _long(keyword: str) -> Callable[[Case, Any], bool]:
    return lambda case, value: case.at_least(keyword) >= value


def _short(keyword: str) -> Callable[[Case, Any], bool]:
    def check(case: Case, value: Any) -> bool:
        most = case.at_most(keyword)
        return most is not None and most <= value

    return check


def _matching(case: Case, value: Any) -> bool:
    return bool(value in case.limits("pattern")) or (case.is_one and matches(value, case.value))


def _unique(case: Case, value: Any) -> bool:
    most = case.at_most("maxItems")
    return value is False or True in case.limits("uniqueItems") or (most is not None and most < 2)


def _enough_fields(case: Case, value: Any) -> bool:
    return bool(max(case.at_least("minProperties"), len(case.required)) >= value)


_CHECKS: Mapping[str, Callable[[Case, Any], str | None]] = {
    "type": _type,
    "enum": _enum,
    "const": lambda case, value: _enum(case, [value]),
    "minimum": _numeric(_minimum, "must be at least {}"),
    "maximum": _numeric(_maximum, "must be at most {}"),
    "exclusiveMinimum": _numeric(_above, "must be above {}"),
    "exclusiveMaximum": _numeric(_below, "must be below {}"),
    "multipleOf": _numeric(_multiple, "must be a multiple of {}"),
    "minLength": _sized("string", _long("minLength"), "must have {} characters or more"),
    "maxLength": _sized("string", _short("maxLength"), "must have {} characters or less"),
    "pattern": _sized("string", _matching, "must match {}"),
    "minItems": _sized("array", _long("minItems"), "must have {} items or more"),
    "maxItems": _sized("array", _short("maxItems"), "must have {} items or less"),
    "uniqueItems": _sized("array", _unique, "must not have an item twice"),
    "minProperties": _sized("object", _enough_fields, "must have {} fields or more"),
    "maxProperties": _sized("object", _short("maxProperties"), "must have {} fields or less"),
}


def _listed(words: list[str]) -> str:
    unique = list(dict.fromkeys(words))
    return " or ".join(filter(None, [", ".join(unique[:-1]), unique[-1]])) if unique else "nothing"
