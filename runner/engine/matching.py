"""Which events a wait is for, as tokens: an event's name, and fields of its payload with their values.

An arrival is looked up by its token, not by scanning the waits: so many runs may wait at no cost to each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from runner.plan import Plan, WaitFor, walk
from runner.records import Patterns
from runner.values import MISSING, read_item


def token(event: str, fields: Sequence[str], values: Sequence[Any]) -> str:
    """The token of that event with these values in these fields."""
    text = msgspec.json.encode([event, list(fields), [_plain(value) for value in values]], order="sorted")
    return hashlib.sha256(text).hexdigest()[:32]


def tokens_of(event: str, payload: Any, patterns: Patterns) -> Iterator[str]:
    """All tokens that an event bears."""
    for fields in patterns.get(event, ()):
        values = [_read(payload, field) for field in fields]
        if MISSING not in values:
            yield token(event, fields, values)


def patterns_of(plans: Iterable[Plan]) -> Patterns:
    """What the waits of these plans look at."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for plan in plans:
        for program in plan.programs.values():
            for step in walk(program.steps + program.on_failure):
                if isinstance(step, WaitFor):
                    for event in step.events:
                        found.setdefault(event, set()).add(step.fields)
            for cancel in program.cancel_on:
                found.setdefault(cancel.event, set()).add(cancel.fields)
    return {event: frozenset(fields) for event, fields in found.items()}


def _read(payload: Any, path: str) -> Any:
    for word in path.split("."):
        payload = read_item(payload, word)
    return payload


def _plain(value: Any) -> Any:
    """1.0 and 1 are one JSON number, wherever they stand."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {key: _plain(item) for key, item in value.items()}
    return value
