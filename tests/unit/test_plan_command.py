"""`flowrun plan`: what a handler will do, as its author checks it before it runs."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from runner.cli.plan import command

FLOW = """\
flow: shop
events:
  placed: {external: true}
  paid: {external: true}
  withdrawn: {external: true}
commands:
  pay: {external: true, timeout: 10s}
  refund: {external: true}
ingress:
  place: {http: POST /orders, emit: placed}
  refund: {http: "POST /orders/{id}/refund", command: refund}
routes: [{on: placed, to: fulfil}]
handlers:
  fulfil:
    timeout: 2h
    idempotency: {key: "{{ event.id }}", ttl: 1h}
    cancel_on: [{event: withdrawn, match: {order.id: "{{ event.id }}"}}]
    steps:
      - {id: nap, wait: 30s}
      - {id: dawn, wait: {until: event.at}}
      - {id: pay, command: pay, compensate: {command: refund, if: attempted}}
      - id: both
        parallel:
          wait: any
          branches:
            left: [{id: l, wait: 1s}]
            right:
              - id: r
                foreach: {in: event.lines, as: line, concurrency: 2, until: line.enough, do: [{stop: true}]}
        timeout: 1m
      - {id: money, wait_for: {event: [paid, placed], match: {order.id: "{{ event.id }}"}, timeout: 10m}}
      - {id: late, wait_for: {event: paid, until: event.at}}
      - {id: ship, use: log, with: {message: ship}, pivot: true}
"""
PROGRAM = """\
  on placed
  one run a key, until 1h 00m after its end
  within 2h 00m
  cancelled by withdrawn of the same order.id
  nap  wait 30 s
  dawn  wait until event.at
  pay  command pay  (attempts 1, timeout 10 s)
    undo (also if its result is unknown): command refund  (attempts 10, timeout 30 s)
  both  parallel wait for any  (timeout 1m 00s)
    left
      l  wait 1 s
    right
      r  foreach line in event.lines  until line.enough  (2 at once)
        r.do.1  stop
  money  wait_for paid, placed of the same order.id  (timeout 10m 00s)
  late  wait_for paid  until event.at
  ship  use log  (attempts 3, timeout 5m 00s)  pivot
"""


TRAFFIC = """\
flow: shop
events: {placed: {external: true, subject: a}, pressure: {}}
routes: [{on: placed, to: book}]
handlers:
  book:
    rate_limit: {limit: 1000, period: 1m}
    partition_by: subject
    concurrency: {limit: 2, key: "{{ event.bank }}"}
    throttle: {limit: 10, period: 1s, burst: 1, key: "{{ event.bank }}"}
    priority: 3
    queue: {max: 50000, on_full: reject}
    circuit_breaker: {failures: 5, per: plugin}
    feedback: {event: pressure, above: {lag: 10000}, below: {lag: 1000}}
    steps: []
"""
BOUNDS = [
    "refuses more than 1,000 in 1m 00s",
    "one after the other in each partition",
    "2 at once for each value of a key",
    "begins no more than 10 in 1 s for each value of a key, 1 at once",
    "by priority",
    "queues 50,000, then refuses more",
    "pauses for 30 s when a plugin fails 5 times within 1m 00s",
    "tells pressure above a lag of 10,000 and below 1,000",
]


def planned(folder: Path, *options: str, flow: str = FLOW) -> str:
    (folder / "flows").mkdir()
    (folder / "flows/shop.yaml").write_text(flow)
    (folder / "flowrun.yaml").write_text("project: shop\n")
    done = CliRunner().invoke(command, ["-C", str(folder), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_program_shows_what_begins_it_what_ends_it_and_where_it_cannot_turn_back(tmp_path: Path) -> None:
    text = planned(tmp_path)
    assert f")\n{PROGRAM}\n" in text


def test_endpoints_are_shown_with_what_requests_become(tmp_path: Path) -> None:
    lines = planned(tmp_path).splitlines()
    first = lines.index("METHOD  PATH                 BECOMES") + 1
    assert [line.split(maxsplit=2) for line in lines[first : first + 2]] == [
        ["POST", "/orders", "placed"],
        ["POST", "/orders/{id}/refund", "command refund"],
    ]


def test_as_json_it_says_the_same(tmp_path: Path) -> None:
    plan = json.loads(planned(tmp_path, "--json"))
    [program] = plan["programs"]
    assert [(e["name"], e["method"], e["path"], e["emit"], e["command"]) for e in plan["ingress"]] == [
        ("shop.place", "POST", "/orders", "placed", None),
        ("shop.refund", "POST", "/orders/{id}/refund", None, "refund"),
    ]
    steps = {step["id"]: step for step in program["steps"]}
    assert program["cancel_on"] == [{"event": "withdrawn", "match": ["order.id"]}]
    assert (steps["nap"]["duration_s"], steps["dawn"]["until"]) == (30, "event.at")
    assert [undo["if"] for undo in steps["pay"]["compensate"]] == ["attempted"]
    assert (steps["money"]["events"], steps["money"]["timeout_s"]) == (["paid", "placed"], 600)
    assert [name for name, step in steps.items() if step.get("pivot")] == ["ship"]
    [left], [right] = steps["both"]["branches"].values()
    assert (steps["both"]["wait"], steps["both"]["timeout_s"], left["action"]) == ("any", 60, "wait")
    assert (right["in"], right["as"], right["concurrency"], right["until"]) == ("event.lines", "line", 2, "line.enough")
    assert [step["action"] for step in right["do"]] == ["stop"]


def test_what_holds_its_traffic_in_bounds_is_shown_by_handler(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shown = planned(tmp_path / "one", flow=TRAFFIC)
    assert "\n".join(f"  {line}" for line in BOUNDS) in shown
    assert "x-single-active-consumer=true" in shown
    (tmp_path / "two").mkdir()
    (program,) = json.loads(planned(tmp_path / "two", "--json", flow=TRAFFIC))["programs"]
    assert program["traffic"] == BOUNDS


def test_a_queue_by_itself_lets_runs_be_queued(tmp_path: Path) -> None:
    flow = "flow: f\nevents: {e: {external: true}}\nroutes: [{on: e, to: h}]\n"
    shown = planned(tmp_path, flow=f"{flow}handlers: {{h: {{queue: {{max: 5}}, steps: []}}}}\n")
    assert "  queues 5, then takes no more\n" in shown
