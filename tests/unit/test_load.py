"""YAML as the 1.2 core rules read it, and the bounds of what is read at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.lang.load import MAX_BYTES, MAX_DEPTH, Sources, load, load_json, load_text
from runner.source import plain


def value(text: str) -> object:
    document, faults = load_text("f.yaml", f"a: {text}\n".encode())
    assert not faults
    root = plain(document.root)
    assert isinstance(root, dict)
    return root["a"]


def codes(data: bytes) -> list[str]:
    return [fault.code for fault in load_text("f.yaml", data)[1]]


@pytest.mark.parametrize(
    "text", ["on", "off", "yes", "No", "y", "12:30:45", "2026-11-23", "1_000", "0b1", "=", "tRUE", "0o8"]
)
def test_words_stay_words(text: str) -> None:
    assert value(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None), ("~", None), ("null", None), ("NULL", None), ("true", True), ("False", False),
        ("010", 10), ("-7", -7), ("+7", 7), ("0o17", 15), ("0xFF", 255),
        ("1e3", 1000.0), ("-.5", -0.5), ("3.", 3.0), ("1E-2", 0.01),
        ("'7'", "7"), ('"true"', "true"), ("|-\n  7", "7"), (str(2**70), 2**70),
    ],
)  # fmt: skip
def test_plain_scalars_have_the_type_that_they_look_like(text: str, expected: object) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_a_merge_takes_what_is_not_given() -> None:
    document, faults = load_text(
        "f.yaml", b"x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz: {<<: [*x, *y], a: 0, '<<': q}\n"
    )
    assert not faults
    root = plain(document.root)
    assert isinstance(root, dict)
    assert root["z"] == {"a": 0, "<<": "q", "b": 2, "c": 4}


@pytest.mark.parametrize("text", [b"1: a\n'1': b\n", b"true: a\n'true': b\n", b"{a: 1, a: 2}\n"])
def test_keys_that_are_one_in_json_are_given_twice(text: bytes) -> None:
    assert codes(text) == ["FR003"]


def test_one_and_true_are_two_keys() -> None:
    assert codes(b"1: a\ntrue: b\n") == []


@pytest.mark.parametrize("opening", [b"[", b"{a: ", b"- ", b"? "])
def test_any_depth_ends_in_words(opening: bytes) -> None:
    assert codes(opening * 100_000) == ["FR008"]


def test_depth_and_values_are_counted_once() -> None:
    assert codes(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH) == []
    rows = b"".join(b"- [[[[[[[[1, 2, 3]]]]]]]]\n" for _ in range(8_000))
    assert codes(rows) == []  # 88,000 values; nesting does not multiply them
    assert codes(rows + b"".join(b"- [1, 2, 3]\n" for _ in range(4_000))) == ["FR008"]


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"#" * MAX_BYTES)
    assert [fault.code for fault in load(Sources(tmp_path), "f.yaml")[1]] == ["FR005"]
    (tmp_path / "f.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    assert [fault.code for fault in load(Sources(tmp_path), "f.yaml")[1]] == ["FR008"]


def test_only_ordinary_files_of_the_project_are_read(tmp_path: Path) -> None:
    root = tmp_path / "project"
    (root / "flows").mkdir(parents=True)
    (tmp_path / "outside.yaml").write_text("flow: a\n")
    os.mkfifo(root / "flows" / "pipe.yaml")
    (root / "flows" / "link.yaml").symlink_to(tmp_path / "outside.yaml")
    (root / "flows" / "circle.yaml").symlink_to("circle.yaml")
    sources = Sources(root)
    for name in ("pipe", "link", "circle", "nowhere", "nul\0", "n" * 5000, "../../outside"):
        assert [fault.code for fault in load(sources, f"flows/{name}.yaml")[1]] == ["FR001"]


def test_flow_files_are_neither_tests_nor_an_editors(tmp_path: Path) -> None:
    (tmp_path / "flows").mkdir()
    for name in ("b.yaml", "a.yml", "a.test.yaml", ".#b.yaml", "notes.txt"):
        (tmp_path / "flows" / name).touch()
    assert Sources(tmp_path).flow_files() == ("flows/a.yml", "flows/b.yaml")


def test_json_is_read_as_json() -> None:
    text = '{"a": "\\ud83d\\ude00\\/", "b": [1, -2.5e3, true, null, {}], "' + "k" * 2000 + '": 1}'
    document, faults = load_json(Sources(None, {"s.json": text}), "s.json")
    assert not faults
    assert plain(document.root) == {"a": "😀/", "b": [1, -2500.0, True, None, {}], "k" * 2000: 1}


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("", "the file is empty"), ("{'a': 1}", "a key in double quotes"), ("[1, 2,]", "a comma must not"),
        ('{"a": 1,}', "a comma must not"), ("[1 2]", '"," or "]" is missing'), ('{"a" 1}', '":" is missing'),
        ("NaN", "a value is missing"), ("[1] [2]", "only one value"), ('{"a', "unterminated string"),
        ("[" * 100_000, "nested deeper"), ("// no\n{}", "a value is missing"), ("1e999", "the number is too large"),
    ],
)  # fmt: skip
def test_what_is_not_json_is_said_where_it_is(text: str, summary: str) -> None:
    _, [fault] = load_json(Sources(None, {"s.json": text}), "s.json")
    assert fault.code == "FR303"
    assert summary in fault.summary
