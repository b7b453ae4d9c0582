"""Waits with the real command: killed while it waits, a run goes on; an event finds it wherever it sleeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from project import Shop, stop, wait_until

FLOW = """
flow: f
events:
  asked: {external: true}
  answered: {external: true}
  withdrawn: {external: true}
routes: [{on: asked, to: ask}]
handlers:
  ask:
    cancel_on: [{event: withdrawn, match: {id: "{{ event.id }}"}}]
    steps:
      - {id: nap, wait: 500ms}
      - {id: answer, wait_for: {event: answered, match: {about.id: "{{ event.id }}"}, timeout: 1h}}
      - {use: log, with: {message: "{{ steps.answer.output.says }}"}}
"""


@pytest.fixture
def shop(place: tuple[str, str | None], tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/f.yaml").write_text(FLOW)
    (tmp_path / "flowrun.yaml").write_text("project: shop\n")
    broker, store = place
    with Shop(tmp_path, broker, root=tmp_path, store=store) as shop:
        yield shop


def states(shop: Shop) -> dict[str, str]:
    return {run["trigger"]["id"]: run["state"] for run in shop.json("runs", "list")}


def test_a_run_that_sleeps_survives_kills_and_its_event_finds_it(shop: Shop) -> None:
    for ident in ("r-1", "r-2", "r-3"):
        shop.run("emit", "asked", "--data", f'{{"id": "{ident}"}}', "--id", ident)
    first = shop.start("--quiet")
    wait_until(lambda: set(states(shop).values()) == {"waiting"}, alive=first)
    first.kill()  # in the middle of the nap, or soon after
    first.communicate()

    told = shop.run("start", "--until-idle").stderr
    assert "stopped" in told, "a run that sleeps is nothing left to do"
    assert set(states(shop).values()) == {"waiting"}

    shop.run("emit", "answered", "--data", '{"about": {"id": "r-1"}, "says": "while you were away"}')
    second = shop.start()
    wait_until(lambda: states(shop)["r-1"] == "completed", alive=second)
    shop.run("emit", "answered", "--data", '{"about": {"id": "r-2"}, "says": "while you were there"}')
    shop.run("emit", "withdrawn", "--data", '{"id": "r-3"}')
    wait_until(lambda: states(shop) == {"r-1": "completed", "r-2": "completed", "r-3": "cancelled"}, alive=second)
    code, output = stop(second)
    assert code == 0
    assert "while you were away" in output
    assert "while you were there" in output
    assert "Traceback" not in output


def test_a_run_that_waits_gets_its_event_also_once_the_flow_waits_for_nothing_any_more(shop: Shop) -> None:
    shop.run("emit", "asked", "--data", '{"id": "r-1"}', "--id", "r-1")
    before = shop.start("--quiet")
    wait_until(lambda: states(shop) == {"r-1": "waiting"}, alive=before)
    assert stop(before)[0] == 0

    head, _, _ = FLOW.partition("    cancel_on:")
    (shop.folder / "flows/f.yaml").write_text(head + "    steps: [{use: log, with: {message: at once}}]\n")
    after = shop.start()
    shop.run("emit", "asked", "--data", '{"id": "r-2"}', "--id", "r-2")
    shop.run("emit", "answered", "--data", '{"about": {"id": "r-1"}, "says": "by the plan of before"}')
    wait_until(lambda: states(shop) == {"r-1": "completed", "r-2": "completed"}, alive=after)
    assert "by the plan of before" in stop(after)[1]
