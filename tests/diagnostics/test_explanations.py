"""`flowrun explain CODE`: every code has a page, and every example does what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from runner.app import load_project
from runner.cli import guarded
from runner.cli.explain import command
from runner.diagnostics import Diagnostic
from runner.lang.explanations import Explanation, codes, explanation

ROOT = Path(__file__).resolve().parents[2]
NOT_SHOWN = {
    "FR001": "a file that cannot be read is no text on a page",
    "FR002": "nor are bytes that are no text",
    "FR999": "an internal error of our own: no input of a user's leads to it",
}


def page(code: str) -> Explanation:
    found = explanation(code)
    assert found is not None
    return found


def diagnostics(files: dict[str, str], root: Path) -> tuple[Diagnostic, ...]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return load_project(root).compilation.diagnostics


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "runner").rglob("*.py")]
    used = {code for text in texts for code in re.findall(r'"(FR\d{3})"|\((FR\d{3})\)', text)}
    assert {one or other for one, other in used} == set(codes())


@pytest.mark.parametrize("code", codes())
def test_a_page_has_a_title_a_meaning_and_two_examples(code: str) -> None:
    found = page(code)
    assert re.fullmatch(r"[A-Z`$].*[^.]", found.title)
    assert len(found.text) > 80
    assert bool(found.wrong) == bool(found.right) == (code not in NOT_SHOWN)


@pytest.mark.parametrize("code", sorted(set(codes()) - set(NOT_SHOWN)))
def test_the_wrong_example_has_the_diagnostic_and_the_right_one_has_not(code: str, tmp_path: Path) -> None:
    wrong = diagnostics(page(code).wrong, tmp_path / "wrong")
    right = diagnostics(page(code).right, tmp_path / "right")
    assert code in {d.code for d in wrong}
    assert code not in {d.code for d in right}
    assert [d for d in right if d.is_error] == []


def explain(*words: str) -> Result:
    return CliRunner().invoke(command, list(words))


def test_a_page_is_printed_with_its_examples() -> None:
    said = explain("fr203").stdout
    assert said.startswith("FR203: A name is declared twice\n\n")
    for text in (*page("FR203").wrong.values(), *page("FR203").right.values()):
        assert "".join(f"    {line}\n" for line in text.splitlines()) in said


def test_without_a_code_all_are_listed() -> None:
    lines = explain().stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == codes()
    listed = json.loads(explain("--json").stdout)
    assert [one["code"] for one in listed] == codes()
    family = json.loads(explain("FR5", "--json").stdout)
    assert [one["code"] for one in family] == [code for code in codes() if code.startswith("FR5")]


def test_as_json_a_page_is_one_value() -> None:
    said = json.loads(explain("FR221", "--json").stdout)
    assert said["code"] == "FR221"
    assert set(said["wrong"]) == {"flows/example.yaml", "plugins/shop.py"}


def test_an_unknown_code_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: command.main(["FR2033"], standalone_mode=False)) == 1
    assert 'did you mean "FR203"?' in capsys.readouterr().err
