"""Diagnostics → text and JSON. A diagnostic is a value; this file only draws it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from unicodedata import combining, east_asian_width

from runner.diagnostics import Diagnostic, Fix
from runner.source import Document, Position, Span

WIDTH = 120
SNIPPET_MOST = 1000
"""A longer line is no snippet: a file of one line with a fault at each word would make a report of its square."""
_UNSAFE = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")

Paint = Callable[[str, str], str]
"""(text, colour) → text; colours are `red`, `yellow`, `blue`, `bold`."""


def no_paint(text: str, colour: str) -> str:
    """For output that is not a terminal."""
    return text


def full(
    diagnostics: Sequence[Diagnostic], documents: Mapping[str, Document], paint: Paint = no_paint
) -> Iterable[str]:
    """Each diagnostic with its line, a caret and what to do, as rustc does."""
    for diagnostic in diagnostics:
        yield _one(diagnostic, documents, paint)
        yield ""


def concise(diagnostics: Sequence[Diagnostic]) -> Iterable[str]:
    """One line each: `path:line:col: FR203 error: message`."""
    for d in diagnostics:
        yield f"{printable(str(d.span))}: {d.code} {d.severity}: {printable(d.summary)}"


def as_json(diagnostics: Sequence[Diagnostic], documents: Mapping[str, Document]) -> str:
    """One JSON value in terraform's words (LANGUAGE, Commands)."""
    errors = sum(d.is_error for d in diagnostics)
    report = {
        "format_version": "1.0",
        "valid": errors == 0,
        "error_count": errors,
        "warning_count": len(diagnostics) - errors,
        "diagnostics": [_json_one(d, documents) for d in diagnostics],
    }
    text = json.dumps(report, ensure_ascii=False, indent=2)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def summary(diagnostics: Sequence[Diagnostic], files: int) -> str:
    """The last line of a text report."""
    errors = sum(d.is_error for d in diagnostics)
    warnings = len(diagnostics) - errors
    if not diagnostics:
        return f"{count(files, 'file')} valid."
    return f"Found {count(errors, 'error')} and {count(warnings, 'warning')} in {count(files, 'file')}."


def printable(text: str) -> str:
    """Text without control and direction characters, so that no file can write to the terminal."""
    return "".join(c if c.isprintable() else "�" for c in text.replace("\t", " ").replace("\n", " "))


def _one(d: Diagnostic, documents: Mapping[str, Document], paint: Paint) -> str:
    colour = "red" if d.is_error else "yellow"
    head = f"{paint(f'{d.severity}[{d.code}]', colour)}: {paint(printable(d.summary), 'bold')}"
    number = str(d.span.start.line)
    margin = " " * len(number)
    lines = [head, f"{margin}{paint('-->', 'blue')} {printable(str(d.span))}"]
    help = f"help: {printable(d.help)}" if d.help else ""
    text = _line(documents, d.span)
    if text is not None:
        bar = paint("|", "blue")
        shown, caret, width = _window(text, d.span)
        beside = help if caret + width + len(help) <= WIDTH else ""
        help = "" if beside else help
        lines += [
            f"{margin} {bar}",
            f"{paint(number, 'blue')} {bar} {shown}".rstrip(),
            f"{margin} {bar} {' ' * caret}{paint('^' * width, colour)} {beside}".rstrip(),
        ]
    if help:
        lines.append(f"{margin} {paint('=', 'blue')} {help}")
    for related in d.related:
        lines.append(f"{margin} {paint('=', 'blue')} {printable(related.message)}: {printable(str(related.span))}")
    return "\n".join(lines)


def _line(documents: Mapping[str, Document], span: Span) -> str | None:
    document = documents.get(span.filename)
    if document is None or not document.text:
        return None
    lines = document.text.split("\n")
    return lines[span.start.line - 1].removesuffix("\r") if span.start.line <= len(lines) else None


def _window(text: str, span: Span) -> tuple[str, int, int]:
    """The line, the caret's place in it and its width, in columns of a terminal; a long line is cut around the
    caret."""
    at = span.start.column - 1
    same_line = span.end.line == span.start.line
    length = max(1, min(span.end.column - 1 if same_line else len(text), len(text)) - at)
    start = 0 if at < WIDTH else at - 40
    shown = text[start : start + WIDTH + 40]
    marked = shown[at - start : at - start + length]
    return printable(shown), _columns(shown[: at - start]), max(1, _columns(marked))


def _columns(text: str) -> int:
    """How wide a terminal shows a text: East Asian characters and emoji take two columns, accents none."""
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _json_one(d: Diagnostic, documents: Mapping[str, Document]) -> dict[str, object]:
    code = _line(documents, d.span)
    if code is not None and len(code) > SNIPPET_MOST:
        code = None
    return {
        "severity": str(d.severity),
        "code": d.code,
        "summary": d.summary,
        "detail": d.help or "",
        "range": _range(d.span, documents),
        "snippet": None if code is None else {"code": code, "start_line": d.span.start.line},
        "related": [{"message": r.message, "range": _range(r.span, documents)} for r in d.related],
        "fix": None if d.fix is None else _fix(d.fix, documents),
    }


def _fix(fix: Fix, documents: Mapping[str, Document]) -> dict[str, object]:
    edits = [{"range": _range(edit.span, documents), "replacement": edit.replacement} for edit in fix.edits]
    return {"message": fix.message, "edits": edits}


def _range(span: Span, documents: Mapping[str, Document]) -> dict[str, object]:
    document = documents.get(span.filename)
    text, skipped = (document.text, document.skipped_bytes) if document is not None else ("", 0)

    def place(position: Position) -> dict[str, int]:
        byte = skipped + len(text[: position.offset].encode(errors="surrogatepass"))
        return {"line": position.line, "column": position.column, "byte": byte}

    return {"filename": span.filename, "start": place(span.start), "end": place(span.end)}


def count(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
