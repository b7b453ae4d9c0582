"""What is said of two payload schemas is true: what passes never breaks, and what breaks is shown by a message."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.lang.evolution.compatibility import Obstacle, Written, are_same, obstacles
from runner.lang.load import Sources, load
from runner.lang.payloads import Payloads
from runner.source import MappingNode

FLOW = "flows/f.yaml"
TEXT, WHOLE = {"type": "string"}, {"type": "integer"}


def written(schema: Any, **files: Any) -> Written:
    """A schema in a flow file, and the schema files beside it."""
    texts = {f"schemas/{name}.json": json.dumps(value) for name, value in files.items()}
    sources = Sources(None, {FLOW: json.dumps({"schema": schema}), **texts})
    document, _ = load(sources, FLOW)
    assert isinstance(document.root, MappingNode)
    node = document.root.get("schema")
    payloads = Payloads(sources)
    check = payloads.compile(node, document).check
    assert payloads.diagnostics == []
    return Written(node=node, document=document, documents=payloads.documents, check=check)


def found(old: Any, new: Any) -> list[Obstacle]:
    return obstacles(written(old), written(new))


def told(old: Any, new: Any) -> list[str]:
    """One line each: how bad, where, why."""
    return [
        f"{o.level} /{'/'.join(map(str, o.path))} {o.asks}" for o in sorted(found(old, new), key=lambda o: str(o.path))
    ]


def fields(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


def closed(required: str = "", **properties: Any) -> dict[str, Any]:
    return {**fields(required, **properties), "additionalProperties": False}


# --- for any two schemas

SCALARS = st.one_of(
    st.sampled_from(
        [TEXT, WHOLE, {"type": "number"}, {"type": "boolean"}, {"type": ["string", "null"]}, {}, True, False]
    ),
    st.builds(lambda values: {"enum": values}, st.lists(st.sampled_from(["a", "", 0, 1, 1.5, None, True]), min_size=1)),
    st.builds(lambda value: {"const": value}, st.sampled_from(["a", 1, 1.0, None, {"a": 1}, [1]])),
    st.builds(
        lambda bounds, kind: {**bounds, **kind},
        st.dictionaries(
            st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]),
            st.sampled_from([0, 1, 1.5]),
        ),
        st.sampled_from([{"type": "integer"}, {"type": "number"}, {}]),
    ),
    st.builds(lambda n: {"multipleOf": n}, st.sampled_from([1, 2, 3, 4])),
    st.builds(
        lambda sizes, pattern: {"type": "string", **sizes, **pattern},
        st.dictionaries(st.sampled_from(["minLength", "maxLength"]), st.integers(0, 2)),
        st.sampled_from([{}, {"pattern": "^a"}, {"pattern": "a$"}]),
    ),
)


def composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    names = st.sampled_from(["a", "b", "ab"])
    return st.one_of(
        st.builds(
            lambda properties, required, more: {
                "type": "object",
                "properties": properties,
                "required": required,
                **more,
            },
            st.dictionaries(names, inner, max_size=3),
            st.lists(names, unique=True, max_size=2),
            st.one_of(
                st.just({}),
                st.builds(lambda other: {"additionalProperties": other}, inner),
                st.builds(lambda a, b: {"patternProperties": {"^a": a}, "additionalProperties": b}, inner, inner),
                st.builds(lambda n: {"minProperties": n}, st.integers(0, 2)),
                st.builds(lambda n: {"maxProperties": n}, st.integers(0, 2)),
            ),
        ),
        st.builds(
            lambda items, prefix, sizes: {"type": "array", "items": items, **prefix, **sizes},
            inner,
            st.one_of(st.just({}), st.builds(lambda each: {"prefixItems": each}, several)),
            st.dictionaries(st.sampled_from(["minItems", "maxItems"]), st.integers(0, 2)),
        ),
        st.builds(lambda key, each: {key: each}, st.sampled_from(["allOf", "anyOf", "oneOf"]), several),
        st.builds(lambda each: {"not": each}, inner),
        st.builds(lambda a, b, c: {"if": a, "then": b, "else": c}, inner, inner, inner),
        st.builds(lambda each: {"type": "array", "contains": each}, inner),
        st.builds(lambda each: {"$ref": "#/$defs/x", "$defs": {"x": each}}, SCALARS),
    )


SCHEMAS = st.recursive(SCALARS, composed, max_leaves=6)
VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 2, 1.5, -1, 6, "", "a", "ab", "ba", "aaa"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "ab", "c"]), inner, max_size=3)
    ),
    max_leaves=5,
)
SIMILAR = st.one_of(
    st.tuples(SCHEMAS, SCHEMAS),
    st.builds(lambda one, other: (one, {"anyOf": [one, other]}), SCHEMAS, SCHEMAS),
    st.builds(lambda one, other: ({"allOf": [one, other]}, one), SCHEMAS, SCHEMAS),
    st.builds(lambda a, b, c: (fields("a", a=a, b=b), fields("a", a=a, b=c)), SCHEMAS, SCHEMAS, SCHEMAS),
    st.builds(lambda a, b: (closed("a", a=a, b=b), fields("", a={"anyOf": [b, a]}, b=b)), SCHEMAS, SCHEMAS),
)


def without_local_references(schema: Any) -> Any:
    """`#/$defs/x` counts from the whole schema: inside another one its text is put in its place."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return schema["$defs"]["x"]
        return {key: without_local_references(value) for key, value in schema.items()}
    return [without_local_references(item) for item in schema] if isinstance(schema, list) else schema


