"""Document → shape diagnostics: the file against `schemas/flow.schema.json`, explained for its author.

The JSON Schema is the one declaration of the language's shape; editors complete from it, this file turns its
misfits into sentences. For a choice between shapes, the nearest one is explained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jsonschema_rs

from runner.diagnostics import Diagnostic, Related, did_you_mean, respelt
from runner.source import Document, MappingNode, Node, ScalarNode, Span, locate, plain

_TYPE_NAMES = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "nothing",
}
_ITEMS = {
    "routes": "route",
    "steps": "step",
    "do": "step",
    "branches": "step",
    "default": "step",
    "on_failure": "step",
    "switch": "branch",
    "catch": "catch entry",
    "compensate": "compensation",
}
"""What an item of a list is called."""


@lru_cache
def schema(name: str) -> Mapping[str, Any]:
    """A JSON Schema of the language: `flow` or `project`."""
    text = files("runner.schemas").joinpath(f"{name}.schema.json").read_text()
    return json.loads(text)  # type: ignore[no-any-return]


@lru_cache
def _validator(name: str) -> Any:
    return jsonschema_rs.validator_for(dict(schema(name)), offline=True)


def check(document: Document, name: str = "flow") -> Iterator[Diagnostic]:
    """All misfits of a document's shape."""
    if document.root is None:
        return
    explain = _Explainer(document.root, schema(name))
    for error in _validator(name).iter_errors(plain(document.root)):
        yield from explain.error(error)


