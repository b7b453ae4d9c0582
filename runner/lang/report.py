"""Diagnostics → text and JSON. A diagnostic is a value; this file only draws it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from runner.diagnostics import Diagnostic, Severity
from runner.source import Document, Position, Span

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
    errors = sum(d.severity is Severity.ERROR for d in diagnostics)
    report = {
        "format_version": "1.0",
        "valid": errors == 0,
        "error_count": errors,
        "warning_count": len(diagnostics) - errors,
        "diagnostics": [_json_one(d, documents) for d in diagnostics],
    }
    return json.dumps(report, ensure_ascii=False, indent=2)


def summary(diagnostics: Sequence[Diagnostic], files: int) -> str:
    """The last line of a text report."""
    errors = sum(d.severity is Severity.ERROR for d in diagnostics)
    warnings = len(diagnostics) - errors
    if not diagnostics:
        return f"{_count(files, 'file')} valid."
    return f"Found {_count(errors, 'error')} and {_count(warnings, 'warning')} in {_count(files, 'file')}."


def printable(text: str) -> str:
    """Text without control and direction characters, so that no file can write to the terminal."""
    return "".join(
        c if (c.isprintable() and not "\u202a" <= c <= "\u202e" and not "\u2066" <= c <= "\u2069") else "�"
        for c in text.replace("\t", " ").replace("\n", " ")
    )


def _one(d: Diagnostic, documents: Mapping[str, Document], paint: Paint) -> str:
    colour = "red" if d.severity is Severity.ERROR else "yellow"
    head = f"{paint(f'{d.severity}[{d.code}]', colour)}: {paint(printable(d.summary), 'bold')}"
    number = str(d.span.start.line)
    margin = " " * len(number)
    lines = [head, f"{margin}{paint('-->', 'blue')} {printable(str(d.span))}"]
    text = _line(documents, d.span)
    if text is not None:
        bar = paint("|", "blue")
        note = " ".join(filter(None, [d.label, f"help: {printable(d.help)}" if d.help else None]))
        shown, caret, width = _window(text, d.span)
        carets = paint("^" * width, colour)
        lines += [
            f"{margin} {bar}",
            f"{paint(number, 'blue')} {bar} {shown}",
            f"{margin} {bar} {' ' * caret}{carets} {note}".rstrip(),
        ]
    elif d.help:
        lines.append(f"{margin} {paint('=', 'blue')} help: {printable(d.help)}")
    for related in d.related:
        lines.append(f"{margin} {paint('=', 'blue')} {printable(related.message)}: {printable(str(related.span))}")
    return "\n".join(lines)


def _line(documents: Mapping[str, Document], span: Span) -> str | None:
    document = documents.get(span.filename)
    if document is None or not document.text:
        return None
    lines = document.text.split("\n")
    return lines[span.start.line - 1] if span.start.line <= len(lines) else None


def _window(text: str, span: Span) -> tuple[str, int, int]:
    """The line, the caret's place in it and its width; a long line is cut around the caret."""
    at = span.start.column - 1
    same_line = span.end.line == span.start.line
    width = max(1, (span.end.column if same_line else len(text) + 1) - span.start.column)
    start = 0 if at < 120 else at - 40
    shown = text[start : start + 160]
    return printable(shown), at - start, min(width, max(1, len(shown) - (at - start)))


def _json_one(d: Diagnostic, documents: Mapping[str, Document]) -> dict[str, object]:
    code = _line(documents, d.span)
    return {
        "severity": str(d.severity),
        "code": d.code,
        "summary": d.summary,
        "detail": d.help or "",
        "range": _range(d.span, documents),
        "snippet": None if code is None else {"code": code, "start_line": d.span.start.line},
        "related": [{"message": r.message, "range": _range(r.span, documents)} for r in d.related],
        "fix": None,
    }


def _range(span: Span, documents: Mapping[str, Document]) -> dict[str, object]:
    document = documents.get(span.filename)
    text = document.text if document is not None else ""

    def place(position: Position) -> dict[str, int]:
        byte = len(text[: position.offset].encode())
        return {"line": position.line, "column": position.column, "byte": byte}

    return {"filename": span.filename, "start": place(span.start), "end": place(span.end)}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
