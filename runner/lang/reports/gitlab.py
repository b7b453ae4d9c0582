"""GitLab's Code Quality report: what a merge request adds and mends."""

from __future__ import annotations

import json
from collections.abc import Sequence

from runner.diagnostics import Diagnostic
from runner.lang.report import printable
from runner.lang.reports.fingerprints import fingerprints


def text(diagnostics: Sequence[Diagnostic], folder: str) -> str:
    """One JSON array (GitLab Docs, "Code Quality report format"). The code stands in the description, because GitLab
    does not show `check_name`."""
    report = [
        {
            "description": printable(f"{d.code}: {d.summary}" + (f" ({d.help})" if d.help else "")),
            "check_name": d.code,
            "fingerprint": fingerprint,
            "severity": "major" if d.is_error else "minor",
            "location": {"path": folder + d.span.filename, "lines": {"begin": d.span.start.line}},
        }
        for d, fingerprint in zip(diagnostics, fingerprints(diagnostics), strict=True)
    ]
    return json.dumps(report, indent=2)