class _Explainer:
    def __init__(self, root: Node, schema: Mapping[str, Any]) -> None:
        self.root = root
        self.schema = schema

    def error(self, error: Any) -> Iterator[Diagnostic]:
        path, kind = list(error.instance_path), error.kind
        node = locate(self.root, path)
        match kind.name:
            case "additionalProperties":
                yield from self._unknown_keys(error, node, kind.unexpected)
            case "required":
                yield self._missing(path, node, kind.property)
            case "oneOf" | "anyOf":
                yield from self._choice(error, node)
            case "propertyNames":
                yield self._bad_name(error, node)
            case _:
                yield self._bad_value(error, node)

    def _unknown_keys(self, error: Any, node: Node, unexpected: list[str]) -> Iterator[Diagnostic]:
        known = self._at(error.schema_path[:-1]).get("properties", {})
        for key in unexpected:
            near = did_you_mean(key, known)
            help = near or (f"known here: {', '.join(sorted(known))}" if known else None)
            written = node.key(key) if isinstance(node, MappingNode) else None
            fix = respelt(written, key, known) if written is not None else None
            span = _key_span(node, key)
            yield Diagnostic(code="FR101", summary=f'unknown key "{key}"', span=span, help=help, fix=fix)

    def _missing(self, path: list[str | int], node: Node, key: str) -> Diagnostic:
        owner = _owner(self.root, path)
        span = owner.span if owner is not None else _first_line(node)
        return Diagnostic(code="FR102", summary=f'{_called(path)} needs the key "{key}"', span=span)

    def _bad_name(self, error: Any, node: Node) -> Diagnostic:
        inner = error.kind.error
        name = str(inner.instance)
        title = self._title([*error.schema_path])
        summary = f'"{_clip(name)}" is not {title or "a valid name"}'
        return Diagnostic(code="FR106", summary=summary, span=_key_span(node, name), help=self._hint(error.schema_path))

    def _bad_value(self, error: Any, node: Node) -> Diagnostic:
        kind = error.kind
        shown = _shown(node)
        title = self._title(error.schema_path)
        match kind.name:
            case "type":
                wanted = title or _listed([_TYPE_NAMES.get(t, t) for t in kind.types])
                return Diagnostic(
                    code="FR103", summary=f"expected {wanted}, found {shown}", span=_first_line(node),
                    help=self._hint(error.schema_path),
                )  # fmt: skip
            case "pattern":
                summary = f"{shown} is not {title or 'valid here'}"
                return Diagnostic(code="FR104", summary=summary, span=node.span, help=self._hint(error.schema_path))
            case "enum":
                options = [str(option) for option in kind.options]
                help = did_you_mean(str(plain(node)), options) or f"one of: {', '.join(options)}"
                fix = respelt(node, node.text, options) if isinstance(node, ScalarNode) else None
                summary = f"{shown} is not allowed here"
                return Diagnostic(code="FR105", summary=summary, span=node.span, help=help, fix=fix)
            case "const":
                wanted = json.dumps(kind.expected_value)
                return Diagnostic(code="FR105", summary=f"expected {wanted}, found {shown}", span=node.span)
            case "maxProperties":
                summary = f"{_called(list(error.instance_path))} takes one key only"
                known = ", ".join(self._at(error.schema_path[:-1]).get("properties", {}))
                return Diagnostic(code="FR107", summary=summary, span=_first_line(node), help=f"one of: {known}")
            case "minItems" | "minProperties":
                path = list(error.instance_path)
                return Diagnostic(code="FR107", summary=f"{_called(path)} must not be empty", span=_first_line(node))
            case "minLength":
                return Diagnostic(code="FR107", summary="this text must not be empty", span=node.span)
            case "minimum":
                return Diagnostic(code="FR107", summary=f"{shown} is less than {kind.limit}", span=node.span)
        summary = error.message if len(error.message) < 160 else f"{shown} is not valid here"
        return Diagnostic(code="FR107", summary=summary, span=_first_line(node))

    def _choice(self, error: Any, node: Node) -> Iterator[Diagnostic]:
        branches = [self._resolve(branch) for branch in self._at(error.schema_path)]
        context = getattr(error.kind, "context", None)
        keyed = [branch.get("required", [None])[0] for branch in branches]
        if all(keyed) and len(set(keyed)) == len(keyed):
            yield from self._action(error, node, [str(key) for key in keyed], context)
            return
        if context is None:
            yield self._bad_value(error, node)
            return
        nearest = min(context, key=lambda errors: _distance(errors, error.instance_path))
        if all(e.kind.name == "type" and e.instance_path == error.instance_path for e in nearest):
            wanted = _listed([self._branch_name(branch) for branch in branches])
            summary = f"expected {wanted}, found {_shown(node)}"
            yield Diagnostic(code="FR103", summary=summary, span=_first_line(node))
            return
        for inner in nearest:
            yield from self.error(inner)

    def _action(self, error: Any, node: Node, actions: list[str], context: Any) -> Iterator[Diagnostic]:
        """A choice by key, like a step's: exactly one of the action keys says which shape is meant."""
        if not isinstance(node, MappingNode):
            if _is_endpoint(error):
                return  # its type is reported by itself
            summary = f"expected a mapping with one of {', '.join(actions)}, found {_shown(node)}"
            yield Diagnostic(code="FR103", summary=summary, span=_first_line(node))
            return
        present = [key for _, key, _ in node.items() if key.text in actions]
        if len(present) == 1 and context is not None:
            for inner in context[actions.index(present[0].text)]:
                yield from self.error(inner)
        elif not present:
            yield from self._no_action(error, node, actions)
        else:
            first, second = present[:2]
            summary = f'only one action may stand here: there are "{first.text}" and "{second.text}"'
            related = (Related("the first one is here", first.span),)
            help = f"make them two {'endpoints' if _is_endpoint(error) else 'steps'}"
            yield Diagnostic(code="FR108", summary=summary, span=second.span, help=help, related=related)

    def _no_action(self, error: Any, node: MappingNode, actions: list[str]) -> Iterator[Diagnostic]:
        """Without an action, the unknown keys are what may have been meant as one."""
        branches = [self._resolve(branch) for branch in self._at(error.schema_path)]
        owner = self._at(error.schema_path[:-1])
        known = {key for branch in (owner, *branches) for key in branch.get("properties", {})}
        unknown = [key for _, key, _ in node.items() if key.text not in known]
        if _is_endpoint(error) and unknown:
            return  # the unknown keys are reported by themselves
        for key in unknown:
            help = did_you_mean(key.text, known) or f"a step has one of: {', '.join(actions)}"
            fix = respelt(key, key.text, known)
            yield Diagnostic(code="FR101", summary=f'unknown key "{key.text}"', span=key.span, help=help, fix=fix)
        if not unknown:
            summary = f"{_called(list(error.instance_path))} needs an action"
            help = f"one of: {', '.join(actions)}"
            yield Diagnostic(code="FR108", summary=summary, span=_first_line(node), help=help)

    def _at(self, path: list[str | int]) -> Any:
        node: Any = self.schema
        for step in path:
            node = node[step]
        return node

    def _resolve(self, branch: Any) -> Any:
        if isinstance(branch, dict) and "$ref" in branch:
            return self._at(branch["$ref"].removeprefix("#/").split("/"))
        return branch

    def _branch_name(self, branch: Any) -> str:
        kind = branch.get("type", "value")
        if "title" in branch:
            return str(branch["title"])
        if "enum" in branch:
            return _listed([str(option) for option in branch["enum"]])
        return _listed([_TYPE_NAMES.get(k, k) for k in ([kind] if isinstance(kind, str) else kind)])

    def _title(self, path: list[str | int]) -> str | None:
        owner = self._at(path[:-1])
        return owner.get("title") if isinstance(owner, dict) else None

    def _hint(self, path: list[str | int]) -> str | None:
        owner = self._at(path[:-1])
        examples = owner.get("examples") if isinstance(owner, dict) else None
        return f"for example {', '.join(str(e) for e in examples[:3])}" if examples else None


