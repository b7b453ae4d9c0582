"""What `flowrun validate` says of every kind of fault, as its user reads it.

A case is two files under `cases/`, and no code: a flow file `<family>/<name>.yaml` and its report `<name>.out`; or,
where one file is not enough, a folder that is a small project (`flows/`, `schemas/`, `plugins/`, `flowrun.yaml`) with
its report `expected.out`. A file of a project that ends in `.gz` is unpacked first: for what is too large to keep.

To write the reports anew, and then read the diff:

    FLOWRUN_UPDATE_GOLDEN=1 pytest tests/diagnostics
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
from click.testing import CliRunner, Result

from runner.cli.validate import command

CASES = Path(__file__).parent / "cases"
UPDATE = bool(os.environ.get("FLOWRUN_UPDATE_GOLDEN"))
PLACE = {
    "type": "object",
    "required": ["line", "column", "byte"],
    "properties": {
        "line": {"type": "integer", "minimum": 1},
        "column": {"type": "integer", "minimum": 1},
        "byte": {"type": "integer", "minimum": 0},
    },
    "additionalProperties": False,
}
RANGE = {
    "type": "object",
    "required": ["filename", "start", "end"],
    "properties": {"filename": {"type": "string", "pattern": "^[^/]"}, "start": PLACE, "end": PLACE},
    "additionalProperties": False,
}
DIAGNOSTIC = {
    "type": "object",
    "required": ["severity", "code", "summary", "detail", "range", "snippet", "related", "fix"],
    "properties": {
        "severity": {"enum": ["error", "warning"]},
        "code": {"type": "string", "pattern": "^FR[0-9]{3}$"},
        "summary": {"type": "string", "minLength": 1},
        "detail": {"type": "string"},
        "range": RANGE,
        "related": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["message", "range"],
                "properties": {"message": {"type": "string", "minLength": 1}, "range": RANGE},
                "additionalProperties": False,
            },
        },
    },
    "additionalProperties": True,
}
REPORT = {
    "type": "object",
    "required": ["format_version", "valid", "error_count", "warning_count", "diagnostics"],
    "properties": {
        "format_version": {"const": "1.0"},
        "valid": {"type": "boolean"},
        "error_count": {"type": "integer", "minimum": 0},
        "warning_count": {"type": "integer", "minimum": 0},
        "diagnostics": {"type": "array", "items": DIAGNOSTIC},
    },
    "additionalProperties": False,
}


def _validate(root: Path, *options: str) -> Result:
    result = CliRunner().invoke(command, ["-C", str(root), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def test_report_is_the_expected_one(case: Path, project: Path) -> None:
    result = _validate(project)
    golden = case / "expected.out" if case.is_dir() else case.with_suffix(".out")
    if UPDATE:
        golden.write_text(result.stdout)
    assert result.stdout == golden.read_text()
    assert all(c.isprintable() or c == "\n" for c in result.stdout)
    assert result.exit_code == (1 if "error[" in result.stdout else 0)


def test_json_says_the_same(case: Path, project: Path) -> None:
    text = _validate(project).stdout
    result = _validate(project, "--output-format", "json")
    report = json.loads(result.stdout)
    jsonschema.validate(report, REPORT)
    found = report["diagnostics"]
    errors = [d for d in found if d["severity"] == "error"]
    assert report["valid"] is (not errors) is (result.exit_code == 0)
    assert report["error_count"] == len(errors) == text.count("error[")
    assert report["warning_count"] == len(found) - len(errors) == text.count("warning[")
    places = [(d["range"]["filename"], d["range"]["start"]["byte"]) for d in found]
    assert places == sorted(places)
    for diagnostic in found:
        _check_range(project, diagnostic["range"])
        for related in diagnostic["related"]:
            _check_range(project, related["range"])


def test_a_report_does_not_repeat_a_long_line_with_each_of_its_faults(tmp_path: Path) -> None:
    (tmp_path / "flows").mkdir()
    steps = ", ".join(f"{{emit: event_{n}}}" for n in range(500))
    (tmp_path / "flows" / "a.yaml").write_text(f"flow: a\nhandlers: {{go: {{steps: [{steps}]}}}}\n")
    text = _validate(tmp_path, "--output-format", "json").stdout
    assert json.loads(text)["error_count"] == 500
    assert len(text) < 500_000


def test_a_code_is_an_error_or_a_warning_and_not_two_things() -> None:
    reports = [path.read_text() for path in CASES.rglob("*.out")]
    seen = {pair for text in reports for pair in re.findall(r"^(error|warning)\[(FR\d{3})\]", text, re.MULTILINE)}
    codes = [code for _, code in seen]
    assert sorted(codes) == sorted(set(codes))


def _check_range(root: Path, place: dict[str, Any]) -> None:
    """Bytes, lines and columns name one stretch of the file as it lies on the disk."""
    start, end = place["start"], place["end"]
    assert start["byte"] <= end["byte"]
    file = root / place["filename"]
    if not file.is_file():
        assert start == end == {"line": start["line"], "column": 1, "byte": 0}
        return
    data = file.read_bytes()
    assert end["byte"] <= len(data)
    for at in (start, end):
        before = data[: at["byte"]].removeprefix(b"\xef\xbb\xbf").decode()  # a code point is never cut
        line = before.rpartition("\n")[2]
        assert (at["line"], at["column"]) == (before.count("\n") + 1, len(line) + 1)
