"""SARIF 2.1.0 (OASIS), which code scanning and editors read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from runner.diagnostics import Diagnostic, Fix
from runner.lang.explanations import Explanation, explanation
from runner.lang.report import printable
from runner.lang.reports.fingerprints import fingerprints
from runner.source import Span

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def text(diagnostics: Sequence[Diagnostic], folder: str, version: str) -> str:
    """One log with one run. Columns are counted in characters, and ends are exclusive, as ours are."""
    codes = sorted({d.code for d in diagnostics})
    driver = {"name": "flowrun", "version": version, "rules": [_rule(code) for code in codes]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [
            _result(d, codes.index(d.code), fingerprint, folder)
            for d, fingerprint in zip(diagnostics, fingerprints(diagnostics), strict=True)
        ],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _rule(code: str) -> dict[str, Any]:
    """What a reader of the alert is told of its kind."""
    page = explanation(code)
    if page is None:
        return {"id": code}
    return {
        "id": code,
        "shortDescription": {"text": page.title},
        "fullDescription": {"text": page.text},
        "help": {"text": page.text, "markdown": _markdown(page)},
    }


def _markdown(page: Explanation) -> str:
    said = [page.text]
    for title, files in (("Wrong", page.wrong), ("Right", page.right)):
        said += [f"**{title}** ({name})\n\n```\n{text}```" for name, text in files.items()]
    return "\n\n".join(said)


def _result(d: Diagnostic, rule: int, fingerprint: str, folder: str) -> dict[str, Any]:
    said = d.summary + (f"\nhelp: {d.help}" if d.help else "")
    result: dict[str, Any] = {
        "ruleId": d.code,
        "ruleIndex": rule,
        "level": str(d.severity),
        "message": {"text": "\n".join(map(printable, said.split("\n")))},
        "locations": [{"physicalLocation": _place(d.span, folder)}],
        "partialFingerprints": {"flowrun/v1": fingerprint},
    }
    if d.related:
        result["relatedLocations"] = [
            {"id": n, "physicalLocation": _place(r.span, folder), "message": {"text": printable(r.message)}}
            for n, r in enumerate(d.related, 1)
        ]
    if d.fix is not None:
        result["fixes"] = [_fix(d.fix, folder)]
    return result


def _fix(fix: Fix, folder: str) -> dict[str, Any]:
    """SARIF 3.55: what is deleted where, and what is put there."""
    places = [_place(edit.span, folder) for edit in fix.edits]
    replacements = [
        {"deletedRegion": place["region"], "insertedContent": {"text": edit.replacement}}
        for place, edit in zip(places, fix.edits, strict=True)
    ]
    change = {"artifactLocation": places[0]["artifactLocation"], "replacements": replacements}
    return {"description": {"text": printable(fix.message)}, "artifactChanges": [change]}


def _place(span: Span, folder: str) -> dict[str, Any]:
    return {
        "artifactLocation": {"uri": quote(folder + span.filename, errors="replace")},
        "region": {
            "startLine": span.start.line,
            "startColumn": span.start.column,
            "endLine": span.end.line,
            "endColumn": span.end.column,
        },
    }
