"""`flowrun graph`: what stands in the picture, in every format."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from runner.app import load_project
from runner.cli.graph import command
from runner.cli.graphs.model import SENDERS, TAKERS, Edge, Graph, draw
from runner.errors import NotFoundError, SettingsError

SHOP = """\
flow: shop
events:
  placed: {external: true}
  paid: {}
  shipped: {}
  lost: {external: true}
  failed: {}
  withdrawn: {external: true}
  due: {}
  many: {}
  pressure: {}
commands:
  charge: {handler: bank.charge}
  refund: {handler: bank.refund}
  post: {external: true}
schedules: {nightly: {cron: "0 2 * * *", timezone: Europe/Berlin, emit: due}}
ingress:
  place: {http: POST /orders, emit: many}
  back: {http: POST /refunds, command: refund}
routes:
  - {on: placed, to: fulfil}
  - {on: due, to: report}
  - {on: many, to: [fulfil, report]}
  - {on: failed, to: report}
handlers:
  fulfil:
    cancel_on: [{event: withdrawn}]
    steps:
      - id: stock
        use: log
        with: {message: hello}
        compensate: [{use: log, with: {message: back}}, {command: post}]
      - {command: charge, compensate: {command: refund, if: attempted}}
      - parallel:
          branches:
            one: [{wait: 24h}]
            two: [{wait_for: {event: paid, timeout: 1h}, catch: [{do: [{emit: lost}]}]}]
      - {emit: shipped}
    on_failure: [{emit: failed}]
  report:
    feedback: {event: pressure, above: {lag: 100}, below: {lag: 10}}
    steps: [{wait: {until: event.at | default("<b>#1</b>")}}, {emit: many}]
"""
BANK = """\
flow: bank
handlers:
  charge: {steps: [{emit: paid}]}
  refund: {steps: [{stop: true}]}
  idle: {steps: [{stop: true}]}
