"""`flowrun validate --output-format …`: what CI servers make of every golden case."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from click.testing import CliRunner, Result

from runner.cli.validate import command
from runner.diagnostics import Diagnostic, Related
from runner.lang.reports import github
from runner.source import Position, Span

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SARIF = jsonschema.Draft4Validator(json.loads((FIXTURES / "sarif-2.1.0.schema.json").read_text()))
ANNOTATION = re.compile(r"::(error|warning) title=flowrun \((FR\d{3})\),file=([^,:]+),line=(\d+),[\w,=]+::(.+)")
BROKEN = """\
flow: a
routes: [{on: nothing, to: go}]
handlers:
  go: {steps: [{use: lgo}, {use: lgo}]}
"""
UNDO = "{use: log, with: {message: x}, compensate: {use: log, with: {message: '{{ output }}'}, if: attempted}}"
WARNED = f"""\
flow: b
events: {{placed: {{external: true}}}}
routes: [{{on: placed, to: go}}]
handlers:
  go:
    steps:
      - {UNDO}
"""


def validate(root: Path, *options: str) -> Result:
    result = CliRunner().invoke(command, ["-C", str(root), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def report(root: Path, form: str, *options: str) -> str:
    return validate(root, "--output-format", form, *options).stdout


def found(root: Path) -> list[dict[str, Any]]:
    diagnostics: list[dict[str, Any]] = json.loads(report(root, "json"))["diagnostics"]
    return diagnostics


_FOUND: dict[Path, list[dict[str, Any]]] = {}


@pytest.fixture
def diagnostics(case: Path, project: Path) -> list[dict[str, Any]]:
    """What `json` tells of a golden case; asked for once, and not once a format."""
    if case not in _FOUND:
        _FOUND[case] = found(project)
    return _FOUND[case]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "a.yaml").write_text(BROKEN)
    (tmp_path / "flows" / "b.yaml").write_text(WARNED)
    (tmp_path / "flows" / "c.yaml").write_text("flow: c\n")
    return tmp_path


# --- every golden case in every format


def test_github_gets_one_line_a_diagnostic(project: Path, diagnostics: list[dict[str, Any]]) -> None:
    lines = report(project, "github").splitlines()
    said = [match.groups()[:4] for line in lines if (match := ANNOTATION.fullmatch(line))]
    assert len(said) == len(lines)
    assert said == [
        (d["severity"], d["code"], d["range"]["filename"], str(d["range"]["start"]["line"])) for d in diagnostics
    ]


def test_gitlab_gets_one_entry_a_diagnostic_with_fingerprints_of_their_own(
    project: Path, diagnostics: list[dict[str, Any]]
) -> None:
    entries = json.loads(report(project, "gitlab"))
    assert [entry["check_name"] for entry in entries] == [d["code"] for d in diagnostics]
    assert len({entry["fingerprint"] for entry in entries}) == len(entries)


def test_sarif_fits_its_schema(project: Path, diagnostics: list[dict[str, Any]]) -> None:
    log = json.loads(report(project, "sarif"))
    SARIF.validate(log)
    [run] = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert [rules[result["ruleIndex"]] for result in run["results"]] == [d["code"] for d in diagnostics]
    assert [result["ruleId"] for result in run["results"]] == [d["code"] for d in diagnostics]


def test_junit_fails_the_files_that_have_errors(project: Path, diagnostics: list[dict[str, Any]]) -> None:
    suites = ElementTree.fromstring(report(project, "junit"))
    cases = list(suites.iter("testcase"))
    failing = {case.get("name") for case in cases if case.find("failure") is not None}
    assert failing == {d["range"]["filename"] for d in diagnostics if d["severity"] == "error"}
    assert suites.get("failures") == str(len(failing))
    assert suites.get("tests") == str(len(cases))


# --- what is particular


def test_github_escapes_what_would_end_a_property_or_a_message() -> None:
    span = Span("flows/a,b:c.yaml", Position(0, 3, 5), Position(9, 4, 1))
    fault = Diagnostic(
        code="FR201", summary="100% of\r\nthis", span=span, help="a: b, c", related=(Related("x", span),)
    )
    assert list(github.lines([fault], "50%/")) == [
        "::error title=flowrun (FR201),file=50%25/flows/a%2Cb%3Ac.yaml,line=3,endLine=4"
        "::100%25 of� this%0Ahelp: a: b, c%0Ax: flows/a,b:c.yaml:3:5"
    ]


def test_fingerprints_stay_when_lines_above_change(shop: Path) -> None:
    before = json.loads(report(shop, "gitlab"))
    (shop / "flows" / "a.yaml").write_text("# a comment\n\n" + BROKEN)
    after = json.loads(report(shop, "gitlab"))
    assert [e["fingerprint"] for e in before] == [e["fingerprint"] for e in after]
    assert before[0]["location"]["lines"] != after[0]["location"]["lines"]


def test_files_are_named_from_where_the_command_runs(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop.parent)
    root = Path(shop.name)
    assert f"file={shop.name}/flows/a.yaml," in report(root, "github")
    assert json.loads(report(root, "gitlab"))[0]["location"]["path"] == f"{shop.name}/flows/a.yaml"
    assert f'"uri": "{shop.name}/flows/a.yaml"' in report(root, "sarif")
    assert f'name="{shop.name}/flows/c.yaml"' in report(root, "junit")


def test_junit_shows_warnings_without_failing_unless_strict(shop: Path) -> None:
    def failing(*options: str) -> list[str | None]:
        suites = ElementTree.fromstring(report(shop, "junit", *options))
        return [case.get("name") for case in suites.iter("testcase") if case.find("failure") is not None]

    assert failing() == ["flows/a.yaml"]
    assert failing("--strict") == ["flows/a.yaml", "flows/b.yaml"]
    assert "warning[FR503]" in report(shop, "junit")


# --- what is asked for


@pytest.mark.parametrize(
    ("options", "codes", "exit_code"),
    [
        ((), {"FR201", "FR202", "FR503"}, 1),
        (("--select", "FR5"), {"FR503"}, 0),
        (("--select", "FR5", "--strict"), {"FR503"}, 1),
        (("--select", "FR2", "--ignore", "FR201"), {"FR202"}, 1),
        (("--ignore", "FR201,FR202"), {"FR503"}, 0),
        (("--ignore", "FR2", "--ignore", "FR5"), set(), 0),
    ],
)
def test_select_and_ignore_take_codes_and_their_beginnings(
    shop: Path, options: tuple[str, ...], codes: set[str], exit_code: int
) -> None:
    result = validate(shop, "--output-format", "concise", *options)
    assert set(re.findall(r"FR\d{3}", result.stdout)) == codes
    assert result.exit_code == exit_code


def test_what_is_no_code_is_a_mistake_of_usage(shop: Path) -> None:
    result = validate(shop, "--select", "F401")
    assert result.exit_code == 2
    assert '"F401" is no code' in result.output


def test_a_comment_lets_the_flow_start_and_an_error_of_names_it_does_not(shop: Path) -> None:
    from runner.app import load_project

    (shop / "flows" / "a.yaml").write_text("flow: a\n")
    flow = shop / "flows" / "b.yaml"
    assert load_project(shop).compilation.diagnostics != ()
    flow.write_text(WARNED.replace(UNDO, f"{UNDO}  # flowrun: ignore[FR503]"))
    assert load_project(shop).compilation.diagnostics == ()
    flow.write_text("flow: b\nhandlers: {go: {steps: [{set: {a: '{{ evnt }}'}}]}}  # flowrun: ignore[FR321]\n")
    assert load_project(shop).compilation.plan is not None
    flow.write_text("flow: b\nhandlers: {go: {steps: [{use: lgo}]}}  # flowrun: ignore[FR202]\n")
    compilation = load_project(shop).compilation
    assert compilation.plan is None
    assert [d.code for d in compilation.diagnostics] == ["FR202", "FR012"]


def test_without_plugins_no_comment_is_said_to_ignore_nothing(shop: Path) -> None:
    (shop / "flows" / "a.yaml").write_text("flow: a\n# flowrun: ignore[FR305]\nhandlers: {}\n")
    assert "FR012" in report(shop, "concise")
    assert "FR012" not in report(shop, "concise", "--no-plugins")
