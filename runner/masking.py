"""Takes secrets out of texts: wherever the value of one would show, `***` stands."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import quote, quote_plus, unquote

HIDDEN: Final = "***"
SHORTEST: Final = 4
"""Shorter values stay: `***` for every 1 would spoil all texts and tell the value (CircleCI draws the same line)."""
PART: Final = 8
"""A part of a value is hidden by itself if it has so many characters."""
CUT: Final = 16
"""A value of which a message has only the beginning is told by so many characters and the `…` that we cut with."""
_WORDS = frozenset({"true", "false"})
_URL = re.compile(r"([a-z][a-z0-9+.-]*://)(?:([^/?#]*)@)?([^/?#@]*/[^?#]+)?", re.IGNORECASE)


def is_maskable(value: str) -> bool:
    """Whether it can be told from ordinary text."""
    return len(value) >= SHORTEST and value.lower() not in _WORDS


class Mask:
    """Hides the values that it was taught, in every form that they get on their way into a text: as JSON and Python
    write them, percent-encoded, and in base64 wherever they stand in what was encoded. Of a value of several lines each
    line is hidden as well; of a URL its password, and the URL without user and query. It never forgets a value: a
    secret that was replaced may still be shown.

    Safe from many threads.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values: frozenset[str] = frozenset()
        self._forms: tuple[str, ...] = ()
        """The longest first: one may be a part of another."""
        self.learn(values)

    def learn(self, values: Iterable[str]) -> None:
        """From now on, hide these as well."""
        new = frozenset(filter(is_maskable, values)) - self._values
        if new:
            self._values |= new
            found = {form for value in self._values for form in _forms(value)}
            self._forms = tuple(sorted(found, key=lambda form: (-len(form), form)))

    def text(self, text: str) -> str:
        """The text without them."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, HIDDEN)
        return self._without_beginnings(text) if self._forms and "…" in text else text

    def value(self, value: Any) -> Any:
        """A JSON value without them, the keys of its objects included."""
        if not self._forms:
            return value
        match value:
            case str():
                return self.text(value)
            case list():
                return [self.value(item) for item in value]
            case dict():
                return {self.text(key): self.value(item) for key, item in value.items()}
            case int() | float() if json.dumps(value) in self._values:
                return HIDDEN
        return value

    def _without_beginnings(self, text: str) -> str:
        """Messages are cut to a length, and what they are cut in may be a secret."""
        for form in self._forms:
            at = text.find(form[:CUT]) if len(form) > CUT else -1
            while at >= 0:
                end = at + CUT
                while end - at < len(form) and text[end : end + 1] == form[end - at]:
                    end += 1
                if text[end : end + 1] == "…":
                    text, end = text[:at] + HIDDEN + text[end:], at
                at = text.find(form[:CUT], end)
        return text


def _forms(value: str) -> Iterator[str]:
    parts = {part for part in (*map(str.strip, value.splitlines()), *_of_url(value)) if len(part) >= PART}
    for each in {value, *parts}:
        yield each
        yield from (json.dumps(each, ensure_ascii=False)[1:-1], json.dumps(each)[1:-1], repr(each)[1:-1])
        yield from (quote(each, errors="replace"), quote(each, "", errors="replace"))
        yield quote_plus(each, errors="replace")
        yield from _in_base64(each.encode(errors="replace"))


def _of_url(value: str) -> Iterator[str]:
    """What error messages show of a URL."""
    found = _URL.match(value)
    if found is None:
        return
    scheme, login, address = found.groups()
    user, _, password = (login or "").partition(":")
    if password != user:  # postgres:postgres keeps no secret, and would hide a word
        yield from (password, unquote(password))
    if address is not None:
        yield scheme + address


def _in_base64(data: bytes) -> Iterator[str]:
    """As it looks inside of what was encoded, after 0, 1 or 2 bytes of a group of three: only the characters that its
    own bits make up. Too short ones stand in any text of base64."""
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + data).decode()
        own = encoded[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]
        if len(own) >= PART:
            yield own
            yield own.replace("+", "-").replace("/", "_")
