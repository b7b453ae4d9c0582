"""Where a part of a value stands in its file, however the file writes the value."""

from __future__ import annotations

import pytest

from runner.lang.load import load_text
from runner.source import Lines, MappingNode, ScalarNode, Span


def scalar(text: str) -> tuple[str, ScalarNode]:
    """The value of the key `a` in a YAML text."""
    document, faults = load_text("f.yaml", text.encode())
    assert not faults
    assert isinstance(document.root, MappingNode)
    node = document.root.get("a")
    assert isinstance(node, ScalarNode)
    return document.text, node


def written(text: str, span: Span) -> str:
    return text[span.start.offset : span.end.offset]


WAYS = [
    "a: see HERE now\n",
    "a: 'see HERE now'\n",
    'a: "see HERE now"\n',
    "a: 'it''s ''HERE'' now'\n",
    'a: "tab\\t \\x41 \\u00e4 \\U0001F600 \\" \\\\ HERE now"\n',
    "a: größer 😀 HERE now\n",
    "a: several\n  plain\n\n  lines HERE now\n",
    "a: 'several\n  single\n\n\n  lines HERE now'\n",
    'a: "several\n  double \\\n  joined\\\n  \\ \n\n  lines HERE now"\n',
    "a: |\n  first\n\n    indented HERE now\n  last\n",
    "a: |+\n\n  first HERE\n\n\nb: 1\n",
    "a: |2-\n    leading HERE now\n  last\n",
    "a: >\n  folded\n  lines\n\n  then HERE now\n",
    "a: >-\n  folded\n    more indented\n\n    again HERE\n  and back\n",
    "a: >\n\n\n  after blank lines HERE\n  now\n",
    "a: | # a comment\n  first\n  HERE\n",
    "a: &anchor see HERE now\n",
    'a: &anchor\n  "see HERE now"\n',
    "a: see\r\n  HERE now\r\n",
    "a: |\r\n  first\r\n\r\n  HERE\r\n",
    "{a: see HERE}\n",
]


@pytest.mark.parametrize("text", WAYS)
def test_a_part_is_found_in_the_file(text: str) -> None:
    text, node = scalar(text)
    assert isinstance(node.value, str)
    assert written(text, node.part(node.value.index("HERE"), 4)) == "HERE"


@pytest.mark.parametrize("text", WAYS)
def test_every_part_has_its_line_and_column(text: str) -> None:
    text, node = scalar(text)
    assert isinstance(node.value, str)
    for at in range(len(node.value)):
        start = node.part(at).start
        before = text[: start.offset]
        assert (start.line, start.column) == (before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1)
        if not node.value[at].isspace() and node.value[at].isascii() and text[start.offset] != "\\":
            assert text[start.offset] == node.value[at]


def test_an_escape_is_one_part() -> None:
    text, node = scalar('a: "x \\u00e4 y"\n')
    assert written(text, node.part(2)) == "\\u00e4"


def test_what_is_no_part_is_the_whole_value() -> None:
    _, node = scalar("a: short\n")
    assert node.part(99, 3) == node.span
    _, number = scalar("a: 12\n")
    assert number.part(0) == number.span


def test_a_key_is_called_as_json_would() -> None:
    document, _ = load_text("f.yaml", b"7: a\ntrue: b\nnull: c\n'x': d\n0x1F: e\n")
    assert isinstance(document.root, MappingNode)
    assert [name for name, _, _ in document.root.items()] == ["7", "true", "null", "x", "0x1F"]


def test_lines_know_their_positions() -> None:
    lines = Lines("ab\n  cd  \n")
    assert [(p.line, p.column) for p in map(lines.position, (0, 2, 3, 10, 99))] == [
        (1, 1), (1, 3), (2, 1), (3, 1), (3, 1),
    ]  # fmt: skip
    span = lines.line("f", 2)
    assert (span.start.column, span.end.column) == (3, 5)
