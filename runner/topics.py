"""AMQP topic patterns: words joined by dots, `*` for one word, `#` for any number of them, none included."""

from __future__ import annotations

import re
from functools import lru_cache

_WORD = r"[^.]*"


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str] | None:
    if "*" not in pattern and "#" not in pattern:
        return None
    # Words are read one by one: each brings the dot before it, so that `a.#` takes `a` and `#.a` takes `a`.
    parts = [
        rf"(?:\.{_WORD})*" if word == "#" else rf"\.{_WORD}" if word == "*" else r"\." + re.escape(word)
        for word in pattern.split(".")
    ]
    return re.compile("".join(parts))


def topic_matches(pattern: str, key: str) -> bool:
    """Whether a binding's pattern takes a routing key, as a RabbitMQ topic exchange decides it."""
    compiled = _compiled(pattern)
    if compiled is None:
        return pattern == key
    return compiled.fullmatch(f".{key}" if key else "") is not None  # an empty key has no words
