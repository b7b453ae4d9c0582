"""Whatever a flow file says, compiling it ends in diagnostics that point into the file, and never in an exception."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.lang import report
from runner.lang.compile import Compilation, compile_project
from runner.lang.load import Sources
from runner.source import Document, Span

FLOWS = Path(__file__).parents[2] / "flows"
VALID = {
    "flows/orders.yaml": (FLOWS / "orders.yaml").read_text(),
    "flows/payments.yaml": (FLOWS / "payments.yaml").read_text(),
    "flows/all.yaml": """\
# Every kind of thing that a flow file has.
flow: all
version: 1
uses: {env: [SHOP_URL], secrets: [TOKEN]}
x-retry: &retry {max_attempts: 3, jitter: {from: 0s, to: 1s}, on: [timeout, "http.*"]}
events:
  order.placed:
    schema: {$defs: {id: {type: string}}, type: object, properties: {id: {$ref: "#/$defs/id"}}, required: [id]}
    subject: "order/{{ event.id }}"
    keys: ["scan.*.belt"]
  order.lost: {schema: {$ref: ../schemas/order.json}, external: true}
routes:
  - {on: "order.#", when: event.id != "größe", to: [go]}
handlers:
  go:
    timeout: 1h30m
    concurrency: 3
    retry: {<<: *retry, delay: PT5S}
    steps:
      - id: first
        use: log
        with:
          message: |
            Hello {{ event.id | upper }},
              you have {{ (event.lines | default([])) | length }} lines.
          level: >-
            in
            fo
        when: event.id is defined and
          event.id != ''
        catch: [{on: [timeout], do: []}, {do: [{fail: {type: lost, message: "{{ error.type }}"}}]}]
        compensate: {use: log, with: {message: 'it''s {{ output }}'}}
      - set: {total: "{{ 3 * 4 }}", "quote\\x64": 'x'}
      - switch: [{when: vars.total > 3, do: [{emit: order.lost, with: "{{ event }}"}]}]
        default: [{stop: true}]
    on_failure:
      - {emit: order.lost, with: {id: "{{ steps.first.state }}"}}
""",
}
SCHEMAS = {f"schemas/{path.name}": path.read_text() for path in (FLOWS.parent / "schemas").glob("*.json")}
SCHEMAS["schemas/order.json"] = '{"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}'
MARKS = [": ", "- ", "<<", "{{", "}}", "{%", "$ref", "\r\n", "\ufeff", "\x00", "\x85", "\u2028", "😀"]
PIECES = st.sampled_from([*"{}[]:,-#&*!|>'\"%@`?\n\t\r \\", *MARKS])


def _compile(name: str, text: str) -> Compilation:
    kept = {**SCHEMAS, name: text}
    if name == "flows/orders.yaml":  # it sends commands of the other's
        kept["flows/payments.yaml"] = VALID["flows/payments.yaml"]
    return compile_project(Sources(None, kept), project="shop", signatures=None)


def _check(compilation: Compilation) -> None:
    """Every place is inside its file, and every report can be drawn."""
    for diagnostic in compilation.diagnostics:
        for span in (diagnostic.span, *(related.span for related in diagnostic.related)):
            _check_span(span, compilation.documents[span.filename])
    text = "\n".join(report.full(compilation.diagnostics, compilation.documents))
    assert all(c.isprintable() or c == "\n" for c in text)
    report.as_json(compilation.diagnostics, compilation.documents)
    assert (compilation.plan is None) == (compilation.errors > 0)


def _check_span(span: Span, document: Document) -> None:
    start, end = span.start, span.end
    assert 0 <= start.offset <= end.offset <= len(document.text)
    for place in (start, end):
        before = document.text[: place.offset]
        assert place.line == before.count("\n") + 1
        assert place.column == place.offset - (before.rfind("\n") + 1) + 1


@pytest.mark.parametrize("name", VALID)
def test_the_corpus_is_valid(name: str) -> None:
    assert _compile(name, VALID[name]).diagnostics == ()


@st.composite
def mutants(draw: st.DrawFn) -> tuple[str, str]:
    """A valid file with some characters and lines dropped, doubled, moved or put in."""
    name = draw(st.sampled_from(sorted(VALID)))
    text = VALID[name]
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        kind = draw(st.sampled_from(["drop", "double", "insert", "replace", "line", "indent", "cut"]))
        length = draw(st.integers(1, 12))
        lines = text.split("\n")
        line = min(text.count("\n", 0, at), len(lines) - 1)
        match kind:
            case "drop":
                text = text[:at] + text[at + length :]
            case "double":
                text = text[: at + length] + text[at:]
            case "insert":
                text = text[:at] + draw(PIECES) + text[at:]
            case "replace":
                text = text[:at] + draw(PIECES) + text[at + 1 :]
            case "line":
                other = draw(st.integers(0, len(lines) - 1))
                text = "\n".join([*lines[:other], lines[line], *lines[other + draw(st.integers(0, 1)) :]])
            case "indent":
                lines[line] = " " * draw(st.integers(0, 9)) + lines[line].lstrip()
                text = "\n".join(lines)
            case "cut":
                text = text[:at]
    return name, text


@settings(max_examples=600, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutants())
def test_a_mutated_flow_file_never_raises(mutant: tuple[str, str]) -> None:
    _check(_compile(*mutant))


TEXTS = ["log", "order.placed", "go", "1s", "{{ event.id }}", "{{ event.", "steps.a.output", "~", "", "*", "#", "("]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(TEXTS), st.text(max_size=8)
)  # fmt: skip
WORDS = """
    flow version uses env secrets events schema subject keys external routes on when to handlers steps on_failure
    timeout retry max_attempts delay jitter from concurrency id name use emit set switch do default fail type message
    stop with catch compensate irreversible $ref $id $defs $schema properties pattern x-a go order.placed
"""
KEYS = st.sampled_from(WORDS.split())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=25,
)
FILES = st.fixed_dictionaries(
    {"flow": st.just("a")},
    optional={
        "events": st.dictionaries(KEYS, st.fixed_dictionaries({}, optional={"schema": VALUES, "subject": VALUES})),
        "routes": st.lists(
            st.fixed_dictionaries({}, optional={"on": VALUES, "to": VALUES, "when": VALUES}), max_size=3
        ),
        "handlers": st.dictionaries(KEYS, st.fixed_dictionaries({"steps": st.lists(VALUES, max_size=4)}), max_size=2),
        "uses": VALUES,
    },
)


@settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(VALUES, FILES), st.booleans())
def test_any_yaml_never_raises(value: object, flow_style: bool) -> None:
    text = yaml.safe_dump(value, allow_unicode=True, default_flow_style=flow_style)
    _check(_compile("flows/a.yaml", text))


@settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(st.one_of(st.characters(), st.sampled_from("{}()[]|.'\"%+-*/~=<>! \n")), max_size=30))
def test_any_expression_never_raises(text: str) -> None:
    written = yaml.safe_dump({"flow": "a", "handlers": {"go": {"steps": [{"set": {"a": "{{" + text}, "when": text}]}}})
    _check(_compile("flows/a.yaml", written))


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60))
def test_any_schema_file_never_raises(data: bytes) -> None:
    kept = {"schemas/order.json": data.decode(errors="replace"), "flows/all.yaml": VALID["flows/all.yaml"]}
    _check(compile_project(Sources(None, kept), project="shop", signatures=None))
