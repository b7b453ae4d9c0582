"""Whether readers that hold to one payload schema can read what writers that hold to another write.

Each thing that stands against it is `breaking`, with a message that shows it, or `unknown`: it could not be proved that
nothing breaks, and no such message was found, or only one with a field that the writers' schema does not name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jsonschema_rs

from runner.lang.bundle import Bundle, has_newer
from runner.lang.evolution.cases import canonical
from runner.lang.evolution.sameness import FILES, PROSE, same
from runner.lang.evolution.subsumption import Misfit, Path, misfits
from runner.lang.evolution.witnesses import Witnesses
from runner.lang.references import file_of, references_in
from runner.lang.schema_faults import DRAFTS
from runner.plan import Check
from runner.source import Document, Node, plain

_PRESENT = DRAFTS[0]
_REFERENCE_ALONE = DRAFTS[2:]
"""Drafts in which what stands beside a `$ref` is passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A payload schema as a project has it: written at `node`, or nowhere, which lets everything pass."""

    node: Node | None
    document: Document
    documents: Mapping[str, Document]
    """All schema files of its project, by name."""
    check: Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """What readers ask for, at the `path` of the value, and writers do not promise. `example` is a list of one message
    that writers may write and readers refuse, or of none."""

    level: Literal["breaking", "unknown"]
    path: Path
    keyword: str
    asks: str
    example: tuple[Any, ...]


def are_same(one: Written, other: Written) -> bool:
    """Both let the same pass, word for word but for prose and how the schemas are put into files."""
    here, there = _Whole.of(one), _Whole.of(other)
    alike = canonical(here.root) == canonical(there.root) or same(here.root, there.root)
    return here.drafts == there.drafts and alike


def obstacles(writer: Written, reader: Written) -> list[Obstacle]:
    """What may keep the reader from reading what the writer writes; nothing if it is proved that it can read all."""
    if are_same(writer, reader):
        return []
    given, wanted = _Whole.of(writer), _Whole.of(reader)
    if not (given.is_plain and wanted.is_plain):
        return [_undecided("says things that an older draft of JSON Schema takes in another way")]
    found = misfits(given.root, wanted.root, same_formats=given.drafts == wanted.drafts)
    if not found:
        return []
    faults = _faults(wanted.root)
    witnesses = Witnesses(
        given.root,
        wanted.root,
        lambda value: writer.check(value) is None and reader.check(value) is not None,
        faults,
    )
    return [_obstacle(misfit, witnesses.of(misfit)) for misfit in found]


def _obstacle(misfit: Misfit, example: list[Any]) -> Obstacle:
    return Obstacle(
        level="breaking" if example and not misfit.is_chance else "unknown",
        path=misfit.path,
        keyword=misfit.keyword,
        asks=f"{misfit.asks}: any field of that name is let pass by who writes it" if misfit.is_chance else misfit.asks,
        example=tuple(example),
    )


def _undecided(why: str) -> Obstacle:
    return Obstacle(level="unknown", path=(), keyword="", asks=why, example=())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """A schema as one document, and the drafts that its parts are written in. `is_plain`: it says nothing that is not
    understood alike in draft 2020-12."""

    root: Any
    drafts: frozenset[str]
    is_plain: bool

    @classmethod
    def of(cls, written: Written) -> _Whole:
        bundle = Bundle(written.documents, f"#/{FILES}")
        root = bundle.schema(written.node, written.document, "#")
        if bundle.shared:
            root = {**root, FILES: bundle.shared}
        parts = [plain(part) for part in _parts(written)]
        drafts = frozenset(_draft(part) for part in parts)
        return cls(root=root, drafts=drafts, is_plain=all(map(_is_plain, parts)))


def _parts(written: Written) -> list[Node]:
    """The schema and those of all files that it refers to, each once."""
    found, seen = [], set[str]()
    todo = [(written.node, written.document)] if written.node is not None else []
    while todo:
        node, document = todo.pop()
        found.append(node)
        for reference in references_in(node):
            name = file_of(str(reference.value), document.filename) if str(reference.value)[:1] != "#" else None
            there = written.documents.get(name) if name is not None else None
            if there is not None and there.root is not None and there.filename not in seen:
                seen.add(there.filename)
                todo.append((there.root, there))
    return found


def _draft(schema: Any) -> str:
    named = schema.get("$schema") if isinstance(schema, dict) else None
    return _PRESENT if named is None else str(named).removesuffix("#")


def _is_plain(schema: Any) -> bool:
    draft = _draft(schema)
    return draft == _PRESENT or not (
        draft == DRAFTS[-1] or has_newer(schema) or (draft in _REFERENCE_ALONE and _has_beside_reference(schema))
    )


def _has_beside_reference(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_beside_reference, value))
    if not isinstance(value, dict):
        return False
    refers = isinstance(value.get("$ref"), str)
    return (refers and bool(value.keys() - PROSE - {"$ref"})) or any(map(_has_beside_reference, value.values()))


def _faults(root: Any) -> Callable[[Any], list[tuple[Path, str]]]:
    validator = jsonschema_rs.validator_for(
        root, validate_formats=True, pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=10_000)
    )

    def faults(value: Any) -> list[tuple[Path, str]]:
        return [
            (tuple(error.instance_path), str(error.schema_path[-1]) if error.schema_path else "")
            for error in validator.iter_errors(value)
        ]

    return faults
