"""`flowrun export asyncapi` and `flowrun schema`: documents for other programs, by their official schemas."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from runner.cli.export import command as export
from runner.cli.schema import command as schema_command

ROOT = Path(__file__).resolve().parents[2]
PARSER = ROOT / "tests" / "asyncapi"
PACKED = ROOT / "tests" / "fixtures" / "asyncapi-3.0.0.schema.json.gz"
ASYNCAPI = jsonschema.Draft7Validator(json.loads(gzip.decompress(PACKED.read_bytes())))
FLOW = """\
flow: wood
events:
  tree.grown: {external: true, keys: ["scan.*.belt"], schema: {$ref: ../schemas/tree.schema.json}}
  money.moved:
    schema:
      $schema: https://json-schema.org/draft/2020-12/schema
      type: object
      properties:
        amount: {$ref: "#/$defs/money", maximum: 9}
        tag: {$ref: "#tag"}
        leaf: {$ref: "../schemas/tree.schema.json#/$defs/leaf"}
        $ref: {const: {type: integer}}
        both: {$ref: "#/$defs/money", allOf: [{minimum: 2}]}
        inner: {$id: "https://example.com/inner", $ref: "#/$defs/own", $defs: {own: {type: boolean}}}
      $defs: {money: {type: integer}, label: {$anchor: tag, type: string}}
  anything: {external: true}
  nothing: {external: true, schema: false}
commands:
  look: {external: true, schema: {required: [at]}, reply: {type: integer}}
  cut: {handler: cut}
schedules: {daily: {cron: "0 2 * * *", emit: anything}}
ingress: {cut: {http: POST /cut, command: cut}}
routes: [{on: [tree.grown, money.moved], to: go}]
handlers:
  cut: {steps: [{stop: true}]}
  go:
    cancel_on: [{event: anything}]
    steps:
      - {command: look, with: {at: 1}, irreversible: true}
      - {wait_for: {event: tree.grown, timeout: 1h}}
      - {emit: money.moved, with: {amount: 3}}
