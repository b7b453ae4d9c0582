"""Read models with the real command: kept up, queried, rebuilt, read by flows and over HTTP, and after kill -9."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from project import Shop, stop, wait_for_line, wait_until

from runner.engine.read_models import MAX_TAIL

FLOW = """
flow: f
events:
  counted:
    external: true
    schema: {type: object, required: [id, n], properties: {id: {type: string}, n: {type: integer}}}
  asked: {external: true, schema: {type: object, required: [id], properties: {id: {type: string}}}}
  told: {schema: {type: object, required: [total], properties: {total: {type: [integer, "null"]}}}}
projections:
  totals:
    key: "{{ event.id }}"
    on:
      counted: {increment: {total: "{{ event.n }}", times: 1}, set: {last: "{{ meta.id }}"}}
routes: [{on: asked, to: tell}]
handlers:
  tell:
    steps:
      - {id: entry, use: projection.get, with: {name: totals, key: "{{ event.id }}"}}
      - {emit: told, with: {total: "{{ steps.entry.output.total if steps.entry.output else none }}"}}
"""


@pytest.fixture
def shop(place: tuple[str, str | None], tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/f.yaml").write_text(FLOW)
    (tmp_path / "flowrun.yaml").write_text("project: shop\n")
    broker, store = place
    with Shop(tmp_path, broker, root=tmp_path, store=store) as shop:
        yield shop


def count(shop: Shop, *pairs: tuple[str, int]) -> None:
    lines = "".join(json.dumps({"id": ident, "n": n}) + "\n" for ident, n in pairs)
    (shop.folder / "counted.jsonl").write_text(lines)
    shop.run("emit", "counted", "--file", str(shop.folder / "counted.jsonl"))


def folded(shop: Shop) -> int:
    newest = "SELECT count(*) FROM entry_changes WHERE build = (SELECT max(id) FROM builds)"
    return sum(number for (number,) in shop.query("shop", newest))


def folds_on(shop: Shop, so_far: int, most: int) -> Callable[[], bool]:
    return lambda: so_far < folded(shop) or folded(shop) == most


def totals(shop: Shop, *more: str) -> dict[str, int]:
    return {entry["key"]: entry["state"]["total"] for entry in shop.json("query", "totals", *more)}


def test_entries_are_queried_as_they_are_and_as_they_were(shop: Shop) -> None:
    count(shop, ("a", 1), ("b", 10))
    shop.run("start", "--until-idle", "--quiet")
    assert totals(shop) == {"a": 1, "b": 10}
    positions = [event["position"] for event in shop.json("events", "list")]
    count(shop, ("a", 2))
    shop.run("start", "--until-idle", "--quiet")
    assert shop.json("query", "totals", "a")["state"]["total"] == 3
    assert shop.json("query", "totals", "a", "--as-of", str(positions[-1]))["state"]["total"] == 1
    assert totals(shop, "--as-of", str(positions[0])) == {"a": 1}
    assert totals(shop, "--where", "state.total > 5") == {"b": 10}
    assert totals(shop, "--limit", "1") == {"a": 3}
    assert shop.run("query", "totals").stdout.splitlines()[0].split() == ["KEY", "LAST", "TOTAL", "TIMES"]
    assert re.search(r"^total +3$", shop.run("query", "totals", "a").stdout, re.MULTILINE)


def test_a_flow_reads_what_is_in_the_log_at_that_moment(shop: Shop) -> None:
    count(shop, ("a", 1), ("a", 2))
    shop.run("start", "--until-idle", "--quiet")
    for ident in ("a", "none"):
        shop.run("emit", "asked", "--data", json.dumps({"id": ident}))
        shop.run("start", "--until-idle", "--quiet")
    assert [event["data"] for event in shop.json("events", "list", "--type", "told")] == [{"total": 3}, {"total": None}]


def test_a_changed_definition_is_rebuilt_by_the_next_start_and_by_hand(shop: Shop) -> None:
    count(shop, ("a", 1), ("a", 2))
    shop.run("start", "--until-idle", "--quiet")
    flow = shop.root / "flows/f.yaml"
    flow.write_text(FLOW.replace('total: "{{ event.n }}"', 'total: "{{ event.n * 100 }}"'))
    asked = shop.run("query", "totals")
    assert "shown by its definition from before; flowrun start rebuilds it" in asked.stderr
    assert totals(shop) == totals(shop, "--as-of", "9") == {"a": 3}
    asked = shop.run("query", "totals", "a", "--as-of", "9")
    assert "shown by its definition from before" in asked.stderr
    assert "served by its definition from before" in shop.run("query").stdout
    shop.run("query", "totals", "--rebuild")
    assert totals(shop) == {"a": 300}
    flow.write_text(FLOW)
    process = shop.start()
    wait_until(lambda: totals(shop) == {"a": 3}, alive=process)
    stop(process)
    listed = shop.json("query")
    assert [(each["name"], each["served"], each["rebuilding"], each["faults"]) for each in listed] == [
        ("totals", True, False, 0)
    ]


def test_one_entry_is_told_however_much_nobody_has_folded_yet(shop: Shop) -> None:
    event = {"type": "counted", "source": "/t", "time": "2026-11-23T00:00:00Z", "data": {"id": "a", "n": 1}}
    lines = (json.dumps({"id": f"e-{number}", **event}) for number in range(MAX_TAIL + 1))
    (shop.folder / "log.jsonl").write_text("\n".join(lines))
    shop.run("start", "--until-idle", "--quiet")
    shop.run("events", "import", str(shop.folder / "log.jsonl"))
    assert shop.json("query", "totals", "a")["state"]["total"] == MAX_TAIL + 1
    assert "did you mean" in shop.run("query", "totals", "aa", check=False).stderr


def test_what_cannot_be_asked_is_said_with_what_can(shop: Shop) -> None:
    count(shop, ("a", 1))
    shop.run("start", "--until-idle", "--quiet")
    for arguments, code, said in (
        (("total",), 1, 'did you mean "totals"'),
        (("totals", "b"), 1, 'totals has no entry "b"'),
        (("totals", "a", "--as-of", "2020-01-01T00:00:00Z"), 1, 'totals had no entry "a" yet'),
        (("totals", "--as-of", "soon"), 2, "neither a time"),
        (("totals", "--where", "total > 1"), 2, "write state.total"),
        (("totals", "--where", "state.total >"), 2, "--where"),
        (("totals", "a", "--where", "true"), 2, "choose among entries"),
        (("--rebuild",), 2, "which projection?"),
        (("totals", "k" * 600), 2, "a key has 1 to 512 bytes"),
        (("totals", "\udcff"), 2, "a key is no half of a character"),
        (("totals", "--rebuild", "--limit", "1"), 2, "--rebuild rebuilds it"),
    ):
        asked = shop.run("query", *arguments, check=False)
        assert asked.returncode == code, asked.stderr
        assert said in asked.stderr
        assert "Traceback" not in asked.stderr


def test_over_http_a_program_here_reads_them(shop: Shop) -> None:
    count(shop, ("a", 1))
    process = shop.start("--http", "127.0.0.1:0")
    said = wait_for_line(process, "HTTP on ")[-1]
    assert "1 projection" in said
    url = said.partition("HTTP on ")[2].split(": ")[0]
    with httpx.Client(base_url=url) as client:
        wait_until(lambda: client.get("/projections/totals").json() != [], alive=process)
        assert client.get("/projections/totals/a").json()["state"]["total"] == 1
    stop(process)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_while_it_folds_and_rebuilds_nothing_is_lost_or_folded_twice(shop: Shop, workers: str) -> None:
    pairs = [("abc"[n % 3], n) for n in range(1, 2001)]
    expected = Counter[str]()
    for ident, n in pairs:
        expected[ident] += n
    count(shop, *pairs)
    for round in range(4):
        if round == 2:
            flow = shop.root / "flows/f.yaml"
            flow.write_text(FLOW.replace("times: 1", "times: 1, more: 1"))
        so_far = folded(shop)
        process = shop.start("--workers", workers, "--quiet")
        wait_until(folds_on(shop, 0 if round == 2 else so_far, len(pairs)), alive=process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    shop.run("start", "--until-idle", "--quiet")
    assert totals(shop) == expected
    shop.run("query", "totals", "--rebuild")
    assert totals(shop) == expected
    assert all(entry["state"]["more"] == entry["state"]["times"] for entry in shop.json("query", "totals"))
    assert sum(entry["state"]["times"] for entry in shop.json("query", "totals")) == len(pairs)
