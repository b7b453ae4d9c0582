"""A value that one JSON Schema lets pass and another does not: what shows that a misfit is one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from runner.lang.evolution.cases import Case, Schema, matches
from runner.lang.evolution.subsumption import ANY, Misfit, Path
from runner.lang.evolution.texts import OF_FORMATS, with_match

Errors = Callable[[Any], list[tuple[Path, str]]]
"""Of a value: the path and the keyword of each of its faults."""

_MAX_DEPTH = 6
_MAX_EXAMPLES = 24
_MAX_TRIES = 1500
_MAX_WITNESSES = 24
_OTHER = "other"
_LONGEST = 5000
"""No longer texts are made; of lists, a tenth."""
_EXACT = 2**53
"""Beyond it a float is no longer exact, and may not be one at all."""
_NAMED_BY_OWNER = frozenset({"required", "additionalProperties"})
"""Keywords whose faults are the object's, of which the misfit names a field."""
_LEAVES = frozenset(
    {"type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength",
     "maxLength", "pattern", "format", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties"}
)  # fmt: skip
_COMMON: tuple[Any, ...] = (None, True, False, 0, 1, -1, 0.5, "", "a", [], {}, [None], ["a"], [0])


class Witnesses:
    """Finds values that fit the document `writer`, by `is_written`, and not `reader`, by its `faults`."""

    def __init__(self, writer: Any, reader: Any, is_written: Callable[[Any], bool], faults: Errors) -> None:
        self._writer = Schema(writer)
        self._is_written, self._faults = is_written, faults
        self._pool = [*_COMMON, *_mined(writer), *_mined(reader)]
        self._bases = list(examples(self._writer, [writer]))

    def of(self, misfit: Misfit) -> Any:
        """The plainest value found that shows the misfit, as a list of one; an empty list if none was found."""
        found = islice(self._showing(misfit), _MAX_WITNESSES)
        ranked = sorted(found, key=lambda one: (one[0], len(json.dumps(one[1]))))
        return [value for _, value in ranked[:1]]

    def _showing(self, misfit: Misfit) -> Iterator[tuple[int, Any]]:
        """How many faults a value has that shows the misfit, and the value."""
        for value in islice(self._candidates(misfit), _MAX_TRIES):
            faults = self._faults(value)
            if any(_shows(misfit, path, keyword, value) for path, keyword in faults) and self._is_written(value):
                yield len(faults), value

    def _candidates(self, misfit: Misfit) -> Iterator[Any]:
        yield from self._bases
        inside = list(islice(_inside(self._writer, [self._writer.root], misfit.path), _MAX_EXAMPLES))
        for base in self._bases:
            for path in _places(base, misfit.path):
                yield from _without(base, path)
                for value in (*inside, *self._pool):
                    yield _with(base, path, value)


def _shows(misfit: Misfit, path: Path, keyword: str, value: Any) -> bool:
    """Whether a fault of the value is the misfit's."""
    if misfit.keyword in _NAMED_BY_OWNER:
        if keyword != misfit.keyword or not _is_along(misfit.path[:-1], path) or len(path) != len(misfit.path) - 1:
            return False
        name, owner = misfit.path[-1], _at(value, path)
        return name == ANY or (name in owner) == (keyword != "required")
    if misfit.keyword in _LEAVES:
        return keyword == misfit.keyword and len(path) == len(misfit.path) and _is_along(misfit.path, path)
    return _is_along(misfit.path, path)


def _is_along(pattern: Path, path: Path) -> bool:
    return all(step in (ANY, other) for step, other in zip(pattern, path, strict=False))


def _at(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


def _places(base: Any, path: Path) -> Iterator[Path]:
    """The places in a value that a misfit's path leads to; the last step may be a field that is not there yet."""
    places: list[tuple[Path, Any]] = [((), base)]
    for number, step in enumerate(path):
        last = number == len(path) - 1
        places = [((*place, name), inner) for place, value in places for name, inner in _steps(value, step, last)][:6]
    yield from (place for place, _ in places)


def _steps(value: Any, step: str | int, last: bool) -> Iterator[tuple[str | int, Any]]:
    match value:
        case dict() if step == ANY:
            yield from value.items()
            yield _OTHER, None
        case dict() if isinstance(step, str) and (step in value or last):
            yield step, value.get(step)
        case list() if step == ANY:
            yield from enumerate(value)
            if last:
                yield len(value), None
        case list() if isinstance(step, int) and (step < len(value) or (last and step == len(value))):
            yield step, value[step] if step < len(value) else None


def _with(base: Any, path: Path, value: Any) -> Any:
    """The base with a value in another place; what is not on the way there is shared."""
    if not path:
        return value
    copy, step = base.copy(), path[0]
    if isinstance(copy, list) and step == len(copy):
        copy.append(value)
    else:
        copy[step] = _with(copy.get(step) if isinstance(copy, dict) else copy[step], path[1:], value)
    return copy


def _without(base: Any, path: Path) -> Iterator[Any]:
    if path and isinstance(owner := _at(base, path[:-1]), dict) and path[-1] in owner:
        yield _with(base, path[:-1], {name: value for name, value in owner.items() if name != path[-1]})


def _inside(schema: Schema, given: list[Any], path: Path) -> Iterator[Any]:
    """Values that may stand at the path."""
    if not path:
        yield from examples(schema, given)
        return
    for case in schema.cases(given):
        step = path[0]
        if "object" in case.kinds:
            inner = case.other_field(()) if step == ANY else case.field(str(step))
            yield from _inside(schema, inner, path[1:])
        if "array" in case.kinds and (step == ANY or isinstance(step, int)):
            yield from _inside(schema, case.item(step if isinstance(step, int) else case.prefix), path[1:])


# --- values of a schema


def examples(schema: Schema, given: list[Any], depth: int = 0) -> Iterator[Any]:
    """Values that should fit all of these schemas, the plainest first; few of them."""
    found = (value for case in schema.cases(given) for value in _of_case(case, depth))
    yield from islice(found, _MAX_EXAMPLES if depth < 2 else 4)


def _of_case(case: Case, depth: int) -> Iterator[Any]:
    if case.is_one:
        yield case.value
        return
    if "string" in case.kinds:
        yield from _texts(case)
    if "integer" in case.kinds or "fraction" in case.kinds:
        yield from _numbers(case)
    if "boolean" in case.kinds:
        yield from (True, False)
    if "object" in case.kinds and depth < _MAX_DEPTH:
        yield from _objects(case, depth)
    if "array" in case.kinds and depth < _MAX_DEPTH:
        yield from _lists(case, depth)
    if "null" in case.kinds:
        yield None


def _texts(case: Case) -> Iterator[str]:
    patterns, least, most = case.limits("pattern"), case.at_least("minLength"), case.at_most("maxLength")
    if least > _LONGEST:
        return
    tried = [text for text in map(OF_FORMATS.get, case.limits("format")) if text is not None]
    tried += map(with_match, patterns)
    tried += [each for prose in case.limits("examples") if isinstance(prose, list) for each in prose]
    tried += [*case.limits("default"), "a"]
    for text in tried:
        if not isinstance(text, str):
            continue
        for longer in (text, text + text[-1:] * (least - len(text))):
            fits = len(longer) >= least and (most is None or len(longer) <= most)
            if fits and all(matches(pattern, longer) for pattern in patterns):
                yield longer
                break
    if least == 0 and all(matches(pattern, "") for pattern in patterns):
        yield ""


def _numbers(case: Case) -> Iterator[float]:
    steps = [step for step in case.limits("multipleOf") if isinstance(step, int)]
    step = max(steps, default=1)
    low, high = case.least, case.most
    if any(bound is not None and not abs(bound[0]) < _EXACT for bound in (low, high)):
        return
    tried: list[float] = [1, 0]
    if low is not None:
        tried = [low[0], -(-low[0] // step) * step, low[0] + step, low[0] + 0.5, *tried]
    if high is not None:
        tried += [high[0], high[0] // step * step, high[0] - step, high[0] - 0.5]
    for number in [*tried, 0.5]:
        above = low is None or number > low[0] or (number == low[0] and not low[1])
        below = high is None or number < high[0] or (number == high[0] and not high[1])
        whole = float(number).is_integer()
        if above and below and (whole or "fraction" in case.kinds) and all(number % each == 0 for each in steps):
            yield int(number) if whole else number


def _objects(case: Case, depth: int) -> Iterator[Any]:
    names = [*case.named, *sorted(case.required.difference(case.named))]
    values = {name: list(islice(examples(case.schema, case.field(name), depth + 1), 6)) for name in names}
    if any(not values[name] for name in case.required):
        return
    least = {name: values[name][0] for name in names if name in case.required}
    full = {name: of[0] for name, of in values.items() if of}
    yield least
    yield full
    for name, of in values.items():
        for value in of[1:]:
            yield {**full, name: value}
    others = list(islice(examples(case.schema, case.other_field(()), depth + 1), 2))
    for value in others:
        yield {**least, _OTHER: value}


def _lists(case: Case, depth: int) -> Iterator[Any]:
    least = case.at_least("minItems")
    if least > _LONGEST // 10:
        return
    items = [list(islice(examples(case.schema, case.item(n), depth + 1), 4)) for n in range(max(1, least, case.prefix))]
    if least == 0:
        yield []
    for number in range(max(items, key=len, default=[]).__len__()):
        yield [each[min(number, len(each) - 1)] for each in items if each]
    if items and items[0]:
        yield (items[0] * max(2, least))[: max(2, least)]


def _mined(schema: Any) -> list[Any]:
    """Values that a schema speaks of, and their neighbours."""
    found: list[Any] = []
    for keyword, value in _keywords(schema):
        match keyword, value:
            case "const" | "default", _:
                found.append(value)
            case "enum" | "examples", list():
                found += value
            case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf", int() | float() if (
                abs(value) < _EXACT
            ):
                found += [value, value - 1, value + 1, value + 0.5, value - 0.5]
            case "minLength" | "maxLength", int() if value < _LONGEST:
                found += ["a" * value, "a" * max(0, value - 1), "a" * (value + 1)]
            case "minItems" | "maxItems", int() if value < _LONGEST // 10:
                found += [["a"] * n for n in (value, max(0, value - 1), value + 1)]
            case "pattern", str():
                found.append(with_match(value))
            case "format", str():
                found.append(OF_FORMATS.get(value))
    texts = {json.dumps(value, sort_keys=True): value for value in found}
    return list(islice(texts.values(), 150))


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            yield key, value
            yield from _keywords(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _keywords(item)
