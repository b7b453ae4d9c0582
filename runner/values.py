"""What expressions compute with: JSON values, what is missing, and operations that cannot grow without bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import GeneratorType
from typing import Any, Final, TypeVar

import msgspec
from jinja2 import Undefined

from runner.errors import ExpressionError

T = TypeVar("T")

MAX_TEXT = 1024 * 1024
MAX_RANGE = 10_000
MAX_BITS = 4096
MAX_PRECISION = 100


class _Sentinel:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


MISSING: Final = _Sentinel("MISSING")
"""What a read gives where `default` or `is defined` stands guard."""
OMIT: Final = _Sentinel("OMIT")
"""The value of `omit`: the key that has it is left out."""
ONLY_WHOLE = "omit can only be the whole value of a key"


def clip(source: str) -> str:
    """A text on one line, cut to 80 characters: for messages."""
    text = " ".join(source.split())
    return text if len(text) <= 80 else text[:79] + "…"


def number(value: Any) -> Any:
    """The value, if it is a number that JSON can carry and that is not too large. Raises ExpressionError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExpressionError(f"{clip(repr(value))} is not a number")
    if isinstance(value, float) and math.isnan(value):
        raise ExpressionError("the result is not a number")
    if value.bit_length() > MAX_BITS if isinstance(value, int) else math.isinf(value):
        raise ExpressionError("the number is too large")
    return value


def add(left: Any, right: Any) -> Any:
    """`+` of texts, lists or numbers."""
    if isinstance(left, str) and isinstance(right, str):
        return bounded(left + right)
    if isinstance(left, list) and isinstance(right, list):
        return left + right
    return number(number(left) + number(right))


def multiply(left: Any, right: Any) -> Any:
    """`*` of numbers, or of a text and a whole number."""
    if isinstance(left, str) and isinstance(right, int):
        if len(left) * max(right, 0) > MAX_TEXT:
            raise ExpressionError("the text is too long")
        return left * right
    return number(number(left) * number(right))


def power(left: Any, right: Any) -> Any:
    """`**`, bounded by the size of its result."""
    base, exponent = number(left), number(right)
    if abs(exponent) * max(int(abs(base)).bit_length(), 1) > MAX_BITS:
        raise ExpressionError("the number is too large")
    return number(base**exponent)


def bounded(text: str) -> str:
    """The text, if it is not too long. Raises ExpressionError."""
    if len(text) > MAX_TEXT:
        raise ExpressionError("the text is too long")
    return text


def on_numbers(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """An operator that takes and gives numbers only."""
    return lambda left, right: number(function(number(left), number(right)))


def read_item(container: Any, key: Any) -> Any:
    """A key of an object, an element of a list or text; MISSING for whatever else."""
    if isinstance(container, dict):
        return container.get(key, MISSING) if isinstance(key, str) else MISSING
    if isinstance(container, list | str) and isinstance(key, int) and not isinstance(key, bool):
        return container[key] if -len(container) <= key < len(container) else MISSING
    return MISSING


def bounded_range(*bounds: Any) -> list[int]:
    """`range(…)` as a list, bounded."""
    if not 1 <= len(bounds) <= 3 or not all(isinstance(b, int) for b in bounds):
        raise ExpressionError("range takes one to three whole numbers")
    numbers = range(*bounds)
    if len(numbers) > MAX_RANGE:
        raise ExpressionError(f"range is limited to {MAX_RANGE} numbers")
    return list(numbers)


def json_value(value: Any) -> Any:
    """A filter's result as a JSON value: lazy ones become lists, Jinja2's undefined becomes MISSING."""
    match value:
        case Undefined():
            return MISSING
        case str():
            return bounded(str(value))
        case None | bool() | dict() | list():
            return value
        case int() | float():
            return number(value)
        case GeneratorType() | tuple() | map():
            return listed(value)
    raise ExpressionError(f"{clip(repr(value))} is no JSON value")


def listed(items: Iterable[Any]) -> list[Any]:
    """A lazy result as a list of JSON values, bounded."""
    result, size = [], 0
    for item in items:
        result.append(defined(json_value(item)))
        size += len(item) if isinstance(item, str) else 0
        if size > MAX_TEXT:
            raise ExpressionError("the texts are too long")
    return result


def defined(value: T) -> T:
    """The value, if it is not missing. Raises ExpressionError."""
    if value is MISSING:
        raise ExpressionError("an element is missing")
    return value


def as_text(value: object) -> str:
    """A value inside a text: strings stand as they are, the rest as JSON."""
    if isinstance(value, str):
        return value
    if value is OMIT:
        raise ExpressionError(ONLY_WHOLE)
    return msgspec.json.encode(value).decode()