"""
TREE = {
    "$id": "https://example.com/tree",
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["leaf"],
    "properties": {"left": {"$ref": "#"}, "leaf": {"$ref": "#/$defs/leaf"}},
    "$defs": {"leaf": {"type": "string"}},
}


@pytest.fixture
def wood(tmp_path: Path) -> Path:
    for folder in ("flows", "schemas"):
        (tmp_path / folder).mkdir()
    (tmp_path / "flowrun.yaml").write_text("project: wood\n")
    (tmp_path / "flows" / "wood.yaml").write_text(FLOW)
    (tmp_path / "schemas" / "tree.schema.json").write_text(json.dumps(TREE))
    return tmp_path


def asyncapi(root: Path) -> Any:
    result = CliRunner().invoke(export, ["asyncapi", "-C", str(root)])
    assert result.exception is None, result.output
    return json.loads(result.stdout)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref" and isinstance(inner, str):
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def at(document: Any, pointer: str) -> Any:
    assert pointer.startswith("#/")
    for part in pointer[2:].split("/"):
        document = document[part]
    return document


def accepts(document: Any, message: str, payload: object) -> bool:
    """Whether a payload fits the schema of a message, references followed inside the document."""
    registry = Registry().with_resource("doc:", Resource(contents=document, specification=DRAFT202012))
    given = document["components"]["messages"][message]["payload"]
    inside = "/schema" if "schemaFormat" in given else ""
    schema = {"$ref": f"doc:#/components/messages/{message}/payload{inside}"}
    return jsonschema.Draft202012Validator(schema, registry=registry).is_valid(payload)


# --- asyncapi


def test_the_shop_fits_the_official_schema_and_every_reference_leads_somewhere() -> None:
    document = asyncapi(ROOT)
    ASYNCAPI.validate(document)
    for reference in set(references(document)):
        assert at(document, reference) is not None


def test_the_official_parser_finds_nothing_wrong_with_it() -> None:
    # Not asked of recursive schemas: version 3.6.6 trips over them by itself (path.startsWith is not a function).
    if not (PARSER / "node_modules").exists():
        if os.environ.get("CI") == "true":
            pytest.fail("AsyncAPI's parser is not installed: make services, with Node.js")
        pytest.skip("AsyncAPI's parser is not installed")
    assert parsed(asyncapi(ROOT)) == (0, "")
    assert parsed({**asyncapi(ROOT), "info": {}})[0] == 1


def parsed(document: Any) -> tuple[int, str]:
    """What AsyncAPI's own parser says of a document, and its exit code."""
    done = subprocess.run(
        ["node", str(PARSER / "check.mjs")], input=json.dumps(document), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("newer", [False, True])
def test_schemas_are_inlined_and_say_what_they_said(newer: bool, wood: Path) -> None:
    if newer:
        flow = wood / "flows" / "wood.yaml"
        flow.write_text(FLOW.replace("{type: integer}, label", "{type: integer, unevaluatedProperties: false}, label"))
    document = asyncapi(wood)
    ASYNCAPI.validate(document)
    assert all(reference.startswith("#/") for reference in references(document["components"]["messages"]))
    payload = document["components"]["messages"]["money.moved"]["payload"]
    assert (payload.get("schemaFormat") == "application/schema+json;version=2020-12") is newer
    assert "$schema" not in json.dumps(document)
    assert accepts(document, "tree.grown", {"leaf": "x", "left": {"leaf": "y"}})
    assert not accepts(document, "tree.grown", {"leaf": "x", "left": {"leaf": 1}})
    assert accepts(document, "money.moved", {"amount": 3, "tag": "t", "leaf": "l", "$ref": {"type": "integer"}})
    assert accepts(document, "money.moved", {"both": 2, "inner": True})
    wrongs: list[dict[str, object]] = [{"amount": "3"}, {"amount": 10}, {"tag": 1}, {"leaf": 1}, {"$ref": 1}]
    wrongs += [{"both": 1}, {"both": "x"}, {"inner": 1}]
    for wrong in wrongs:
        assert not accepts(document, "money.moved", wrong), wrong
    assert accepts(document, "anything", 7)
    assert not accepts(document, "nothing", 7)


def test_the_payloads_of_the_demo_fit_the_exported_schemas() -> None:
    document = asyncapi(ROOT)
    lines = (ROOT / "flows" / "demo-orders.jsonl").read_text().splitlines()
    payloads = [json.loads(line) for line in lines]
    assert payloads
    for payload in payloads:
        assert accepts(document, "order.requested", payload.get("data", payload))
    assert not accepts(document, "order.requested", {})


def test_channels_are_routing_keys_on_exchanges(wood: Path) -> None:
    channels = asyncapi(wood)["channels"]
    assert channels["tree.grown"]["address"] == "tree.grown"
    assert channels["tree.grown"]["bindings"]["amqp"]["exchange"] == {
        "name": "wood.events", "type": "topic", "durable": True, "autoDelete": False
    }  # fmt: skip
    assert channels["tree.grown"]["x-flowrun-keys"] == ["scan.*.belt"]
    assert channels["look"]["bindings"]["amqp"]["exchange"]["name"] == "wood.commands"
    assert channels["look.reply"]["address"] is None
    assert set(channels["look.reply"]["messages"]) == {"look.reply", "failure"}


def test_operations_are_what_the_project_sends_and_receives(wood: Path) -> None:
    operations = asyncapi(wood)["operations"]
    said = {name: (each["action"], each.get("x-flowrun-queue"), "reply" in each) for name, each in operations.items()}
    assert said == {
        "send.money.moved": ("send", None, False),
        "send.anything": ("send", None, False),
        "wood.go.receives.tree.grown": ("receive", "wood.wood.go", False),
        "wood.go.receives.money.moved": ("receive", "wood.wood.go", False),
        "journal.receives.anything": ("receive", "wood.journal", False),
        "journal.receives.tree.grown": ("receive", "wood.journal", False),
        "journal.receives.nothing": ("receive", "wood.journal", False),
        "send.look": ("send", None, True),
        "send.cut": ("send", None, True),
        "wood.cut.receives.cut": ("receive", "wood.wood.cut", True),
    }
    assert operations["send.look"]["reply"]["channel"] == {"$ref": "#/channels/look.reply"}


def test_the_version_changes_with_the_flows_and_only_then(wood: Path) -> None:
    first, again = asyncapi(wood), asyncapi(wood)
    assert first == again
    flow = wood / "flows" / "wood.yaml"
    flow.write_text(FLOW.replace("maximum: 9", "maximum: 8"))
    assert asyncapi(wood)["info"]["version"] != first["info"]["version"]


# --- schema


def flow_schema(root: Path) -> Any:
    result = CliRunner().invoke(schema_command, ["-C", str(root)])
    assert result.exception is None, result.output
    schema = json.loads(result.stdout)
    jsonschema.Draft7Validator.check_schema(schema)
    return schema


def fits(schema: Any, text: str) -> bool:
    value = yaml.load(re.sub(r"\bon:", '"on":', text), yaml.SafeLoader)
    return jsonschema.Draft7Validator(schema).is_valid(value)


def test_the_flows_of_a_project_fit_its_own_schema() -> None:
    schema = flow_schema(ROOT)
    for path in sorted((ROOT / "flows").glob("*.yaml")):
        assert fits(schema, path.read_text()), path


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("emit: anything", "emit: anythin"),
        ("event: anything", "event: anythin"),
        ("command: look,", "command: lok,"),
        ("handler: cut", "handler: cutt"),
        ("handler: cut", "handler: wood.cutt"),
        ("to: go", "to: goo"),
        ("on: [tree.grown, money.moved]", "on: [tree.grow]"),
        ("{stop: true}", "{use: logg, with: {message: x}}"),
        ("{stop: true}", "{use: http.request, with: {methd: GET}}"),
    ],
)
def test_a_name_that_there_is_not_does_not_fit(right: str, wrong: str, wood: Path) -> None:
    schema = flow_schema(wood)
    assert right in FLOW
    assert fits(schema, FLOW)
    assert not fits(schema, FLOW.replace(right, wrong))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("to: go", "to: wood.go"),
        ("on: [tree.grown, money.moved]", 'on: "tree.*"'),
        ("{stop: true}", "{use: log, with: {message: x, more: y}}"),
        ("{stop: true}", "{use: http.request, with: {method: GET, url: x}}"),
        ("{stop: true}", '{use: http.request, with: "{{ command }}"}'),
    ],
)
def test_what_there_is_fits(old: str, new: str, wood: Path) -> None:
    assert fits(flow_schema(wood), FLOW.replace(old, new))


def test_a_project_with_faults_and_one_without_events_have_a_schema_too(wood: Path) -> None:
    (wood / "flows" / "wood.yaml").write_text(FLOW.replace("to: go", "to: nobody"))
    assert "project_event" in flow_schema(wood)["definitions"]
    shutil.rmtree(wood / "flows")
    assert "project_event" not in flow_schema(wood)["definitions"]
