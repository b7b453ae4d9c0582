"""Events → entries of a read model. The same events give the same entries, whoever folds them, and when.

Every template sees the entry as it was before the event. An event that cannot be folded (a field that it needs is
missing, an increment of a text) changes nothing and is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from runner.errors import ExpressionError
from runner.message import MAX_BODY_BYTES, decode_json, encode_json
from runner.plan import Fold, Projection
from runner.records import Entry, Folded, LoggedEvent
from runner.values import OMIT, as_text

SNAPSHOT_EVERY = 100
"""Changes of an entry: so many events at most are folded to know what it was at some time."""
MAX_KEY_BYTES = 512
MAX_STATE_BYTES = MAX_BODY_BYTES
MAX_STATE_DEPTH = 500
"""Half of what the decoder can read on an empty stack: what one process has folded, every other can read."""


_TOO_DEEP = f"the entry would be nested deeper than {MAX_STATE_DEPTH} levels"


class FoldError(ValueError):
    """This event cannot be folded, or this is no key."""


@dataclass(frozen=True, slots=True)
class Change:
    """What an event is going to do, to which entry."""

    event: LoggedEvent
    fold: Fold
    key: str
    scope: Mapping[str, Any]


class Folding:
    """Folds events, in the order of the log, on top of `entries`. What became of it is in `folded`."""

    def __init__(self, projection: Projection) -> None:
        self._projection = projection
        self._entries: dict[str, Entry] = {}
        self._touched: set[str] = set()
        self._changes: list[tuple[str, int]] = []
        self._snapshots: list[Entry] = []
        self._faults = 0
        self._last_fault: str | None = None

    @property
    def entries(self) -> Mapping[str, Entry]:
        """All entries that are known, deleted ones too."""
        return self._entries

    def start_with(self, entries: Iterable[Entry]) -> None:
        """These entries stand, before the events that are folded next."""
        self._entries |= {entry.key: entry for entry in entries}

    def look(self, events: Iterable[LoggedEvent]) -> Sequence[Change]:
        """Which entries these events change. Those of no interest are left out, and those that tell no key."""
        changes = []
        for event in events:
            fold = self._projection.folds.get(event.meta.type)
            if fold is None:
                continue
            try:
                scope = {"event": decode_json(event.data), "meta": {**event.meta.names(), "version": event.version}}
                key = key_text(fold.key(scope))
            except (ExpressionError, ValueError, FoldError) as error:
                self._fault(event, error)
            else:
                changes.append(Change(event, fold, key, scope))
        return changes

    def fold(self, changes: Iterable[Change]) -> None:
        """Fold them. Entries that stand already have been given before; what is in them changes nothing more."""
        for change in changes:
            before = self._entries.get(change.key) or Entry(key=change.key)
            if change.event.position <= before.position:
                continue
            self._changes.append((change.key, change.event.position))
            try:
                state = _after(change, before.state or {})
            except (ExpressionError, FoldError) as error:
                self._fault(change.event, error)
            else:
                self._note(change, before, state)

    def folded(self, position: int) -> Folded:
        """What came of the events up to that position, for the store."""
        return Folded(
            position=position,
            entries=tuple(self._entries[key] for key in sorted(self._touched)),
            changes=tuple(self._changes),
            snapshots=tuple(self._snapshots),
            faults=self._faults,
            last_fault=self._last_fault,
        )

    def _note(self, change: Change, before: Entry, state: dict[str, Any] | None) -> None:
        after = Entry(
            key=change.key,
            state=state,
            position=change.event.position,
            changes=before.changes + 1,
            latest=max(before.latest, change.event.meta.time),
        )
        self._entries[change.key] = after
        self._touched.add(change.key)
        if after.changes % SNAPSHOT_EVERY == 0:
            self._snapshots.append(after)

    def _fault(self, event: LoggedEvent, error: Exception) -> None:
        self._faults += 1
        self._last_fault = f"{event.meta.type} at position {event.position}: {error}"


def key_text(value: object) -> str:
    """A key as it stands in the store: a text as it is, a number as JSON. Raises FoldError."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise FoldError(f"a key is a text or a number, not {_shown(value)}")
    text = as_text(value)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise FoldError("a key is no half of a character, and no byte that is none") from None
    if not 1 <= size <= MAX_KEY_BYTES or "\x00" in text:
        raise FoldError(f"a key has 1 to {MAX_KEY_BYTES} bytes, and no NUL")
    return text


def _after(change: Change, state: dict[str, Any]) -> dict[str, Any] | None:
    """The entry after the event; None if it is deleted. Raises ExpressionError, FoldError."""
    fold = change.fold
    if fold.delete:
        return None
    scope = {**change.scope, "state": state}
    after = {**state, **(fold.set(scope) if fold.set is not None else {})}
    for name, by in (fold.increment(scope) if fold.increment is not None else {}).items():
        after[name] = _sum(name, after.get(name), by)
    for name, item in (fold.append(scope) if fold.append is not None else {}).items():
        after[name] = [*_list(name, after.get(name)), item]
    for name in fold.remove:
        after.pop(name, None)
    return _as_stored(after)


def _as_stored(state: dict[str, Any]) -> dict[str, Any]:
    """The entry as whoever reads it from the store will have it: folding goes on from there all the same."""
    try:
        text = encode_json(state)
    except (TypeError, ValueError, OverflowError) as error:
        raise FoldError(f"the entry would be no JSON value: {error}") from None
    except RecursionError:
        raise FoldError(_TOO_DEEP) from None
    if len(text) > MAX_STATE_BYTES:
        raise FoldError(f"the entry would have more than {MAX_STATE_BYTES} bytes")
    if text.count(b"[") + text.count(b"{") > MAX_STATE_DEPTH and _depth(state) > MAX_STATE_DEPTH:
        raise FoldError(_TOO_DEEP)
    stored: dict[str, Any] = decode_json(text)
    return stored


def _depth(value: Any) -> int:
    """How many objects and lists stand in one another."""
    depth, level = 0, [value]
    while level := [item for each in level if isinstance(each, dict | list) for item in _items(each)]:
        depth += 1
    return depth


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _sum(name: str, value: object, by: object) -> int | float:
    for number in (0 if value is None else value, by):
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise FoldError(f'"{name}" cannot be incremented: {_shown(number)} is no number')
    try:
        total: int | float = (value or 0) + by  # type: ignore[operator]
        if not math.isfinite(total):
            raise OverflowError
    except OverflowError:
        raise FoldError(f'"{name}" would be larger than any number') from None
    return total


def _list(name: str, value: object) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise FoldError(f'"{name}" cannot be appended to: {_shown(value)} is no list')
    return value or []


def _shown(value: object) -> str:
    if value is OMIT:
        return "omit"
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 40 else f"{text[:39]}…"
