"""Limits, order and refusals, as `flowrun start` keeps them over several processes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from project import Shop, stop, wait_until

FLOW = """
flow: f
events:
  asked:
    external: true
    schema:
      type: object
      properties: {key: {type: string}, n: {type: integer}, slow: {type: boolean}}
      required: [key, n]
      additionalProperties: false
  # more events
commands:
  count: {schema: {type: object, required: [n]}, reply: {type: object}, handler: count}
routes:
  - {on: asked, to: work}
  # more routes
handlers:
  # more handlers
  work:
    CONTROLS
    retry: {delay: 20ms, max_delay: 50ms, max_attempts: unlimited}
    steps:
      - {use: note, with: {key: "{{ event.key }}", n: "{{ event.n }}"}}
      - {wait: 50ms, when: "event.slow | default(false)"}
      - {use: note, with: {key: "{{ event.key }}", n: "{{ event.n }}", what: end}}
  count:
    rate_limit: {limit: 2, period: 1h}
    steps: []
    reply: {n: "{{ command.n }}"}
"""
PLUGIN = """
import os, random, time
from runner import Context, RetryableError, handler

@handler("note", effect=False)
async def note(ctx: Context, *, key: str, n: int, what: str = "begin") -> None:
    if random.random() < float(os.environ.get("FAILING", "0")):
        raise RetryableError("down", "not now")
    line = f"{time.time():.6f} {os.getpid()} {key} {n} {what}\\n"
    fd = os.open("notes.txt", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(fd, line.encode())
    os.close(fd)
"""


@pytest.fixture
def shop(place: tuple[str, str | None], tmp_path: Path) -> Iterator[Callable[[str], Shop]]:
    (tmp_path / "flows").mkdir()
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/note.py").write_text(PLUGIN)
    (tmp_path / "flowrun.yaml").write_text("project: shop\n")
    broker, store = place
    with Shop(tmp_path, broker, root=tmp_path, store=store) as shop:

        def with_controls(controls: str) -> Shop:
            (tmp_path / "flows/f.yaml").write_text(FLOW.replace("CONTROLS", controls))
            return shop

        yield with_controls


def also(shop: Shop, *, events: str, routes: str, handlers: str) -> None:
    """Add to its flow."""
    file = shop.root / "flows/f.yaml"
    text = file.read_text()
    for kind, more in (("events", events), ("routes", routes), ("handlers", handlers)):
        text = text.replace(f"# more {kind}", more)
    file.write_text(text)


def emit(shop: Shop, *payloads: dict[str, object]) -> list[str]:
    lines = "".join(json.dumps(payload) + "\n" for payload in payloads)
    return shop.run("emit", "asked", "--file", "-", input=lines).stdout.split()


def notes(shop: Shop) -> list[tuple[float, int, str, int, str]]:
    """When, by which process, for which key, which number, and what."""
    file = shop.root / "notes.txt"
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [(float(when), int(pid), key, int(n), what) for when, pid, key, n, what in lines]


def test_a_partition_keeps_its_order_under_retries_waits_and_killed_processes(
    shop: Callable[[str], Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILING", "0.3")
    here, random = shop('partition_by: "{{ event.key }}"'), Random(7)
    payloads = [{"key": random.choice("abcdefg"), "n": n, "slow": random.random() < 0.3} for n in range(150)]
    emit(here, *payloads)
    running = here.start("--workers", "4", "--quiet")
    for reached in (40, 90):
        wait_until(lambda reached=reached: len(notes(here)) >= reached, alive=running)
        os.kill(notes(here)[-1][1], signal.SIGKILL)
    wait_until(lambda: len({n for _, _, _, n, what in notes(here) if what == "end"}) == 150, alive=running)
    assert stop(running)[0] == 0
    by_key = defaultdict(list)
    for _, _, key, n, what in notes(here):
        by_key[key].append((n, what == "end"))
    for key, done in by_key.items():
        assert all(one <= next for one, next in pairwise(done)), key  # a killed process's step may be done twice
        assert sorted(set(done)) == [(p["n"], end) for p in payloads if p["key"] == key for end in (False, True)]
    assert len({pid for _, pid, *_ in notes(here)}) > 2


def test_a_throttle_lets_no_more_begin_than_it_says_over_all_processes(shop: Callable[[str], Shop]) -> None:
    here = shop("throttle: {limit: 20, period: 1s, burst: 1}")
    emit(here, *({"key": "a", "n": n} for n in range(50)))
    here.run("start", "--workers", "3", "--until-idle", "--quiet")
    began = sorted(when for when, _, _, _, what in notes(here) if what == "begin")
    assert len(began) == 50
    assert began[-1] - began[0] > 2.4 * 0.99
    listed = here.json("runs", "list")
    assert {run["state"] for run in listed} == {"completed"}
    records = here.run("runs", "show", listed[0]["id"]).stdout
    assert "is let in" in records


def test_no_more_runs_than_slots_for_one_value_of_a_key(shop: Callable[[str], Shop]) -> None:
    here = shop('concurrency: {limit: 1, key: "{{ event.key }}"}')
    emit(here, *({"key": "abc"[n % 3], "n": n, "slow": n % 2 == 0} for n in range(30)))
    running = here.start("--workers", "2", "--quiet")
    wait_until(lambda: len(here.json("runs", "list", "--state", "completed")) == 30, alive=running)
    assert stop(running)[0] == 0
    assert len(notes(here)) == 60


def test_when_the_queue_is_full_the_rest_stays_with_the_broker(shop: Callable[[str], Shop]) -> None:
    here = shop("throttle: {limit: 1, period: 1h}\n    queue: {max: 5}")
    emit(here, *({"key": "a", "n": n} for n in range(30)))
    running = here.start("--quiet")

    def work() -> dict[str, int]:
        found: dict[str, int] = next(h for h in here.json("status")["handlers"] if h["handler"] == "f.work")
        return found

    wait_until(lambda: work()["queued"] + work()["lag"] == 29 and work()["queued"] == 5, alive=running)
    (first, *_) = here.json("runs", "list", "--state", "queued")
    assert "queued" in here.run("runs", "show", first["id"]).stdout
    here.run("runs", "cancel", first["id"], "--yes")
    wait_until(lambda: len(here.json("runs", "list", "--state", "cancelled")) == 1, alive=running)
    assert stop(running)[0] == 0
    assert len(notes(here)) == 2


def test_what_a_full_queue_refuses_is_a_dead_letter(shop: Callable[[str], Shop]) -> None:
    here = shop("throttle: {limit: 1, period: 1h}\n    queue: {max: 5, on_full: reject}")
    emit(here, *({"key": "a", "n": n} for n in range(20)))
    running = here.start("--quiet")
    wait_until(lambda: len(here.json("dlq", "list", "--reason", "queue_full")) >= 14, alive=running)
    wait_until(lambda: len(here.json("runs", "list", "--limit", "50")) + len(here.json("dlq", "list")) == 20)
    assert stop(running)[0] == 0


def test_what_is_urgent_is_let_in_first(shop: Callable[[str], Shop]) -> None:
    here = shop('throttle: {limit: 50, period: 1s, burst: 1}\n    priority: "{{ 9 if event.n >= 30 else 0 }}"')
    emit(here, *({"key": "a", "n": n} for n in range(40)))
    here.run("start", "--until-idle", "--quiet")
    order = [n for _, _, _, n, what in notes(here) if what == "begin"]
    urgent = [order.index(n) for n in range(30, 40)]
    assert max(urgent) < 15, order  # but for those that were let in before they had come


def test_a_command_over_the_rate_limit_is_told_so_and_may_try_again(shop: Callable[[str], Shop]) -> None:
    here = shop("")
    running = here.start("--quiet")
    answers = [here.run("call", "count", "--data", '{"n": 1}', "--json", check=False) for _ in range(3)]
    assert [json.loads(answer.stdout).get("result") for answer in answers] == [{"n": 1}, {"n": 1}, None]
    error = json.loads(answers[2].stdout)["error"]
    assert (error["type"], error["retryable"]) == ("rate_limited", True)
    assert "no more than 2 in" in error["message"]
    assert stop(running)[0] == 0


def test_an_event_over_the_rate_limit_is_a_dead_letter_or_dropped(shop: Callable[[str], Shop]) -> None:
    here = shop("rate_limit: {limit: 3, period: 1h}")
    emit(here, *({"key": "a", "n": n} for n in range(5)))
    here.run("start", "--until-idle", "--quiet")
    assert len(here.json("runs", "list")) == 3
    (letter, _) = here.json("dlq", "list", "--reason", "rate_limited")
    assert "no more than 3 in" in letter["error"]["message"]
    shop("rate_limit: {limit: 3, period: 1h, on_exceed: drop}")
    emit(here, {"key": "a", "n": 9})
    here.run("start", "--until-idle", "--quiet")
    assert len(here.json("runs", "list")) == 3
    assert len(here.json("dlq", "list")) == 2


def test_gates_that_the_files_have_no_more_hold_nobody_up(shop: Callable[[str], Shop]) -> None:
    here = shop("throttle: {limit: 1, period: 1h}")
    emit(here, *({"key": "a", "n": n} for n in range(4)))
    running = here.start("--quiet")
    wait_until(lambda: len(here.json("runs", "list", "--state", "queued")) == 3, alive=running)
    assert stop(running)[0] == 0
    shop("timeout: 1m")
    here.run("start", "--until-idle", "--quiet")
    assert {run["state"] for run in here.json("runs", "list")} == {"completed"}


def test_a_run_times_out_by_when_it_was_let_in(shop: Callable[[str], Shop]) -> None:
    here = shop("throttle: {limit: 2, period: 1s, burst: 1}\n    timeout: 900ms")
    emit(here, *({"key": "a", "n": n} for n in range(4)))
    began = time.monotonic()
    here.run("start", "--until-idle", "--quiet")
    assert time.monotonic() - began > 1.4
    assert {run["state"] for run in here.json("runs", "list")} == {"completed"}


BREAKING = """
import os, pathlib, time
from runner import Context, RetryableError, handler

@handler("partner.call", effect=False)
async def call(ctx: Context, *, n: int) -> None:
    fd = os.open("calls.txt", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(fd, f"{time.time():.3f} {n}\\n".encode())
    os.close(fd)
    if not pathlib.Path("up").exists():
        raise RetryableError("partner.down", "no answer")
"""


@pytest.mark.parametrize(("per", "controls"), [("handler", ""), ("plugin", "priority: 1")])
def test_a_partner_that_is_down_costs_some_failures_and_probes_and_all_is_done_afterwards(
    shop: Callable[[str], Shop], per: str, controls: str
) -> None:
    here = shop("")
    (here.root / "plugins/partner.py").write_text(BREAKING)
    (here.root / "flows/f.yaml").write_text(f"""
flow: f
events: {{asked: {{external: true, schema: {{required: [n], properties: {{n: {{type: integer}}}}}}}}}}
routes: [{{on: asked, to: work}}]
handlers:
  work:
    {controls}
    concurrency: 1
    circuit_breaker: {{failures: 3, period: 1m, pause: 1s, per: {per}}}
    retry: {{max_attempts: 3, delay: 10ms, max_delay: 20ms}}
    steps: [{{use: partner.call, with: {{n: "{{{{ event.n }}}}"}}}}]
""")
    emit(here, *({"n": n} for n in range(40)))

    def calls() -> list[str]:
        file = here.root / "calls.txt"
        return file.read_text().splitlines() if file.exists() else []

    running = here.start("--quiet", "--workers", "2")
    wait_until(lambda: len(calls()) >= 6, alive=running)
    seen = calls()
    probes = 1 + (float(seen[-1].split()[0]) - float(seen[0].split()[0])) / 1.0
    assert len(seen) <= 3 + 1 + probes  # one more was under way in the other process
    (circuit,) = here.json("status")["circuits"]
    assert circuit["state"] in ("open", "half_open")
    (here.root / "up").touch()
    wait_until(lambda: len(here.json("runs", "list", "--state", "completed")) >= 37, alive=running)
    wait_until(lambda: not here.json("status")["circuits"], alive=running)
    assert stop(running)[0] == 0
    kinds = [event["type"] for event in here.json("events", "list", "--type", "flowrun.circuit.#")]
    assert sorted(kinds) == ["flowrun.circuit.closed", "flowrun.circuit.opened"]


def test_producers_are_told_once_that_a_handler_is_behind_and_once_that_it_has_caught_up(
    shop: Callable[[str], Shop],
) -> None:
    feedback = "feedback: {event: pressure, above: {lag: 20}, below: {lag: 5}}"
    here = shop(f"throttle: {{limit: 20, period: 1s, burst: 1}}\n    {feedback}")
    also(
        here,
        events="pressure: {schema: {required: [handler, state, lag, rate]}, subject: '{{ event.handler }}'}",
        routes="- {on: pressure, to: slow_down}",
        handlers="slow_down: {steps: [{use: note, with: {key: '{{ event.state }}', n: '{{ event.lag }}'}}]}",
    )
    emit(here, *({"key": "a", "n": n} for n in range(80)))
    running = here.start("--workers", "2", "--quiet")
    wait_until(lambda: [key for _, _, key, *_ in notes(here) if key in ("high", "normal")] == ["high", "normal"])
    assert stop(running)[0] == 0
    (high, normal) = [(key, n) for _, _, key, n, _ in notes(here) if key != "a"]
    assert high[1] > 20
    assert normal[1] < 5
    assert len(here.json("events", "list", "--type", "pressure")) == 2


def test_a_flood_for_one_handler_does_not_starve_another(shop: Callable[[str], Shop]) -> None:
    here = shop("concurrency: 10")
    also(
        here,
        events="rare: {external: true, schema: {required: [n], properties: {n: {type: integer}}}}",
        routes="- {on: rare, to: serve}",
        handlers="serve: {steps: [{use: note, with: {key: rare, n: '{{ event.n }}'}}]}",
    )
    emit(here, *({"key": "flood", "n": n} for n in range(1500)))
    here.run("emit", "rare", "--file", "-", input="".join(f'{{"n": {n}}}\n' for n in range(10)))
    here.run("start", "--until-idle", "--quiet")
    order = [key for _, _, key, _, what in notes(here) if what == "begin"]
    last_rare = len(order) - 1 - order[::-1].index("rare")
    assert len(order) == 1510
    assert last_rare < 750, "the rare ones waited for half of the flood"