"""
WORDS = ("end", "graph", "default", "subgraph", "class", "style", "click", "direction", "o", "x")
"""Words of Mermaid's and DOT's own."""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return made(tmp_path, {"shop": SHOP, "bank": BANK})


def made(root: Path, flows: dict[str, str]) -> Path:
    (root / "flows").mkdir()
    for name, text in flows.items():
        (root / "flows" / f"{name}.yaml").write_text(text)
    return root


def graph(root: Path, *flows: str, failures: bool = True) -> Graph:
    return draw(load_project(root).plan, flows, failures=failures)


def lines(graph: Graph) -> set[tuple[str, str, str, str]]:
    """(from, kind, label, to); a kind that comes after a failure in brackets."""
    return {(e.source, f"({e.kind})" if e.after_failure else e.kind, " ".join(e.labels), e.target) for e in graph.edges}


def flowrun(root: Path, *words: str) -> Result:
    return CliRunner().invoke(command, [*words, "-C", str(root)])


def test_every_message_has_its_line(shop: Path) -> None:
    fulfil, report, bank = "handler.shop.fulfil", "handler.shop.report", "handler.bank."
    assert lines(graph(shop)) == {
        (SENDERS, "event", "placed withdrawn, cancels", fulfil),
        ("schedule.shop.nightly", "event", "due", report),
        ("ingress.shop.back", "command", "refund", bank + "refund"),
        # two publish it and two take it: it is a node between them
        ("ingress.shop.place", "event", "", "event.many"),
        (report, "event", "", "event.many"),
        ("event.many", "event", "", fulfil),
        ("event.many", "event", "", report),
        (fulfil, "event", "", "event.shipped"),  # nobody takes it
        (report, "event", "", "event.pressure"),
        (fulfil, "command", "charge", bank + "charge"),
        (bank + "charge", "event", "paid, awaited", fulfil),
        # after a failure
        (fulfil, "(event)", "lost", TAKERS),
        (fulfil, "(event)", "failed", report),
        (fulfil, "(command)", "refund", bank + "refund"),
        (fulfil, "(command)", "post", TAKERS),
        ("flow.shop", "(dead)", "", "dead.letters"),
        ("flow.bank", "(dead)", "", "dead.letters"),
    }


def test_without_compensations_nothing_of_a_failure_is_left(shop: Path) -> None:
    whole, fine = graph(shop), graph(shop, failures=False)
    assert lines(fine) == {line for line in lines(whole) if not line[1].startswith("(")}
    keys = {node.key for node in fine.nodes}
    assert "dead.letters" not in keys
    assert TAKERS not in keys
    assert not [note for node in fine.nodes for note in node.notes if note.startswith("↶")]


def test_a_handler_says_what_it_undoes_by_itself_and_how_long_it_sleeps(shop: Path) -> None:
    notes = {node.key: node.notes for node in graph(shop).nodes if node.notes}
    assert notes == {
        "handler.shop.fulfil": ("↶ stock", "⏱ 24h 00m"),
        "handler.shop.report": ('⏱ until event.at | default("<b>#1</b>")',),
    }


def test_one_flow_comes_with_those_that_it_has_to_do_with(shop: Path) -> None:
    bank = graph(shop, "bank")
    assert all("bank" in e.source or "bank" in e.target for e in bank.edges)
    assert {node.key for node in bank.nodes} == {
        "handler.bank.charge",
        "handler.bank.refund",
        "handler.bank.idle",
        "handler.shop.fulfil",
        "ingress.shop.back",
        "dead.letters",
    }


def test_several_messages_between_two_are_one_line(tmp_path: Path) -> None:
    text = "flow: a\nevents: {x: {external: true}, y: {external: true}}\nroutes: [{on: [x, y], to: go}]\n"
    made(tmp_path, {"a": f"{text}handlers: {{go: {{steps: [{{stop: true}}]}}}}\n"})
    edge = Edge(source=SENDERS, target="handler.a.go", labels=("x", "y"), kind="event")
    assert edge in graph(tmp_path).edges
    assert '-->|"x<br>y"| handler.a.go' in flowrun(tmp_path).stdout


# --- the formats


def test_mermaid_defines_what_it_draws_and_escapes_what_it_says(shop: Path) -> None:
    said = flowrun(shop).stdout
    assert said.startswith("flowchart LR\n")
    assert said.count("subgraph ") == said.count("    end\n") == 2
    defined = set(re.findall(r"^ +([\w.]+)[\[(>{]", said, re.MULTILINE)) | {"flow.shop", "flow.bank"}
    drawn = re.findall(r'^    ([\w.]+) (?:-->|==>|-\.->)(?:\|"[^"]*"\|)? ([\w.]+)$', said, re.MULTILINE)
    assert len(drawn) == len(graph(shop).edges)
    assert {end for ends in drawn for end in ends} <= defined
    assert 'handler.shop.report["report<br>⏱ until event.at | default(#quot;#lt;b#gt;#35;1#lt;/b#gt;#quot;)"]' in said
    assert 'handler.shop.fulfil ==>|"charge"| handler.bank.charge' in said
    assert 'handler.shop.fulfil -.->|"refund"| handler.bank.refund' in said


@pytest.mark.parametrize("word", WORDS)
def test_no_name_is_a_word_of_mermaids(word: str, tmp_path: Path) -> None:
    flow = f"flow: {word}\nevents: {{{word}: {{external: true}}}}\nroutes: [{{on: {word}, to: {word}}}]\n"
    made(tmp_path, {"a": f"{flow}handlers: {{{word}: {{steps: [{{stop: true}}]}}}}\n"})
    names = re.findall(r'(?<![\w."|])([a-z.]+)', re.sub(r'"[^"]*"', '""', flowrun(tmp_path).stdout))
    bare = set(names) - {"flowchart", "subgraph", "end"}
    assert all("." in name for name in bare), bare


def test_dot_has_a_cluster_a_flow_and_quotes_everything(shop: Path) -> None:
    said = flowrun(shop, "--format", "dot").stdout
    assert said.count("subgraph ") == 2
    assert len(re.findall(r"^  \".*\" -> \".*\"", said, re.MULTILINE)) == len(graph(shop).edges)
    assert r'"report\n⏱ until event.at | default(\"<b>#1</b>\")"' in said
    assert '"handler.shop.fulfil" -> "handler.bank.charge" [label="charge", style=bold]' in said
    assert '-> "dead.letters" [ltail="cluster_shop", style=dotted]' in said


def test_svg_without_graphviz_says_what_to_install(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(shop))
    error = flowrun(shop, "--format", "svg").exception
    assert isinstance(error, SettingsError)
    assert error.hint is not None
    assert "Graphviz" in error.hint


@pytest.mark.skipif(shutil.which("dot") is None and os.environ.get("CI") != "true", reason="Graphviz is not installed")
def test_svg_has_every_line(shop: Path) -> None:
    picture = ElementTree.fromstring(flowrun(shop, "--format", "svg").stdout)
    drawn = [g for g in picture.iter("{http://www.w3.org/2000/svg}g") if g.get("class") == "edge"]
    assert len(drawn) == len(graph(shop).edges)


def test_svg_is_what_dot_prints(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "dot"
    program.write_text("#!/bin/sh\necho \"<svg>$1\"\nexec grep -c -e '->'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    assert flowrun(shop, "--format", "svg").stdout == f"<svg>-Tsvg\n{len(graph(shop).edges)}\n"


def test_a_flow_that_there_is_not_is_answered_with_the_nearest(shop: Path) -> None:
    error = flowrun(shop, "shopp").exception
    assert isinstance(error, NotFoundError)
    assert error.hint == 'did you mean "shop"?'
