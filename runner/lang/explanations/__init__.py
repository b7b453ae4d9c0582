"""What each diagnostic means: a page a code, in Markdown, beside this file.

A page is its title, what the diagnostic means and why it matters, and two examples, `## Wrong` and `## Right`. An
example is code blocks, each of them a file: the word after the language is its name, or it is `flows/example.yaml`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent
_FILE = re.compile(r"^```\w+ ?(?P<name>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A page. `text` is what the diagnostic means, in Markdown; the examples are files by name, none where no file
    can show the fault."""

    code: str
    title: str
    text: str
    wrong: dict[str, str]
    right: dict[str, str]


def codes() -> list[str]:
    """All codes that have a page, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("FR*.md"))


def explanation(code: str) -> Explanation | None:
    """The page of a code; None if there is no such code."""
    if code not in codes():
        return None
    page = (_FOLDER / f"{code}.md").read_text(encoding="utf-8")
    head, _, examples = page.partition("\n## Wrong\n")
    wrong, _, right = examples.partition("\n## Right\n")
    title, _, text = head.partition("\n")
    return Explanation(
        code=code, title=title.removeprefix("# "), text=text.strip(), wrong=_files(wrong), right=_files(right)
    )


def _files(part: str) -> dict[str, str]:
    return {found["name"] or "flows/example.yaml": found["text"] for found in _FILE.finditer(part)}
