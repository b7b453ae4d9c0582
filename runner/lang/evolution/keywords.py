"""Keywords that look at a value by itself: what each asks that a case does not promise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from runner.lang.evolution.cases import NUMBERS, Case, canonical, kind_of, kinds_of_type, matches

Ask = Callable[[Case, Any], str | None]
"""Given a case and what stands under the keyword: what is asked, in words; None if the case promises it."""
_CALLED = {
    "null": "null", "boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "a text",
    "array": "a list", "object": "an object",
}  # fmt: skip


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


def _numeric(check: Callable[[Case, Any], bool], asks: str) -> Ask:
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


def _sized(kind: str, check: Callable[[Case, Any], bool], asks: str) -> Ask:
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


CHECKS: Mapping[str, Ask] = {
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
