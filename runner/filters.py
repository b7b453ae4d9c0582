"""The filters and tests of expressions: Jinja2's, where they are bounded, and flowrun's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Final

import msgspec
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.tests import TESTS as JINJA_TESTS

from runner.errors import ExpressionError
from runner.times import parse_duration_s, parse_time, rfc3339
from runner.values import MAX_PRECISION, MAX_TEXT, as_text, defined, number, read_item


def _join(items: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    values = items if attribute is None else [defined(read_item(item, attribute)) for item in items]
    texts: list[str] = []
    size = 0
    for value in values:
        texts.append(as_text(value))
        size += len(texts[-1]) + len(separator)
        if size > MAX_TEXT + len(separator):
            raise ExpressionError("the text is too long")
    return separator.join(texts)


def _replace(value: Any, old: str, new: str, count: int | None = None) -> str:
    text = str(value)
    hits = text.count(old) if count is None or count < 0 else min(text.count(old), count)
    if len(text) + hits * (len(new) - len(old)) > MAX_TEXT:
        raise ExpressionError("the text is too long")
    return text.replace(old, new, -1 if count is None else count)


def _round(value: Any, precision: int = 0, method: str = "common") -> Any:
    if abs(precision) > MAX_PRECISION:
        raise ExpressionError(f"round is limited to {MAX_PRECISION} digits")
    return number(JINJA_FILTERS["round"](number(value), precision, method))


def _merge(value: Any, other: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(other, dict):
        raise ExpressionError("merge takes two objects")
    return {**value, **other}


def _shift(sign: int) -> Callable[[Any, Any], str]:
    def shift(moment: Any, duration: Any) -> str:
        seconds = parse_duration_s(str(duration))
        if seconds is None:
            raise ExpressionError(f"{duration!r} is not a duration")
        return rfc3339(parse_time(str(moment)) + timedelta(seconds=sign * seconds))

    return shift


def _date(moment: Any) -> str:
    return parse_time(str(moment)).date().isoformat()


OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "join": _join,
    "merge": _merge,
    "plus": _shift(1),
    "minus": _shift(-1),
    "date": _date,
    "replace": _replace,
    "round": _round,
    "tojson": lambda value: msgspec.json.encode(value).decode(),
}
_BOUNDED = [
    "abs",
    "capitalize",
    "default",
    "first",
    "float",
    "int",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "select",
    "selectattr",
    "sort",
    "sum",
    "title",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
]
FILTERS: dict[str, Any] = {**{name: JINJA_FILTERS[name] for name in _BOUNDED}, **OWN_FILTERS}
_PLAIN = ["defined", "undefined", "none", "boolean", "number", "string", "mapping", "in"]
TESTS: dict[str, Any] = {
    **{
        name: JINJA_TESTS[name]
        for name in ["defined", "undefined", "none", "boolean", "number", "string", "mapping", "in"]
    },
    "sequence": lambda value: isinstance(value, list | str),
    "startswith": lambda value, prefix: str(value).startswith(prefix),
    "endswith": lambda value, suffix: str(value).endswith(suffix),
}
FILTERS_KNOWN: Final = frozenset(FILTERS)
TESTS_KNOWN: Final = frozenset(TESTS)
