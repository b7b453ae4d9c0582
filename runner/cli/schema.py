"""`flowrun schema`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from runner.app import load_project
from runner.cli import options, output
from runner.errors import SettingsError
from runner.lang.declare import FlowDecl, declare
from runner.lang.load import Sources
from runner.plan import Signature

_KINDS = {"use": "plugin", "emit": "event", "event": "event", "command": "command"}
"""Which names a key takes, where the schema asks for a dotted name."""


@click.command("schema")
@options.project_dir
def command(root: Path) -> None:
    """Print the JSON Schema of flow files with the project's own names in it, for editors.

    Editors then offer, and ask for, events, commands, handlers and plugins that there are, and the parameters of each
    plugin. Files with faults count as far as they can be read. Print it anew once there are new names:
    `flowrun schema > schemas/flow.schema.json` replaces the one that `flowrun init` wrote, which its flow files name.
    """
    if not root.is_dir():
        raise SettingsError(f"{root} is not a folder", hint="name the project's folder with -C")
    project = load_project(root)
    documents = project.compilation.documents
    flows = [flow for name in Sources(root).flow_files() if (flow := declare(documents[name])) is not None]
    signatures = project.registry.signatures if project.registry is not None else {}
    general = json.loads(files("runner.schemas").joinpath("flow.schema.json").read_text(encoding="utf-8"))
    output.echo(json.dumps(with_names(general, flows, signatures), ensure_ascii=False, indent=2))


def with_names(
    general: Mapping[str, Any], flows: Iterable[FlowDecl], signatures: Mapping[str, Signature]
) -> dict[str, Any]:
    """The schema of all projects, narrowed to the names of one. Kinds of which the project has none stay open."""
    flows = list(flows)
    handlers = [handler for flow in flows for handler in flow.handlers]
    names = {
        "event": {event.name for flow in flows for event in flow.events},
        "command": {command.name for flow in flows for command in flow.commands},
        "plugin": set(signatures),
        "handler": {name for handler in handlers for name in (handler.name, handler.full_name)},
    }
    schema = deepcopy(dict(general))
    schema.pop("$id", None)  # it is another one
    definitions = schema["definitions"]
    known = {kind for kind, found in names.items() if found}
    for definition in definitions.values():
        _narrow(definition, known)
    for kind in sorted(known):
        definitions[f"project_{kind}"] = {"enum": sorted(names[kind])}
    if "event" in known:
        several = {"allOf": [_ref("topic_pattern"), {"pattern": "[*#]"}]}
        definitions["project_pattern"] = {"anyOf": [_ref("project_event"), several]}
    for definition in definitions.values():
        if "use" in definition.get("properties", {}):
            definition["allOf"] = [_parameters(signature) for _, signature in sorted(signatures.items())]
    return schema


def _narrow(node: Any, known: set[str], key: str = "") -> None:
    """Make each reference to the form of a name one to the project's names; `key` is the property that it is of."""
    if isinstance(node, list):
        for item in node:
            _narrow(item, known, key)
    if not isinstance(node, dict):
        return
    kind = _kind(node.get("$ref"), key)
    if kind in known or (kind == "pattern" and "event" in known):
        node["$ref"] = f"#/definitions/project_{kind}"
    for name, inner in node.items():
        if name == "properties":
            for property_name, schema in inner.items():
                _narrow(schema, known, property_name)
        else:
            _narrow(inner, known, key)


def _kind(reference: object, key: str) -> str:
    match reference:
        case "#/definitions/dotted_name":
            return _KINDS.get(key, "")
        case "#/definitions/handler_ref":
            return "handler"
        case "#/definitions/topic_pattern":
            return "pattern"
    return ""


def _parameters(signature: Signature) -> dict[str, Any]:
    """What `with` may name beside one plugin. Of the values nothing is said: most are templates."""
    named = {each.name: {"description": json.dumps(each.schema, ensure_ascii=False)} for each in signature.parameters}
    given: dict[str, Any] = {"properties": named}
    if not signature.accepts_any:
        given["additionalProperties"] = False
    uses = {"properties": {"use": {"const": signature.name}}, "required": ["use"]}
    return {"if": uses, "then": {"properties": {"with": given}}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/definitions/{name}"}
