"""STYLE 19: every CLI command and every diagnostic code stands where a reader finds it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import click
import pytest

from runner.cli import COMMANDS, flowrun

ROOT = Path(__file__).resolve().parents[2]
PAGES = "\n".join(
    path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
)
GOLDEN = ROOT / "tests" / "diagnostics"


def commands() -> list[str]:
    """`runs list`, `validate` …"""
    context = click.Context(flowrun)
    found = []
    for name in sorted(COMMANDS):
        command = flowrun.get_command(context, name)  # type: ignore[attr-defined]
        inner = sorted(command.commands) if isinstance(command, click.Group) else []
        found += [f"{name} {sub}" for sub in inner] or [name]
    return found


@pytest.mark.parametrize("command", commands())
def test_every_command_stands_in_the_docs(command: str) -> None:
    first, _, sub = command.partition(" ")
    # `flowrun runs show` itself, or a list of them: `flowrun runs list|show|…`
    pattern = rf"flowrun {first}\b" + (rf"(?: |[^\n`]*\|){re.escape(sub)}\b" if sub else "")
    assert re.search(pattern, PAGES), f"flowrun {command} stands neither in README.md nor in docs/"


UNREACHABLE = {
    "FR999": "an internal error of our own: no input of a user's leads to it",
}


def test_every_diagnostic_code_has_an_example() -> None:
    used = codes(r"\bFR\d{3}\b", (ROOT / "runner").rglob("*.py"))
    shown = codes(r"(?<=\[)FR\d{3}(?=\])", GOLDEN.rglob("*.out"))
    assert used - shown == set(UNREACHABLE), "add a case to tests/diagnostics, or say here why there is none"


def codes(pattern: str, files: Iterable[Path]) -> set[str]:
    return {code for path in files for code in re.findall(pattern, path.read_text(encoding="utf-8"))}
