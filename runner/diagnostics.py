"""What a check says of a flow: a value with a code, a place, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

from runner.source import ScalarNode, Span


class Severity(StrEnum):
    """How bad it is: an error keeps the flow from starting, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Related:
    """The second place, where two disagree."""

    message: str
    span: Span


@dataclass(frozen=True, slots=True)
class Edit:
    """Put `replacement` in the place of what stands at `span`; where that is empty, it is put in."""

    span: Span
    replacement: str


@dataclass(frozen=True, slots=True)
class Fix:
    """What mends a fault, where that is certain; it changes the fault's own file only, and no edit touches another."""

    message: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """One fault of a flow file.

    `summary` is one terse headline, `help` says what to write instead.
    """

    code: str
    summary: str
    span: Span
    severity: Severity = Severity.ERROR
    help: str | None = None
    related: tuple[Related, ...] = ()
    fix: Fix | None = None

    @property
    def is_error(self) -> bool:
        """Whether it keeps the flows from starting."""
        return self.severity is Severity.ERROR

    @property
    def sort_key(self) -> tuple[str, int, int, str, str]:
        """File, place, code: the order in which a reader wants them."""
        return (self.span.filename, self.span.start.line, self.span.start.offset, self.code, self.summary)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """`did you mean "reserve"?` for the nearest known word, or None if none is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else None


def respelt(node: ScalarNode, word: str, known: Iterable[str], at: int = 0) -> Fix | None:
    """The fix of a misspelt word that stands at `at` of a node's value: the one known word that is a slip or two away.
    None if there is no such word, or more than one, or if the file writes the word in another way (by escapes)."""
    near = get_close_matches(word, set(known), n=8, cutoff=0.6)
    slips = 1 if len(word) < _LONG else 2
    meant = [each for each in near if _slips(word, each, slips) <= slips]
    span = node.part(at, len(word))
    start = span.start.offset - node.span.start.offset
    if len(meant) != 1 or near[0] != meant[0] or node.raw[start : span.end.offset - node.span.start.offset] != word:
        return None
    return Fix(f'"{word}" → "{meant[0]}"', (Edit(span, meant[0]),))


_LONG = 6
"""From so many letters on, two slips of the keyboard leave a word that can be known again."""


def _slips(one: str, other: str, most: int) -> int:
    """How many letters are left out, put in, mistaken or exchanged with their neighbour (optimal string alignment);
    anything above `most` if there are more."""
    if abs(len(one) - len(other)) > most:
        return most + 1
    before, last, row = [0], [0], list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, last, row = last, row, [i]
        for j, wanted in enumerate(other, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
    return row[-1]
