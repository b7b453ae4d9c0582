"""One more key for a mapping, written as the mapping is: in a block on a line of its own, in braces behind the last."""

from __future__ import annotations

import re

from runner.diagnostics import Edit, Fix
from runner.source import Document, Lines, MappingNode, Node, ScalarNode, SequenceNode, Span

_BRACE = re.compile(r"(?:[&!]\S*\s+)*\{")
_ALIAS = re.compile(r"['\"]?\s*:\s*\*[^\s,\[\]{}]+")


def with_key(document: Document, mapping: MappingNode, written: str) -> Fix | None:
    """The fix that adds `key: value` as the last of a mapping's own keys, those that it does not get by an alias or a
    merge; None if it has none."""
    text = document.text
    own = [(key, value) for key, value in mapping.entries if _within(key.span, mapping.span)]
    if not own:
        return None
    if _BRACE.match(text, mapping.span.start.offset):
        at = max(_end(text, key, value, mapping) for key, value in own)
        return _put_in(document, at, f", {written}")
    # Behind a block text a line more could change how it ends: its line breaks may be kept.
    own = [(key, value) for key, value in own if not _is_block_text(value)] or own
    at = max(_end_of_line(text, _end(text, key, value, mapping)) for key, value in own)
    line_end = "\r\n" if text.startswith("\r", at) or text.count("\r\n") else "\n"
    indent = " " * (own[0][0].span.start.column - 1)
    return _put_in(document, at, f"{line_end}{indent}{written}")


def _put_in(document: Document, at: int, written: str) -> Fix:
    place = Lines(document.text).position(at)
    message = written.strip(", \r\n") + " added"
    return Fix(message, (Edit(Span(document.filename, place, place), written),))


def _end(text: str, key: ScalarNode, value: Node, mapping: MappingNode) -> int:
    """Where an entry ends; an alias has its value elsewhere, and ends with its name."""
    if _within(value.span, mapping.span) and value.span.start >= key.span.end:
        return value.span.end.offset
    found = _ALIAS.match(text, key.span.end.offset)
    return found.end() if found is not None else key.span.end.offset


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    end = len(text) if end < 0 else end
    return end - 1 if text.startswith("\r\n", end - 1) else end


def _within(inner: Span, outer: Span) -> bool:
    return outer.start <= inner.start and inner.end <= outer.end


def _is_block_text(node: Node) -> bool:
    match node:
        case SequenceNode() if node.items:
            return _is_block_text(node.items[-1])
        case MappingNode() if node.entries:
            return _is_block_text(node.entries[-1][1])
    return isinstance(node, ScalarNode) and node.raw[:1] in ("|", ">")
