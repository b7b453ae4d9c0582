"""FR002, FR006, FR007, FR008: what PyYAML complains of, in words for the author, with the place where it began."""

from __future__ import annotations

import re

import yaml

from runner.diagnostics import Diagnostic, Related
from runner.source import Lines, Span

MAX_DEPTH = 100

_NO_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_UNCLOSED = {
    "while parsing a flow sequence": ("list", "]", "["),
    "while parsing a flow mapping": ("mapping", "}", "{"),
}
_BLOCK = {
    "while parsing a block mapping": "the keys that it may belong to begin here",
    "while parsing a block collection": "the list that it may belong to begins here",
}
_ALIAS = '* and & begin an anchor\'s name: quote a text that begins so, like "*.placed"'
_PROBLEMS = (
    ("mapping values are not allowed", '":" cannot stand here', 'quote a text that holds ": " or ends with ":"'),
    ("block sequence entries are not allowed", "a list cannot begin here", "begin it on a line of its own"),
    ("did not find expected alphabetic or numeric", "this is no name of an anchor", _ALIAS),
    ("found character that cannot start", "a text cannot begin with this character", "quote the text"),
    ("found unknown escape character", "there is no such escape", "double the backslash, or use single quotes"),
    ("did not find expected hexdecimal number", "this escape needs hexadecimal digits", None),
    ("found invalid Unicode character escape", "this escape is no character", None),
    ("did not find expected <document start>", "this does not belong to what stands before it", None),
    ("did not find expected comment or line break", "a block text begins on the next line", None),
    ("did not find expected node content", "a value is missing here", None),
)


def no_text(name: str, text: str, lines: Lines) -> Diagnostic | None:
    """FR002 for the first character that no text file has."""
    found = _NO_TEXT.search(text)
    if found is None:
        return None
    summary = f"this character (U+{ord(found.group()):04X}) cannot stand in a text file"
    return Diagnostic(code="FR002", summary=summary, span=_span(name, lines, found.start()))


def explain(name: str, text: str, lines: Lines, error: yaml.YAMLError) -> Diagnostic:
    """Why the text is not YAML, and where what is broken began."""
    mark, context_mark = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    problem, context = str(getattr(error, "problem", None) or error), str(getattr(error, "context", None) or "")
    at = min(mark.index, len(text)) if mark is not None else 0
    begin = context_mark.index if context_mark is not None else at
    here = _span(name, lines, at)
    if "maximum nesting depth" in problem:  # libyaml reads ahead of us, and has a limit of its own (1,000)
        return Diagnostic(code="FR008", summary=f"nested deeper than {MAX_DEPTH} levels", span=here)
    if text[at : at + 1] == "\t" or "tab character" in problem:
        return Diagnostic(code="FR006", summary="tabs cannot indent YAML", span=here, help="use spaces")
    if context in _UNCLOSED:
        return _unclosed(name, text, lines, at, begin, *_UNCLOSED[context])
    if context == "while scanning a quoted scalar" and "escape" not in problem and "hexdecimal" not in problem:
        summary, end = (
            "the quote that opens here is never closed",
            Related("the file ends here", _end(name, text, lines)),
        )
        return Diagnostic(code="FR007", summary=summary, span=_span(name, lines, begin), related=(end,))
    if "could not find expected ':'" in problem:
        return _no_colon(name, text, lines, begin)
    if context in _BLOCK and "did not find expected" in problem:
        related = (Related(_BLOCK[context], _span(name, lines, begin)),)
        summary = "the indentation of this line fits nothing above it"
        return Diagnostic(code="FR007", summary=summary, span=here, related=related)
    if "mapping values" in problem and ": " not in text[text.rfind("\n", 0, at) + 1 : at]:
        return _colon_after_text(name, text, lines, at)
    for known, summary, help in _PROBLEMS:
        if known in problem:
            return Diagnostic(code="FR007", summary=summary, span=here, help=help)
    return Diagnostic(code="FR007", summary=f"this is not YAML: {problem}", span=here)


def _unclosed(
    name: str, text: str, lines: Lines, at: int, begin: int, what: str, closing: str, opening: str
) -> Diagnostic:
    start = _span(name, lines, begin)
    if not text[at:].strip():
        summary, end = (
            f"the {what} that begins here is never closed",
            Related("the file ends here", _end(name, text, lines)),
        )
        return Diagnostic(code="FR007", summary=summary, span=start, help=f"close it with {closing}", related=(end,))
    summary = f'"," or "{closing}" is missing before this'
    related = (Related(f'the "{opening}" that is open is here', start),)
    return Diagnostic(code="FR007", summary=summary, span=_span(name, lines, at), related=related)


def _no_colon(name: str, text: str, lines: Lines, begin: int) -> Diagnostic:
    """A key without its colon: PyYAML sees it at the next one."""
    end = text.find("\n", begin)
    word = text[begin : len(text) if end < 0 else end].rstrip()
    span = Span(name, lines.position(begin), lines.position(begin + max(len(word), 1)))
    return Diagnostic(code="FR007", summary='a ":" is missing after this', span=span)


def _colon_after_text(name: str, text: str, lines: Lines, at: int) -> Diagnostic:
    """A key right below a text that is not finished: that text is meant to be a key, or to have a value."""
    here = lines.position(at)
    above = text[: at - here.column + 1].rstrip()
    last = lines.position(max(len(above) - 1, 0))
    end = lines.position(len(above))
    return Diagnostic(
        code="FR007",
        summary='":" cannot stand here: the text above goes on in this line',
        span=_span(name, lines, at),
        related=(Related('is a ":" missing after this?', Span(name, last, end)),),
    )


def _span(name: str, lines: Lines, at: int) -> Span:
    return Span(name, lines.position(at), lines.position(at + 1))


def _end(name: str, text: str, lines: Lines) -> Span:
    end = lines.position(len(text.rstrip()))
    return Span(name, end, end)
