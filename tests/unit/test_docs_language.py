"""docs/language.md says what the JSON Schemas say, and its examples are right."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from runner.expressions import parse_expression

ROOT = Path(__file__).resolve().parents[2]
GENERATE = ROOT / "docs" / "generate.py"
PAGE = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
SCHEMAS: dict[str, Any] = {
    name: json.loads((ROOT / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8"))
    for name in ("flow", "project")
}
BLOCKS = [
    (found[1], found[2], PAGE[: found.start()].count("\n") + 1)
    for found in re.finditer(r"^```(yaml[^\n]*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
]
WHOLE = [(f"line {line}", text) for kind, text, line in BLOCKS if kind == "yaml"]
FRAGMENTS = [(f"line {line}", text) for kind, text, line in BLOCKS if kind == "yaml fragment"]


class Loader(yaml.SafeLoader):
    """YAML 1.2: only true and false are booleans, so that `on` stays a key."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))


def load(text: str) -> Any:
    return yaml.load(text, Loader)


def misfits(name: str, value: Any) -> list[str]:
    errors = Draft7Validator(SCHEMAS[name]).iter_errors(value)
    return [f"{error.json_path}: {error.message}" for error in errors]


def keys(node: Any, place: str = "") -> Iterator[tuple[str, str, dict[str, Any], bool]]:
    """(place, key, its schema, whether it is required) of every property that a schema names."""
    if isinstance(node, dict):
        for key, schema in node.get("properties", {}).items():
            yield place, key, schema, key in node.get("required", ())
            yield from keys(schema, f"{place}/{key}")
        for key, schema in node.items():
            if key not in ("properties", "examples", "default"):
                yield from keys(schema, f"{place}/{key}")
    elif isinstance(node, list):
        for item in node:
            yield from keys(item, place)


KEYS = [(name, *found) for name, schema in SCHEMAS.items() for found in keys(schema)]


def as_flow(fragment: Any) -> Any:
    """A flow file in which the fragment stands where it belongs."""
    if isinstance(fragment, list):
        fragment = {"steps": fragment}
    if set(fragment) <= set(SCHEMAS["flow"]["properties"]):
        return {"flow": "example", **fragment}
    return {"flow": "example", "handlers": {"example": {"steps": [], **fragment}}}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_a_json_schema(name: str) -> None:
    Draft7Validator.check_schema(SCHEMAS[name])


def test_every_reference_of_the_schema_leads_somewhere() -> None:
    text = json.dumps(SCHEMAS["flow"])
    used = set(re.findall(r'"#/definitions/(\w+)"', text))
    assert used == set(SCHEMAS["flow"]["definitions"])


def test_no_object_of_the_language_takes_unknown_keys() -> None:
    shapes = [*SCHEMAS.values(), *SCHEMAS["flow"]["definitions"].values()]
    named = [shape for shape in shapes if "properties" in shape]
    assert [shape for shape in named if shape["additionalProperties"] is not False] == []


def test_every_key_is_described() -> None:
    assert [(place, key) for _, place, key, schema, _ in KEYS if not schema.get("description")] == []


def test_every_optional_key_states_its_default() -> None:
    split_default = runpy.run_path(str(GENERATE))["split_default"]
    wrong = []
    for _, place, key, schema, required in KEYS:
        stated = split_default(schema["description"])[1]
        # The action keys and what a mapping must have are required; everything else may be left out.
        if (stated is None) != required and not (place.endswith("/switch_step") and key == "switch"):
            wrong.append((place, key, stated))
        if "default" in schema:
            value = schema["default"]
            text = value if isinstance(value, str) else json.dumps(value)
            if not (stated or "").startswith(text):
                wrong.append((place, key, stated))
    assert wrong == []


def test_every_key_stands_in_the_page() -> None:
    assert {key for _, _, key, _, _ in KEYS if f"`{key}`" not in PAGE} == set()


