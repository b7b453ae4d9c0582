"""Whether every value that fits one JSON Schema fits another: proved from their structure, keyword by keyword.

What is proved holds. What is not is a `Misfit`, and perhaps none after all: `witnesses` looks for a value to show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runner.lang.evolution.cases import Case, Schema, canonical, matches
from runner.lang.evolution.keywords import CHECKS
from runner.lang.evolution.sameness import PROSE, Sameness

ANY = "*"
"""In a path: whichever item, or a field of whichever other name."""
Path = tuple[str | int, ...]

_MAX_DEPTH = 24
_MAX_WORK = 20_000
_UNDECIDED = frozenset(
    {"$dynamicRef", "$recursiveRef", "contains", "contentEncoding", "contentMediaType", "contentSchema", "dependencies",
     "dependentRequired", "dependentSchemas", "if", "maxContains", "minContains", "propertyNames", "unevaluatedItems",
     "unevaluatedProperties"}
)  # fmt: skip
"""Keywords that are compared by their text alone."""
_WITH = {"contains": ("minContains", "maxContains"), "if": ("then", "else")}
_BY_NEIGHBOURS = frozenset({"unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef"})
"""What they say hangs on what stands around them."""


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


class _Proof:
    def __init__(self, writer: Schema, reader: Schema, same_formats: bool) -> None:
        self._writer, self._reader = writer, reader
        self._same = Sameness(writer, reader, same_formats).holds
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
        check = CHECKS.get(keyword)
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
