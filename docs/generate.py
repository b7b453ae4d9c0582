"""Rewrites the key tables of docs/language.md from the JSON Schemas, and the codes of docs/diagnostics.md from the
pages in runner/lang/explanations.

    python docs/generate.py            rewrite them in place
    python docs/generate.py --check    change nothing; exit 1 if one is out of date

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. NAME is a definition of flow.schema.json, or
`flow` or `project` for a whole file, or `step` for the keys that all steps have; those are left out of the
tables of the single steps. The pages of a family of codes stand between `<!-- codes: FR2 -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LANGUAGE = ROOT / "docs" / "language.md"
DIAGNOSTICS = ROOT / "docs" / "diagnostics.md"
EXPLANATIONS = ROOT / "runner" / "lang" / "explanations"
SCHEMAS = ROOT / "schemas"

_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_CODES = re.compile(r"(<!-- codes: (FR\d) -->\n).*?(<!-- end -->)", re.DOTALL)
_DEFAULT = re.compile(r"^(?P<meaning>.*?) Default: (?P<default>.*)\.$", re.DOTALL)

Schema = Mapping[str, Any]


def load(name: str) -> Schema:
    """A JSON Schema of the language: `flow` or `project`."""
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))


def fill(page: str) -> str:
    """The page with every table as the schemas have it. Raises KeyError for a table of no definition."""
    flow, project = load("flow"), load("project")
    return _TABLE.sub(lambda found: found[1] + "\n" + _table(found[2], flow, project) + "\n" + found[3], page)


def explain(page: str) -> str:
    """The page with every code's explanation as `flowrun explain` has it."""
    return _CODES.sub(lambda found: found[1] + "\n" + _family(found[2]) + found[3], page)


def split_default(description: str) -> tuple[str, str | None]:
    """A description without its last sentence, if that states the default, and the default."""
    found = _DEFAULT.match(description)
    return (description, None) if found is None else (found["meaning"], found["default"])


def _table(name: str, flow: Schema, project: Schema) -> str:
    definitions = flow["definitions"]
    common = _common_keys(definitions)
    if name == "step":
        return _rows(definitions["use_step"], only=common)
    owner = {"flow": flow, "project": project}.get(name) or definitions[name]
    keys = owner["properties"]
    return _rows(owner, only=[key for key in keys if not (name.endswith("_step") and key in common)])


def _common_keys(definitions: Schema) -> list[str]:
    """The keys that every step has, in the schema's order."""
    branches = [definitions[branch["$ref"].rpartition("/")[2]] for branch in definitions["step"]["oneOf"]]
    first, *others = (branch["properties"] for branch in branches)
    return [key for key in first if all(key in other for other in others)]


def _rows(owner: Schema, only: Iterable[str]) -> str:
    lines = ["| key | meaning | default |", "| --- | --- | --- |"]
    for key in only:
        meaning, default = split_default(owner["properties"][key]["description"])
        if key in owner.get("required", ()):
            default = "required"
        lines.append(f"| `{key}` | {_markdown(meaning)} | {_markdown(default or '')} |")
    return "\n".join(lines) + "\n"


def _family(prefix: str) -> str:
    """The pages of all codes that begin so, as sections: the examples' headings are no headings there."""
    sections = []
    for path in sorted(EXPLANATIONS.glob(f"{prefix}*.md")):
        page = path.read_text(encoding="utf-8").removeprefix("# ")
        page = re.sub(r"^## (Wrong|Right)$", r"\1:", page, flags=re.MULTILINE)
        page = re.sub(r"^```(\w+) (\S+)$", r"`\2`:\n\n```\1", page, flags=re.MULTILINE)
        sections.append(f"### {path.stem}: {page}\n")
    return "".join(sections)


def _markdown(text: str) -> str:
    """Plain text as it must be written in a table's cell."""
    return re.sub(r"([*|])", r"\\\1", text).replace("<", "&lt;")


def main(arguments: list[str]) -> int:
    """Run as a script; returns the exit code."""
    if arguments not in ([], ["--check"]):
        print("usage: python docs/generate.py [--check]", file=sys.stderr)
        return 2
    stale = []
    for path, made in ((LANGUAGE, fill), (DIAGNOSTICS, explain)):
        page = path.read_text(encoding="utf-8")
        fresh = made(page)
        if fresh != page:
            stale.append(path)
            if not arguments:
                path.write_text(fresh, encoding="utf-8")
    if not (stale and arguments):
        return 0
    names = ", ".join(path.relative_to(ROOT).as_posix() for path in stale)
    print(f"out of date: {names}; run python docs/generate.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
