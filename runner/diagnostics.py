"""What a check says of a flow: a value with a code, a place, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

from runner.source import Span


class Severity(StrEnum):
    """How bad it is: an error keeps the flow from starting, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Related:
    """The second place, where two disagree."""

    message: str
    span: Span


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
