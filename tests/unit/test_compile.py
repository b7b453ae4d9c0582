"""A plan carries the texts that it came from, so that a run goes on by the plan that it began with."""

from __future__ import annotations

import sys
import time

from runner.lang.compile import Compilation, compile_project
from runner.lang.load import Sources
from runner.plan import Plan

TEXTS = {
    "flows/orders.yaml": """\
flow: orders
events: {order.placed: {external: true, schema: {$ref: ../schemas/order.json}}}
routes: [{on: order.placed, to: fulfil}]
handlers:
  fulfil:
    steps: [{emit: invoice.sent, with: {id: "{{ event.id }}"}}]
""",
    "flows/billing.yaml": """\
flow: billing
events: {invoice.sent: {schema: {$ref: ../schemas/invoice.json}}}
routes: [{on: invoice.sent, to: book}]
handlers: {book: {steps: []}}
""",
    "schemas/order.json": '{"type": "object"}',
    "schemas/invoice.json": '{"$ref": "parts.json#/$defs/invoice"}',
    "schemas/parts.json": '{"$defs": {"invoice": {"required": ["id"]}}}',
    "schemas/unused.json": "{}",
}


def compiled(texts: dict[str, str]) -> Compilation:
    return compile_project(Sources(None, texts), project="shop", signatures=None)


def plan_of(texts: dict[str, str]) -> Plan:
    compilation = compiled(texts)
    assert compilation.diagnostics == ()
    assert compilation.plan is not None
    return compilation.plan


def hashes(texts: dict[str, str]) -> dict[str, str]:
    return {name: program.plan_hash for name, program in plan_of(texts).programs.items()}


def test_a_plan_compiles_again_from_the_texts_that_it_kept() -> None:
    plan = plan_of(TEXTS)
    for plan_hash, kept in plan.sources.items():
        again = plan_of(dict(kept))
        assert plan_hash in again.sources
        assert {name: p.plan_hash for name, p in again.programs.items()} == hashes(TEXTS)


def test_a_plan_keeps_what_it_used_and_nothing_else() -> None:
    for kept in plan_of(TEXTS).sources.values():
        assert dict(kept) == {name: text for name, text in TEXTS.items() if name != "schemas/unused.json"}


def test_only_a_flow_and_its_schemas_make_its_hash() -> None:
    before = hashes(TEXTS)
    for changed, flow in (
        ("flows/orders.yaml", "orders"),
        ("schemas/order.json", "orders"),
        ("flows/billing.yaml", "billing"),
        ("schemas/parts.json", "billing"),
    ):
        after = hashes({**TEXTS, changed: TEXTS[changed] + "\n"})
        assert {name.partition(".")[0] for name in before if before[name] != after[name]} == {flow}


def test_a_fault_in_a_schema_shows_its_line() -> None:
    compilation = compiled({**TEXTS, "schemas/parts.json": '{"$defs": {"invoice": {"required": "id"}}}'})
    [fault] = compilation.diagnostics
    assert str(fault.span) == "schemas/parts.json:1:36"
    assert fault.span.filename in compilation.documents


def test_no_schema_is_fetched_for_a_draft_that_is_not_known() -> None:
    texts = {**TEXTS, "schemas/order.json": '{"$schema": "http://127.0.0.1:9/draft"}'}
    assert [fault.code for fault in compiled(texts).diagnostics] == ["FR301"]


def test_a_long_text_with_a_fault_at_every_word_is_looked_through_once() -> None:
    text = "{{ " + " ~ ".join(["a"] * 3000) + " }}"
    flow = f'flow: f\nhandlers: {{go: {{steps: [{{use: log, with: {{message: "{text}"}}}}]}}}}\n'
    begin = time.process_time()
    assert len(compiled({"flows/f.yaml": flow}).diagnostics) == 3000
    assert time.process_time() - begin < 10  # 39 s, when each fault sought its place from the text's beginning


GROWING = """\
flow: f{n}
events: {{e{n}: {{external: true, schema: {{type: object, properties: {{a: {{type: string}}}}}}}}}}
commands: {{c{n}: {{handler: do, timeout: 3s, schema: {{type: object}}, reply: {{type: object}}}}}}
routes: [{{on: e{n}, to: hear}}]
handlers:
  hear:
    steps:
      - {{command: c{n}, with: {{a: "{{{{ event.a | default('') }}}}"}}, timeout: 2s, irreversible: true}}
      - {{use: log, with: {{message: x}}}}
      - {{set: {{a: 1}}}}
  do:
    idempotency: {{key: "{{{{ meta.id }}}}", ttl: 1h}}
    steps: [{{id: s, wait: 1s}}, {{set: {{a: 1}}}}, {{set: {{b: 1}}}}, {{set: {{c: 1}}}}]
    on_failure: [{{set: {{a: 1}}}}]
    reply: {{}}
"""


def calls(files: int) -> int:
    """How many functions a project of so many files takes to compile."""
    count = 0

    def see(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event == "call"

    texts = {f"flows/f{n}.yaml": GROWING.format(n=n) for n in range(files)}
    sys.setprofile(see)
    try:
        assert compiled(texts).errors == 0
    finally:
        sys.setprofile(None)
    return count


def test_twice_the_files_take_twice_the_work() -> None:
    calls(1)  # what is made once
    assert calls(160) / calls(80) < 2.1
