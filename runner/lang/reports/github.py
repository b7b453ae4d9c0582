"""Workflow commands of GitHub Actions: annotations in a pull request, at the line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from runner.diagnostics import Diagnostic
from runner.lang.report import printable


def lines(diagnostics: Sequence[Diagnostic], folder: str) -> Iterable[str]:
    """`::error title=…,file=…,line=…::message`, one line each.

    GitHub Docs, "Workflow commands": columns stand only where the beginning and the end are on one line.
    """
    for d in diagnostics:
        start, end = d.span.start, d.span.end
        properties = {"title": f"flowrun ({d.code})", "file": folder + d.span.filename, "line": str(start.line)}
        if end.line == start.line:
            properties["col"] = str(start.column)
        properties["endLine"] = str(end.line)
        if end.line == start.line:
            properties["endColumn"] = str(max(start.column, end.column - 1))
        written = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
        yield f"::{d.severity} {written}::{_text(_message(d))}"


def _message(d: Diagnostic) -> str:
    """What is wrong, what to write instead, and the second place."""
    said = [d.summary, *([f"help: {d.help}"] if d.help else [])]
    said += [f"{related.message}: {related.span}" for related in d.related]
    return "\n".join(map(printable, said))


def _text(text: str) -> str:
    """As `escapeData` of GitHub's toolkit."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """As `escapeProperty` of GitHub's toolkit."""
    return _text(printable(text)).replace(":", "%3A").replace(",", "%2C")
