"""`flowrun validate --fix` and `--diff`: what is certain is mended, and all else stays byte for byte.

A case is two files in `fixes/`: `NAME.before.yaml` and what it becomes, `NAME.after.yaml`.
`FLOWRUN_UPDATE_GOLDEN=1` writes the second ones anew.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.cli import guarded
from runner.cli.validate import command

CASES = Path(__file__).parent / "fixes"
UPDATE = bool(os.environ.get("FLOWRUN_UPDATE_GOLDEN"))
BEFORE = sorted(CASES.glob("*.before.yaml"))


def validate(root: Path, *options: str) -> Result:
    result = CliRunner().invoke(command, ["-C", str(root), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def project(root: Path, data: bytes | str) -> Path:
    """A project of one file; that file."""
    (root / "flows").mkdir(parents=True, exist_ok=True)
    file = root / "flows" / "a.yaml"
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return file


def fixed(root: Path, data: bytes | str) -> bytes:
    file = project(root, data)
    validate(root, "--fix")
    return file.read_bytes()


def after(before: Path) -> Path:
    return before.with_name(before.name.replace(".before.", ".after."))


@pytest.mark.parametrize("before", BEFORE, ids=lambda path: path.name.partition(".")[0])
def test_a_file_becomes_the_expected_one(before: Path, tmp_path: Path) -> None:
    data = fixed(tmp_path, before.read_bytes())
    if UPDATE:
        after(before).write_bytes(data)
    assert data.decode() == after(before).read_text()


@pytest.mark.parametrize("before", BEFORE, ids=lambda path: path.name.partition(".")[0])
def test_line_ends_and_a_byte_order_mark_stay(before: Path, tmp_path: Path) -> None:
    old, new = before.read_bytes(), after(before).read_bytes()
    mark = b"\xef\xbb\xbf"
    assert fixed(tmp_path, old.replace(b"\n", b"\r\n")) == new.replace(b"\n", b"\r\n")
    assert fixed(tmp_path, mark + old) == mark + new


@pytest.mark.parametrize("before", BEFORE, ids=lambda path: path.name.partition(".")[0])
def test_the_diff_makes_of_a_file_what_the_fix_makes(before: Path, tmp_path: Path) -> None:
    file = project(tmp_path, before.read_bytes())
    result = validate(tmp_path, "--diff")
    assert file.read_bytes() == before.read_bytes()
    changes = before.read_bytes() != after(before).read_bytes()
    assert (result.exit_code, bool(result.stdout)) == (int(changes), changes)
    if changes:
        subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=result.stdout, text=True, check=True)
    assert file.read_bytes() == after(before).read_bytes()


# --- any misspelling

VALID = """\
flow: shop   # 'quoted' and "quoted", {braces} and a block
events:
  order.placed:
    external: true
    schema: {type: object, properties: {order_id: {type: string}}, required: [order_id], additionalProperties: false}
  "parcel.dispatched":
    schema: {type: object, properties: {weight: {}}, required: [weight], additionalProperties: false}
routes:
  - {on: order.placed, to: fulfil}
  - on: ['parcel.dispatched']
    to: announce
handlers:
  fulfil:
    timeout: 15m
    steps:
      - id: lookup
        use: http.request
        with: {method: GET, url: "https://example.com/{{ event.order_id | urlencode }}", headers: {a: b}}
      - {id: summary, set: {total: '{{ steps.lookup.output.status | length }}'}}
      - emit: parcel.dispatched
        with: {weight: "{{ vars.total }}"}
  announce:
    concurrency: 3
    steps:
      - use: "email.send"
        with: {to: a@example.com, subject: x, text: "{{ event.weight }} g"}