def _is_endpoint(error: Any) -> bool:
    """Whether an endpoint of ingress was to be chosen, not a step."""
    return bool(error.instance_path[:1] == ["ingress"])


def _distance(errors: list[Any], path: list[str | int]) -> tuple[int, int]:
    """How far a branch is from fitting: a wrong type at the choice itself is farthest."""
    wrong_kind = sum(1 for e in errors if e.instance_path == path and e.kind.name in ("type", "enum", "const"))
    return wrong_kind, len(errors)


def _key_span(node: Node, key: str) -> Span:
    if isinstance(node, MappingNode):
        for name, _ in node.entries:
            if name.text == key:
                return name.span
    return _first_line(node)


def _owner(root: Node, path: list[str | int]) -> ScalarNode | None:
    """The key under which the node at `path` stands, if it stands under one."""
    if not path or not isinstance(path[-1], str):
        return None
    parent = locate(root, path[:-1])
    return parent.key(path[-1]) if isinstance(parent, MappingNode) else None


def _first_line(node: Node) -> Span:
    """A block's first word is enough to point at."""
    if isinstance(node, MappingNode) and node.entries and node.span.end.line != node.span.start.line:
        return node.entries[0][0].span
    return node.span


def _shown(node: Node) -> str:
    if isinstance(node, ScalarNode):
        if node.value is None:
            return "nothing"
        return _clip(json.dumps(node.value, ensure_ascii=False))
    return "a mapping" if isinstance(node, MappingNode) else "a list"


def _clip(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"


def _called(path: list[str | int]) -> str:
    """What stands at a path, as its author calls it."""
    if not path:
        return "the file"
    if isinstance(path[-1], str):
        return f'"{_clip(path[-1])}"'
    owner = next((step for step in reversed(path) if isinstance(step, str)), "")
    return f"this {_ITEMS.get(owner, 'item')}"


def _listed(words: list[str]) -> str:
    unique = list(dict.fromkeys(words))
    return " or ".join(filter(None, [", ".join(unique[:-1]), unique[-1]])) if unique else "something else"
