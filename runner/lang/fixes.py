"""Fixes of diagnostics, applied to the texts of flow files: only such as make their diagnostic go away, and bring no
new error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from runner.diagnostics import Diagnostic, Edit

ROUNDS = 10
"""A fix may bring to light what another one mends; so often, at most, it is looked again."""

Check = Callable[[Mapping[str, str]], Sequence[Diagnostic]]
"""What there is to say of the project, with these texts in the place of its files."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Texts by file name, those that were changed only, the diagnostics that were mended, and what is left."""

    texts: Mapping[str, str] = field(default_factory=dict)
    mended: tuple[Diagnostic, ...] = ()
    left: tuple[Diagnostic, ...] = ()


def fixed(
    texts: Mapping[str, str], found: Sequence[Diagnostic], check: Check, wanted: Callable[[Diagnostic], bool]
) -> Fixed:
    """Mend what can be mended of `found`, which `check` said of `texts`, as far as it is wanted."""
    done = Fixed({}, (), tuple(found))
    for _ in range(ROUNDS):
        chosen = _apart(d for d in done.left if d.fix is not None and wanted(d) and d.span.filename in texts)
        after = _most(texts, done, chosen, check, wanted) if chosen else done
        if after is done:
            break
        done = after
    return done


def apply(text: str, edits: Iterable[Edit]) -> str:
    """The text with edits that do not touch each other."""
    for edit in sorted(edits, key=lambda edit: edit.span, reverse=True):
        text = text[: edit.span.start.offset] + edit.replacement + text[edit.span.end.offset :]
    return text


def _most(
    texts: Mapping[str, str],
    done: Fixed,
    chosen: Sequence[Diagnostic],
    check: Check,
    wanted: Callable[[Diagnostic], bool],
) -> Fixed:
    """All of the chosen, or each half as far as it goes: a single one that does harm is left out."""
    after = _settled(texts, done, chosen, check, wanted)
    if after is not None:
        return after
    if len(chosen) == 1:
        return done
    middle = len(chosen) // 2
    first = _most(texts, done, chosen[:middle], check, wanted)
    rest = _apart(_found_again(chosen[middle:], first.left))
    return _most(texts, first, rest, check, wanted) if rest else first


def _found_again(chosen: Sequence[Diagnostic], left: Sequence[Diagnostic]) -> list[Diagnostic]:
    """The same, where they stand by now: of several of one name the last."""
    wanted = Counter(_name(d) for d in chosen)
    found = []
    for d in reversed(left):
        if d.fix is not None and wanted[_name(d)] > 0:
            wanted[_name(d)] -= 1
            found.append(d)
    return found[::-1]


def _settled(
    texts: Mapping[str, str],
    done: Fixed,
    chosen: Sequence[Diagnostic],
    check: Check,
    wanted: Callable[[Diagnostic], bool],
) -> Fixed | None:
    """All of them, with those that come to light by it; None if one stays, or if an error is new in the end."""
    before = known = Counter(_name(d) for d in done.left)
    mended: list[Diagnostic] = []
    now = {**texts, **done.texts}
    for _ in range(ROUNDS):
        for name in {d.span.filename for d in chosen}:
            edits = {edit for d in chosen if d.fix and d.span.filename == name for edit in d.fix.edits}
            now[name] = apply(now[name], edits)
        mended += chosen
        left = check({name: text for name, text in now.items() if text != texts[name]})
        after = Counter(_name(d) for d in left)
        if any(after[name] > before[name] - count for name, count in Counter(map(_name, chosen)).items()):
            return None
        new = [d for d in left if d.is_error and after[_name(d)] > known[_name(d)]]
        if not new:
            changed = {name: text for name, text in now.items() if text != texts[name]}
            return Fixed(changed, (*done.mended, *mended), tuple(left))
        chosen, before = _apart(d for d in new if d.fix is not None and wanted(d) and d.span.filename in texts), after
        if not chosen:
            return None
    return None


def _apart(found: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Those whose edits do not touch one another; the same edit, of what an alias names twice, is no other."""
    chosen: list[Diagnostic] = []
    taken: set[Edit] = set()
    for d in found:
        edits = set(d.fix.edits) if d.fix is not None else set()
        if not any(_touch(edit, other) for edit in edits for other in taken - edits):
            chosen.append(d)
            taken |= edits
    return chosen


def _touch(one: Edit, other: Edit) -> bool:
    a, b = one.span, other.span
    return a.filename == b.filename and a.start.offset <= b.end.offset and b.start.offset <= a.end.offset


def _name(d: Diagnostic) -> tuple[str, str, str]:
    """What tells a diagnostic from others wherever it has moved."""
    return d.span.filename, d.code, d.summary