def is_valid(schema: Any, value: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@settings(max_examples=400, deadline=None)
@given(pair=SIMILAR, values=st.lists(VALUES, min_size=20, max_size=40))
def test_what_is_compatible_lets_no_message_fail_and_what_breaks_has_one_that_does(
    pair: tuple[Any, Any], values: list[Any]
) -> None:
    old, new = map(without_local_references, pair)
    against = found(old, new)
    if not against:
        assert [value for value in values if is_valid(old, value) and not is_valid(new, value)] == []
    for obstacle in against:
        if obstacle.level == "breaking":
            [example] = obstacle.example
            assert is_valid(old, example)
            assert not is_valid(new, example)


@settings(max_examples=200, deadline=None)
@given(schema=SCHEMAS)
def test_a_schema_is_compatible_with_itself(schema: Any) -> None:
    schema = without_local_references(schema)
    assert found(schema, json.loads(json.dumps(schema))) == []


# --- for these two


RECURSIVE = {
    "$ref": "#/$defs/tree",
    "$defs": {"tree": fields(v=WHOLE, c={"type": "array", "items": {"$ref": "#/$defs/tree"}})},
}
WIDER = json.loads(json.dumps(RECURSIVE).replace('"integer"', '"number"'))
BY_KIND = [closed("kind", kind={"const": kind}) for kind in ("a", "b", "c")]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, True),
        (fields("a", a=TEXT), {}),
        (fields("a", a=TEXT, b=WHOLE), fields(a=TEXT, b={"type": "number"})),
        (closed("a", a=TEXT), closed("a", a=TEXT, b=TEXT)),
        (closed("a", a=TEXT), fields("a", a=TEXT)),
        (fields(a={"minimum": 3, "type": "integer"}), fields(a={"exclusiveMinimum": 2})),
        (fields(a={"enum": ["x", 1]}), fields(a={"enum": [1.0, "y", "x"]})),
        (fields(a={"const": "abc"}), fields(a={"pattern": "^a", "maxLength": 3})),
        (fields(a={"type": "boolean"}), fields(a={"enum": [False, True]})),
        (fields(a=TEXT), fields(a={"anyOf": [{"type": "null"}, TEXT]})),
        (fields(a={"type": ["string", "null"]}), fields(a={"anyOf": [{"type": "null"}, TEXT]})),
        (fields(a={"oneOf": BY_KIND[:2]}), fields(a={"oneOf": BY_KIND})),
        ({"allOf": [fields("a", a=TEXT), fields("b", b=WHOLE)]}, fields("a b", a=TEXT, b=WHOLE)),
        ({"type": "object", "additionalProperties": WHOLE}, {"additionalProperties": {"type": "number"}}),
        ({"patternProperties": {"^x": TEXT}, "additionalProperties": False}, {"patternProperties": {"^x": TEXT}}),
        ({"prefixItems": [TEXT, WHOLE], "items": False}, {"items": {"type": ["string", "number"]}}),
        (RECURSIVE, WIDER),
        (fields(a={"not": {"const": 1}}), fields(a={"not": {"const": 1}}, b=True)),
        ({**fields(a=TEXT), "description": "old"}, {**fields(a={**TEXT, "title": "new"}), "examples": [1]}),
    ],
)  # fmt: skip
def test_a_schema_that_lets_more_pass_is_compatible(old: Any, new: Any) -> None:
    assert told(old, new) == []