def test_tables_are_current() -> None:
    result = subprocess.run([sys.executable, str(GENERATE), "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_changed_table_is_noticed() -> None:
    fill = runpy.run_path(str(GENERATE))["fill"]
    assert fill(PAGE) == PAGE
    assert fill(PAGE.replace("| `max_attempts` |", "| `attempts` |")) == PAGE


def test_every_yaml_block_is_whole_or_marked_as_a_fragment() -> None:
    assert {kind for kind, _, _ in BLOCKS} == {"yaml", "yaml fragment"}


@pytest.mark.parametrize(("line", "text"), WHOLE, ids=[line for line, _ in WHOLE])
def test_example_file_fits_the_schema(line: str, text: str) -> None:
    name = "project" if text.startswith("# flowrun.yaml\n") else "flow"
    assert misfits(name, load(text)) == []


@pytest.mark.parametrize(("line", "text"), FRAGMENTS, ids=[line for line, _ in FRAGMENTS])
def test_example_fragment_fits_where_it_belongs(line: str, text: str) -> None:
    assert misfits("flow", as_flow(load(text))) == []


def test_every_named_filter_and_test_is_known_to_expressions() -> None:
    filters = re.findall(r"`(\w+)`", PAGE.split("Filters, as in Jinja2:")[1].split("And flowrun's own")[0])
    tests = re.findall(r"`(\w+)`", PAGE.split("Tests, after `is`:")[1].split("Example:")[0])
    assert len(filters) > 20
    assert len(tests) > 8
    needs_name = {"map": "'upper'", "select": "'defined'", "reject": "'defined'"}
    needs_name |= {"selectattr": "'a', 'defined'", "rejectattr": "'a', 'defined'"}
    for name in [*filters, "merge", "plus", "minus", "date"]:
        parse_expression(f"event | {name}({needs_name.get(name, '')})")
    for name in tests:
        argument = "([])" if name in ("in", "startswith", "endswith") else ""
        parse_expression(f"event is {name}{argument}")


DURATION = SCHEMAS["flow"]["definitions"]["duration"]["pattern"]


@pytest.mark.parametrize("text", ["200ms", "5s", "1h30m", "7d", "1.5s", "PT1H30M", "P1DT2H", "P2W", "PT0.5S"])
def test_duration_is_taken(text: str) -> None:
    assert re.search(DURATION, text)


@pytest.mark.parametrize("text", ["5", "5 s", "1x", "", "P", "PT", "P1DT", "P1H", "1h30", "-5s", "PT5S1M"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    assert not re.search(DURATION, text)


REFUSED: dict[str, dict[str, Any]] = {
    "unknown top-level key": {"projectons": {}},
    "unknown handler key": {"handlers": {"h": {"steps": [], "partitioned_by": "subject"}}},
    "keyed concurrency": {"handlers": {"h": {"steps": [], "concurrency": {"limit": 1}}}},
    "no steps": {"handlers": {"h": {}}},
    "bad handler name": {"handlers": {"H": {"steps": []}}},
    "route without to": {"routes": [{"on": "a"}]},
    "two actions": as_flow([{"emit": "a", "stop": True}]),
    "no action": as_flow([{"id": "a"}]),
    "an action that does not work yet": as_flow([{"parallel": {"branches": {}}}]),
    "stop: false": as_flow([{"stop": False}]),
    "empty set": as_flow([{"set": {}}]),
    "pivot of a set": as_flow([{"set": {"a": 1}, "pivot": True}]),
    "pivot in on_failure": as_flow({"on_failure": [{"use": "a", "pivot": True}]}),
    "catch without do": as_flow([{"use": "a", "catch": [{"on": ["b"]}]}]),
    "empty compensate": as_flow([{"use": "a", "compensate": []}]),
    "compensate with an odd if": as_flow([{"use": "a", "compensate": {"use": "b", "if": "event.x"}}]),
    "idempotency without a key": {"handlers": {"h": {"steps": [], "idempotency": {"ttl": "1d"}}}},
    "compensate with id": as_flow([{"use": "a", "compensate": {"use": "b", "id": "c"}}]),
    "compensate of set": as_flow([{"set": {"a": 1}, "compensate": {"use": "b"}}]),
    "compensate in on_failure": as_flow({"on_failure": [{"use": "a", "compensate": {"use": "b"}}]}),
    "compensate deep in on_failure": as_flow(
        {"on_failure": [{"switch": [{"when": True, "do": [{"use": "a", "compensate": {"use": "b"}}]}]}]}
    ),
    "no attempts": as_flow([{"use": "a", "retry": {"max_attempts": 0}}]),
    "duration as a number": as_flow([{"use": "a", "timeout": 30}]),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_fault_is_refused(fault: str) -> None:
    assert misfits("flow", {"flow": "example", **REFUSED[fault]}) != []


def test_own_keys_may_stand_at_the_top() -> None:
    assert misfits("flow", {"flow": "example", "x-mine": {"anything": [1]}}) == []


def test_final_steps_differ_from_steps_only_by_what_undoing_needs() -> None:
    definitions = SCHEMAS["flow"]["definitions"]
    for name in ("use", "emit", "set", "switch", "fail", "stop"):
        plain = set(definitions[f"{name}_step"]["properties"])
        assert plain - set(definitions[f"final_{name}_step"]["properties"]) <= {"compensate", "pivot"}
        assert definitions[f"{name}_step"]["required"] == [name]
