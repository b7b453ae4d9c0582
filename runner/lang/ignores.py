"""FR012: comments `# flowrun: ignore[FR503]`, and what they ignore."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from runner.diagnostics import Diagnostic, Edit, Fix, Severity
from runner.source import Document, Lines, MappingNode, Node, ScalarNode, SequenceNode, Span

_COMMENT = re.compile(r"(?:^|(?<=\s))#[ \t]*flowrun:[ \t]*ignore\b(?P<codes>[ \t]*\[[^\]\n]*\])?", re.MULTILINE)
_CODE = re.compile(r"[^\s,\[\]]+")
_MEANINGS = re.compile(r"FR30[4-9]|FR3[1-9]\d")
"""Errors about the values of payloads and expressions, which the engine checks again where they are used: there an
author may know better. Any other error keeps a plan from being made."""
_SYNTAX = "FR320"


@dataclass(frozen=True, slots=True)
class _Ignore:
    """One code in one comment: the place of the code, and the line that it speaks of."""

    code: str
    span: Span
    line: int
    fix: Fix | None
    """Leaves it out."""


def without_ignored(
    diagnostics: Iterable[Diagnostic], documents: Mapping[str, Document], *, complete: bool
) -> list[Diagnostic]:
    """The diagnostics that no comment ignores, and what is wrong with the comments. Where not everything could be
    checked (`complete` is False), a comment that ignores nothing may yet have something to ignore."""
    found = list(diagnostics)
    kept, said = found, list[Diagnostic]()
    for document in documents.values():
        for ignore in _ignores(document, said):
            meant = [d for d in found if _speaks_of(ignore, d)]
            errors = [d for d in meant if not _may_be_ignored(d)]
            kept = [d for d in kept if d in errors or d not in meant]
            if errors:
                said.append(_warning(f"{ignore.code} cannot be ignored: it keeps the flow from starting", ignore.span))
            elif not meant and complete:
                summary = f"there is no {ignore.code} to ignore"
                said.append(_warning(summary, ignore.span, help="leave the comment out", fix=ignore.fix))
    return [*kept, *said]


def _speaks_of(ignore: _Ignore, d: Diagnostic) -> bool:
    place = (d.span.filename, d.span.start.line)
    return d.code == ignore.code and place == (ignore.span.filename, ignore.line)


def _may_be_ignored(d: Diagnostic) -> bool:
    return not d.is_error or (_MEANINGS.fullmatch(d.code) is not None and d.code != _SYNTAX)


def _ignores(document: Document, said: list[Diagnostic]) -> Iterator[_Ignore]:
    """What the comments of a file ignore; comments that name no code go to `said`."""
    comments = list(_COMMENT.finditer(document.text)) if document.root is not None else []
    if not comments:
        return
    assert document.root is not None
    texts = [(span.start.offset, span.end.offset) for span in _texts(document.root)]
    lines, rows = Lines(document.text), document.text.split("\n")
    for comment in comments:
        if any(start <= comment.start() < end for start, end in texts):
            continue  # inside of a text it is no comment
        line = _line_meant(rows, lines.position(comment.start()).line)
        codes = list(_CODE.finditer(document.text, *comment.span("codes"))) if comment["codes"] is not None else []
        if not codes:
            help = "name the codes: # flowrun: ignore[FR503]"
            said.append(_warning("this comment ignores nothing", _span(document, lines, *comment.span()), help=help))
        for number, code in enumerate(codes):
            without = _without(document.text, comment, codes, number)
            fix = None
            if without is not None:
                fix = Fix("the comment left out", (Edit(_span(document, lines, *without), ""),))
            yield _Ignore(code.group(), _span(document, lines, *code.span()), line, fix)


def _without(text: str, comment: re.Match[str], codes: list[re.Match[str]], number: int) -> tuple[int, int] | None:
    """What is to be cut out so that a comment no longer names a code: the code and a comma, or all of the comment, with
    its line if it has one for itself; None if something else stands behind it."""
    if len(codes) > 1:
        if number + 1 < len(codes):
            return codes[number].start(), codes[number + 1].start()
        return codes[number - 1].end(), codes[number].end()
    line, end = text.rfind("\n", 0, comment.start()) + 1, text.find("\n", comment.end())
    end = len(text) if end < 0 else end
    if text[comment.end() : end].strip():
        return None
    before = text[line : comment.start()].rstrip()
    if not before:
        return line, min(end + 1, len(text))
    return line + len(before), comment.end()


def _line_meant(rows: list[str], line: int) -> int:
    """Behind something, a comment speaks of its own line; alone, of the first below that is no comment."""
    if not rows[line - 1].lstrip().startswith("#"):
        return line
    return next((n for n in range(line + 1, len(rows) + 1) if not rows[n - 1].lstrip().startswith("#")), line)


def _texts(node: Node) -> Iterator[Span]:
    """Where a file has texts, keys included."""
    match node:
        case ScalarNode():
            yield node.span
        case SequenceNode():
            for item in node.items:
                yield from _texts(item)
        case MappingNode():
            for key, value in node.entries:
                yield key.span
                yield from _texts(value)


def _span(document: Document, lines: Lines, start: int, end: int) -> Span:
    return Span(document.filename, lines.position(start), lines.position(end))


def _warning(summary: str, span: Span, *, help: str | None = None, fix: Fix | None = None) -> Diagnostic:
    return Diagnostic(code="FR012", severity=Severity.WARNING, summary=summary, span=span, help=help, fix=fix)
