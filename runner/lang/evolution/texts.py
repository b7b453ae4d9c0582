"""Texts to try where a schema wants one: of a format, or with a match of a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterator

OF_FORMATS = {
    "date-time": "2026-01-01T00:00:00Z", "date": "2026-01-01", "time": "00:00:00Z", "duration": "P1D",
    "email": "a@example.com", "idn-email": "a@example.com", "hostname": "example.com", "idn-hostname": "example.com",
    "ipv4": "192.0.2.1", "ipv6": "2001:db8::1", "uri": "https://example.com/", "iri": "https://example.com/",
    "uri-reference": "/a", "iri-reference": "/a", "uri-template": "/{a}", "json-pointer": "/a",
    "relative-json-pointer": "0", "regex": "a", "uuid": "00000000-0000-4000-8000-000000000000",
}  # fmt: skip

_PIECE = re.compile(
    r"(?P<escape>\\(?:[pP]\{[^}]*\}|.))|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<group>\((?:\?[:=!]|\?<\w+>)?)|(?P<end>\))"
    r"|(?P<or>\|)|(?P<anchor>[\^$])|(?P<plain>.)",
    re.DOTALL,
)
_REPEAT = re.compile(r"(?:(?P<sign>[*+?])|\{(?P<least>\d+)(?:,\d*)?\})\??")
_CLASSES = {"d": "0", "w": "a", "s": " ", "D": "a", "W": "-", "S": "a", "n": "\n", "t": "\t", "b": "", "B": ""}
_MOST = 200
_TRIED = "aA0 -_.@/:"


def with_match(pattern: str) -> str:
    """A text that may have a match of the pattern: the shortest way through it, at the first branch of each choice.
    It reads the common part of what a pattern can say; whether there is a match, the caller looks."""
    return _branch(iter_pieces(pattern))


def iter_pieces(pattern: str) -> Iterator[tuple[str, str, int]]:
    """(kind, text, how often at least), in order."""
    at = 0
    while (piece := _PIECE.match(pattern, at)) is not None:
        kind, at = str(piece.lastgroup), piece.end()
        repeat = _REPEAT.match(pattern, at) if kind not in ("group", "or", "anchor") else None
        least = 1
        if repeat is not None:
            at = repeat.end()
            least = min(int(repeat["least"]), _MOST) if repeat["least"] else int(repeat["sign"] == "+")
        yield kind, piece.group(), least


def _branch(pieces: Iterator[tuple[str, str, int]]) -> str:
    """Up to the end of the group, which is repeated as its end says."""
    text, taken = "", True
    for kind, piece, least in pieces:
        match kind:
            case "end":
                return text * least
            case "or":
                taken = False
            case "group":
                inner = _branch(pieces)
                text += inner if taken and piece not in ("(?=", "(?!") else ""
            case "anchor":
                continue
            case _:
                text += _character(kind, piece) * least if taken else ""
    return text


def _character(kind: str, piece: str) -> str:
    if kind == "escape":
        return _CLASSES.get(piece[1], "a" if piece[1] in "pP" else piece[1])
    if kind == "set":
        try:
            fits = re.compile(piece)
        except re.error:
            return "a"
        inside = [c for c in piece[1:-1] if c.isprintable()]
        return next((c for c in (*_TRIED, *inside) if fits.fullmatch(c)), "a")
    return "a" if piece == "." else piece
