"""What `validate` knows of types is true: what passes does not fail, and what it calls an error fails sometimes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice, product
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runner.errors import ExpressionError
from runner.expressions import parse_template
from runner.lang.compile import Compilation, compile_project
from runner.lang.load import Sources

MANY = 400

UNNAMED = ("u", None, *({name: value} for name in "abc" for value in ("u", None)))
"""What a field may be that an open schema does not name."""

# --- schemas, and all that fits them, but for the length of texts and lists, and for fields that they do not name

SCALARS = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer"},
        {"type": "number"},
        {"type": "boolean"},
        {"type": ["string", "null"]},
        {"enum": ["u", "v"]},
        {"const": 1},
        {"anyOf": [{"type": "integer"}, {"enum": ["u", None]}]},
    ]
)


def objects(fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda properties, required, closed: {
            "type": "object",
            "properties": properties,
            "required": sorted(required & set(properties)),
            **({"additionalProperties": False} if closed else {}),
        },
        st.dictionaries(st.sampled_from("abc"), fields, min_size=1, max_size=3),
        st.sets(st.sampled_from("abc")),
        st.booleans(),
    )


INNER = st.one_of(
    SCALARS,
    objects(SCALARS),
    st.builds(lambda inner: {"oneOf": [{"type": "null"}, inner]}, objects(SCALARS)),
    st.builds(lambda items: {"type": "array", "items": items}, SCALARS),
)
SCHEMAS = objects(INNER)


def objects_of(**fields: dict[str, Any]) -> dict[str, Any]:
    """An open object of these fields, none of them required."""
    return {"type": "object", "properties": fields, "required": []}


def values(schema: dict[str, Any]) -> Iterator[Any]:
    if "enum" in schema or "const" in schema:
        yield from schema.get("enum", [schema.get("const")])
        return
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            for each in schema[choice]:
                yield from values(each)
            return
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    for kind in kinds:
        match kind:
            case "string":
                yield from ("", "u")
            case "integer":
                yield from (0, 7)
            case "number":
                yield from (0, 1.5)
            case "boolean":
                yield from (False, True)
            case "null":
                yield None
            case "array":
                yield []
                yield from ([item] for item in values(schema["items"]))
            case "object":
                yield from dicts(schema)


def dicts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    fields = []
    for name, inner in schema["properties"].items():
        there = [(name, value) for value in islice(values(inner), 64)]
        fields.append(there if name in schema["required"] else [(name, ...), *there])
    for chosen in product(*fields):
        yield {name: value for name, value in chosen if value is not ...}


def dicts_with_more(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those of `dicts`, each with every choice of fields that the schema does not name, and some of such inside."""
    named = schema["properties"]
    inner = {**schema, "properties": {name: _opened(each) for name, each in named.items()}}
    unnamed = [name for name in "abc" if name not in named and schema.get("additionalProperties", True)]
    for more in product(*([..., *UNNAMED] for _ in unnamed)):
        extra = {name: value for name, value in zip(unnamed, more, strict=True) if value is not ...}
        for each in dicts(inner):
            yield each | extra


def _opened(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with names for the fields that it leaves open; any other as it is."""
    if "oneOf" in schema:
        return {"oneOf": [_opened(each) for each in schema["oneOf"]]}
    if schema.get("type") != "object" or not schema.get("additionalProperties", True):
        return schema
    more = {name: {"enum": ["u", None]} for name in "abc" if name not in schema["properties"]}
    return {**schema, "properties": {**schema["properties"], **more}}


# --- expressions

PATHS = st.one_of(
    st.builds("event.{}".format, st.sampled_from("abc")),
    st.builds("event.{}.{}".format, st.sampled_from("abc"), st.sampled_from("abc")),
)
CONDITIONS = st.deferred(
    lambda: st.one_of(
        st.builds("{} is defined".format, PATHS),
        st.builds("{} is undefined".format, PATHS),
        st.builds("{} is none".format, PATHS),
        st.builds("{} is not none".format, PATHS),
        st.builds("{} == 'u'".format, PATHS),
        st.builds("{} != 'u'".format, PATHS),
        st.builds("{} in ['u', 1]".format, PATHS),
        st.builds("{} is mapping".format, PATHS),
        PATHS,
        st.builds("(not ({}))".format, CONDITIONS),
        st.builds("(({}) and ({}))".format, CONDITIONS, CONDITIONS),
        st.builds("(({}) or ({}))".format, CONDITIONS, CONDITIONS),
    )
)
EXPRESSIONS = st.one_of(
    PATHS,
    st.builds("{} | default(0)".format, PATHS),
    st.builds("{} if {} else {}".format, PATHS, CONDITIONS, PATHS),
    st.builds("{} if {} else 0".format, PATHS, CONDITIONS),
    CONDITIONS,
)


def compiled(schema: dict[str, Any], expression: str) -> Compilation:
    flow = f"""
flow: f
events: {{go: {{external: true, schema: {json.dumps(schema)}}}}}
routes: [{{on: go, to: h}}]
handlers: {{h: {{steps: [{{set: {{v: {json.dumps("{{ " + expression + " }}")}}}}}]}}}}
"""
    return compile_project(Sources(None, {"flows/f.yaml": flow}), project="p", signatures=None)


def failure(expression: str, payload: Any) -> str | None:
    try:
        parse_template("{{ " + expression + " }}").evaluate({"event": payload})
    except ExpressionError as error:
        return str(error)
    return None


@settings(max_examples=250, deadline=None)
@given(SCHEMAS, EXPRESSIONS)
@example(objects_of(b=objects_of(b={"type": "string"}), a={"type": "string"}), "event.a if event.b.a is defined else 0")
def test_what_passes_never_fails_and_what_does_not_pass_fails_for_some_payload(
    schema: dict[str, Any], expression: str
) -> None:
    payloads = list(islice(dicts(schema), MANY))
    for payload in payloads[:20]:
        jsonschema.validate(payload, schema)
    found = compiled(schema, expression).diagnostics
    failures = [(payload, why) for payload in payloads if (why := failure(expression, payload)) is not None]
    if any(fault.is_error for fault in found):
        fails_for_some = (
            failures or len(payloads) == MANY or any(failure(expression, p) for p in dicts_with_more(schema))
        )
        assert fails_for_some, [fault.summary for fault in found]
    elif not found:  # an open schema's other fields are warned of
        assert failures == []


@pytest.mark.parametrize(
    ("schema", "expression", "says"),
    [
        ({"type": "object", "properties": {"b": {"type": "string"}}},
         "event.a is defined and event.b is none", "FR332"),
        ({"$defs": {"t": {"properties": {"x": {"type": "string"}}, "required": ["x"]}}, "$ref": "#/$defs/t"},
         "event.x.y", "FR333"),
        ({"allOf": [{"properties": {"a": {"type": "string"}}}, {"required": ["a"]}]}, "event.a", None),
        ({"properties": {"a": {}}, "if": {"required": ["b"]}, "then": {"required": ["a"]}}, "event.a", None),
        ({"type": "object", "patternProperties": {"^x": {}}}, "event.x1", None),
        ({"type": "object"}, "event.anything.at.all", None),
        ({}, "event.anything", None),
        ({"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"], "additionalProperties": False},
         "event.n.n.n.m", "FR330"),
    ],
)  # fmt: skip
def test_schemas_of_many_kinds(schema: dict[str, Any], expression: str, says: str | None) -> None:
    codes = [fault.code for fault in compiled(schema, expression).diagnostics]
    assert codes == ([] if says is None else [says])