"""
WORDS = {  # of each reference, the word that may be misspelt
    "on: order.placed": "order.placed", "to: fulfil": "fulfil", "['parcel.dispatched']": "parcel.dispatched",
    "to: announce": "announce", "    timeout: 15m": "timeout", "use: http.request": "http.request",
    "headers: {a": "headers", "event.order_id": "order_id", "| urlencode": "urlencode", "steps.lookup": "lookup",
    "lookup.output": "output", "emit: parcel.dispatched": "parcel.dispatched", "vars.total": "total",
    "concurrency: 3": "concurrency", '"email.send"': "email.send", "subject: x": "subject", "event.weight": "weight",
}  # fmt: skip


@st.composite
def misspelt(draw: st.DrawFn) -> str:
    """The valid file with one to three words wrong by a letter."""
    text = VALID
    for reference in draw(st.lists(st.sampled_from(sorted(WORDS)), min_size=1, max_size=3, unique=True)):
        word = WORDS[reference]
        at = draw(st.sampled_from([n for n in range(1, len(word)) if "." not in word[n - 1 : n + 1]]))
        kind = draw(st.sampled_from(["drop", "double", "mistake", "exchange"]))
        wrong = {
            "drop": word[:at] + word[at + 1 :],
            "double": word[:at] + word[at - 1 :],
            "mistake": word[:at] + draw(st.sampled_from("qxz")) + word[at + 1 :],
            "exchange": word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :],
        }[kind]
        text = text.replace(reference, reference.replace(word, wrong), 1)
    return text


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(misspelt())
def test_whatever_was_misspelt_is_as_it_was(tmp_path: Path, text: str) -> None:
    assert fixed(tmp_path, text).decode() == VALID


def test_the_valid_file_is_valid_and_stays_as_it_is(tmp_path: Path) -> None:
    assert fixed(tmp_path, VALID).decode() == VALID
    assert validate(tmp_path, "--strict").exit_code == 0


# --- the command

MISSPELT = VALID.replace("to: fulfil", "to: fulfl").replace("to: announce", "to: nobody")


def test_it_says_what_was_fixed_and_reports_what_is_left(tmp_path: Path) -> None:
    project(tmp_path, MISSPELT)
    result = validate(tmp_path, "--fix", "--output-format", "concise")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[:2] == [
        'flows/a.yaml:9:28: FR205 fixed: "fulfl" → "fulfil"',
        "Fixed 1 of 2 faults.",
    ]
    assert 'FR205 error: no handler named "nobody"' in result.stdout
    assert "fulfl" not in result.stdout.partition("Fixed")[2]


def test_beside_a_report_for_programs_it_is_said_on_stderr(tmp_path: Path) -> None:
    project(tmp_path, MISSPELT)
    result = validate(tmp_path, "--fix", "--output-format", "json")
    assert json.loads(result.stdout)["error_count"] == 1
    assert "Fixed 1 of 2 faults." in result.stderr


def test_where_nothing_is_wrong_nothing_is_said_of_fixes(tmp_path: Path) -> None:
    file = project(tmp_path, VALID)
    before = file.stat()
    result = validate(tmp_path, "--fix")
    assert (result.exit_code, result.stdout) == (0, "1 file valid.\n")
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_json_has_the_edits(tmp_path: Path) -> None:
    file = project(tmp_path, MISSPELT)
    fulfil, nobody = json.loads(validate(tmp_path, "--output-format", "json").stdout)["diagnostics"]
    assert nobody["fix"] is None
    assert fulfil["fix"]["message"] == '"fulfl" → "fulfil"'
    [edit] = fulfil["fix"]["edits"]
    assert edit["replacement"] == "fulfil"
    start, end = edit["range"]["start"]["byte"], edit["range"]["end"]["byte"]
    assert file.read_bytes()[start:end] == b"fulfl"


def test_sarif_has_them_too(tmp_path: Path) -> None:
    project(tmp_path, MISSPELT)
    [run] = json.loads(validate(tmp_path, "--output-format", "sarif").stdout)["runs"]
    [fix] = run["results"][0]["fixes"]
    [change] = fix["artifactChanges"]
    assert change["artifactLocation"] == {"uri": "flows/a.yaml"}
    assert change["replacements"] == [
        {
            "deletedRegion": {"startLine": 9, "startColumn": 28, "endLine": 9, "endColumn": 33},
            "insertedContent": {"text": "fulfil"},
        }
    ]
    assert "fixes" not in run["results"][1]


def test_only_what_is_asked_for_is_fixed(tmp_path: Path) -> None:
    text = MISSPELT.replace("timeout: 15m", "timeot: 15m")
    file = project(tmp_path, text)
    (tmp_path / "flows" / "b.yaml").write_text("flow: b\nevnts: {}\n")
    validate(tmp_path, "--fix", "--select", "FR1", str(file))
    assert file.read_text() == text.replace("timeot", "timeout")
    assert "evnts" in (tmp_path / "flows" / "b.yaml").read_text()


def test_a_file_keeps_its_mode_and_a_link_stays_one(tmp_path: Path) -> None:
    file = project(tmp_path, MISSPELT)
    real = file.rename(tmp_path / "real.yaml")
    real.chmod(0o640)
    file.symlink_to("../real.yaml")
    validate(tmp_path, "--fix")
    assert file.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert "to: fulfil}" in real.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flows", "real.yaml"]


def test_a_file_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, MISSPELT)
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)  # root may write everywhere
    assert guarded(lambda: command.main(["-C", str(tmp_path), "--fix"], standalone_mode=False)) == 2
    assert "flows/a.yaml cannot be written: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--fix", "--watch"), ("--diff", "--output-format", "json")])
def test_what_does_not_go_together_is_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    project(tmp_path, VALID)
    assert validate(tmp_path, *options).exit_code == 2