@pytest.mark.parametrize(
    ("old", "new", "said", "example"),
    [
        (fields(a=TEXT), fields("a", a=TEXT), "breaking /a must be there", {}),
        (fields("a", a=TEXT), closed("a", a=TEXT), "breaking /* may not be there: no other fields are allowed", None),
        (closed(a=TEXT, b=TEXT), closed(a=TEXT), "breaking /b may not be there", {"b": ""}),
        (fields(a={"type": "number"}), fields(a=WHOLE), "breaking /a must be a whole number", {"a": 0.5}),
        (fields(a={"type": ["string", "null"]}), fields(a=TEXT), "breaking /a must be a text", {"a": None}),
        (fields(a={"enum": ["x", "y"]}), fields(a={"enum": ["x"]}), 'breaking /a must be "x"', {"a": "y"}),
        (fields(a=WHOLE), fields(a={**WHOLE, "minimum": 10}), "breaking /a must be at least 10", {"a": 1}),
        (fields(a=WHOLE), fields(a={**WHOLE, "exclusiveMaximum": 9}), "breaking /a must be below 9", {"a": 9}),
        (fields(a=WHOLE), fields(a={**WHOLE, "multipleOf": 5}), "breaking /a must be a multiple of 5", {"a": 1}),
        (fields(a=TEXT), fields(a={**TEXT, "minLength": 1}), "breaking /a must have 1 characters or more", {"a": ""}),
        (fields(a={**TEXT, "pattern": r"^A-\d{2,}$"}), fields(a={**TEXT, "pattern": r"^A-\d+-$"}),
         r"breaking /a must match ^A-\d+-$", {"a": "A-00"}),
        (fields(a=TEXT), fields(a={**TEXT, "format": "date"}), "breaking /a must be a date, as a format", {"a": ""}),
        (fields(a={"anyOf": [TEXT, WHOLE, {"type": "null"}]}), fields(a={"anyOf": [TEXT, WHOLE]}),
         "breaking /a must fit at least one of 2 alternatives", {"a": None}),
        (fields(l={"type": "array", "items": fields(n=WHOLE)}), fields(l={"items": fields(n={"maximum": 5})}),
         "breaking /l/*/n must be at most 5", {"l": [{"n": 6}]}),
        (fields(a=TEXT), fields(a={"not": {"const": "x"}}), "breaking /a must not fit a schema", {"a": "x"}),
    ],
)  # fmt: skip
def test_what_is_narrower_breaks_and_a_message_shows_it(old: Any, new: Any, said: str, example: Any) -> None:
    assert told(old, new) == [said]
    [obstacle] = found(old, new)
    if example is not None:
        assert obstacle.example == (example,)


def test_a_field_that_is_named_now_may_have_been_there_by_chance() -> None:
    [obstacle] = found(fields(a=TEXT), fields(a=TEXT, b=TEXT))
    assert (obstacle.level, obstacle.path) == ("unknown", ("b",))


def test_what_cannot_be_decided_is_not_called_breaking() -> None:
    old = fields(a=TEXT)
    new = {**old, "if": fields("a", a={"const": "a name that nobody guesses"}), "then": {"required": ["b"]}}
    assert {obstacle.level for obstacle in found(old, new)} <= {"unknown", "breaking"}
    assert found(old, {**old, "propertyNames": {"not": {"const": "a name that nobody guesses"}}})[0].level == "unknown"


def test_a_schema_may_move_to_a_file() -> None:
    inline = written(fields("m", m=fields("a", a=TEXT)))
    moved = written(fields("m", m={"$ref": "../schemas/m.json"}), m={"$id": "x:m", **fields("a", a=TEXT)})
    assert are_same(inline, moved)
    assert obstacles(inline, moved) == []


def test_an_older_draft_that_says_the_same_otherwise_is_not_decided() -> None:
    draft = {"$schema": "http://json-schema.org/draft-04/schema#"}
    old = {**draft, **fields("a", a={"minimum": 1, "exclusiveMinimum": True})}
    assert found(old, {**draft, **fields("a", a={"minimum": 2})})[0].level == "unknown"
    assert found(old, json.loads(json.dumps(old))) == []


def test_an_older_draft_that_says_the_same_is_decided() -> None:
    draft = {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"n": WHOLE}}
    old = {**draft, **fields("a", a={"$ref": "#/definitions/n", "description": "a number"})}
    assert told(old, {**old, "required": ["a", "b"]}) == ["breaking /b must be there"]


@pytest.mark.parametrize(
    "demand",
    [
        {"type": "string", "minLength": 10**12},
        {"type": "string", "pattern": "^(a{60000})*b$"},
        {"type": "array", "minItems": 10**12, "items": TEXT},
        {"type": "integer", "minimum": 10**300},
        {"type": "number", "maximum": 1e308},
        {"type": "number", "multipleOf": 1e-300},
        {"enum": [10**400, 1e308]},
    ],
)
def test_demands_beyond_all_measure_are_looked_at_and_not_met(demand: Any) -> None:
    assert found(fields(a=demand), fields(a=TEXT)) != [] or "string" in json.dumps(demand)
    assert found(fields(a={}), fields(a=demand)) != []
    assert found(fields(a=demand), fields(a={})) == []


@pytest.mark.parametrize("word", ["allOf", "anyOf", "oneOf"])
def test_a_schema_that_is_a_part_of_itself_is_looked_at_once(word: str) -> None:
    itself = {word: [{"$ref": "#"}, WHOLE]}
    assert found(itself, TEXT) != []
    assert found(TEXT, itself) != []
