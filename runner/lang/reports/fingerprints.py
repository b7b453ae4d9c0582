"""What tells one diagnostic from another, also once the lines above it have changed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from runner.diagnostics import Diagnostic


def fingerprints(diagnostics: Sequence[Diagnostic]) -> list[str]:
    """One a diagnostic, all different: of its file, code and summary, and of which one of its like it is. No line is
    part of it, or whoever adds one above would be shown every old fault as a new one."""
    seen: Counter[tuple[str, str, str]] = Counter()
    found = []
    for d in diagnostics:
        like = (d.span.filename, d.code, d.summary)
        seen[like] += 1
        text = "\0".join((*like, str(seen[like])))
        found.append(hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest())
    return found
