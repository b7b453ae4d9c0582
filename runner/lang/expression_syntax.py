"""FR320: Jinja2's complaint about an expression, in words for its author."""

from __future__ import annotations

import re

from runner.diagnostics import Diagnostic, did_you_mean, respelt
from runner.expressions import ExpressionSyntaxError
from runner.filters import FILTERS_KNOWN, TESTS_KNOWN
from runner.source import ScalarNode

_OPERATORS = {
    "&": 'write "and"',
    "!": 'write "not"',
    "=": "write == to compare",
    "'": "close the quote",
    '"': "close the quote",
    "?": "write: a if b else c",
    "|": "a filter's name follows",
}
_END = "'?end of the expression'?"
_SAID = (
    (rf"^unexpected end of template, expected {_END}\.?$", "the }} is missing"),
    (rf"^[Ee]xpected an expression, got {_END}$", "an expression is missing here"),
    (rf"^expected token 'name', got {_END}$", "a name is missing here"),
    (rf"^unexpected {_END}$", "the expression ends too early"),
    (r"^unexpected char (['\"])(.)\1$", r'"\2" does not belong into an expression'),
    (r"^(unexpected|there is no filter|there is no test) '([^']*)'$", r'\1 "\2"'),
)
"""What Jinja2 says, and what we say for it."""


def explain(error: ExpressionSyntaxError, node: ScalarNode) -> Diagnostic:
    """A syntax error with its place inside the file."""
    text = str(node.value)
    summary = error.message
    for pattern, said in _SAID:
        summary = re.sub(pattern, said, summary)
    at, length = _word(error, text)
    word = text[at : at + length]
    help: str | None
    fix = None
    if "no filter" in summary or "no test" in summary:
        known = FILTERS_KNOWN if "no filter" in summary else TESTS_KNOWN
        help = did_you_mean(word, known) or f"there are: {', '.join(sorted(known))}"
        fix = respelt(node, word, known, at)
    else:
        help = _OPERATORS.get(text[at : at + 1])
    return Diagnostic(code="FR320", summary=summary, span=node.part(at, length), help=help, fix=fix)


def _word(error: ExpressionSyntaxError, text: str) -> tuple[int, int]:
    """What the message is about: Jinja2 names the place of the operator before it, or of the bracket after it."""
    quoted = re.search(r"'(\w+)'$", error.message)
    if quoted is not None and "there is no" in error.message:
        found = text.find(quoted.group(1), error.offset)
        if found >= 0:
            return found, len(quoted.group(1))
    before = re.search(r"[\w.]+\s*$", text[: error.offset])
    if text[error.offset : error.offset + 1] == "(" and before is not None:
        return before.start(), len(before.group().rstrip())
    after = re.compile(r"\.\s*(\w+)").match(text, error.offset)
    if after is not None:
        return after.start(1), len(after.group(1))
    return error.offset, error.length
