"""`flowrun events replay`: what a handler missed, or what it is to do again, and nobody else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from project import Shop

FLOW = """
flow: f
events:
  asked: {external: true, schema: {type: object, required: [id]}, subject: "q/{{ event.id }}"}
  other: {external: true}
  told: {schema: {type: object}}
commands: {check: {handler: check}}
routes:
  - {on: [asked, other], to: one}
  - {on: asked, to: two, when: event.id != "skipped"}
  - {on: told, to: three}
handlers:
  one:
    idempotency: {key: "{{ event.id | default('none') }}"}
    steps: [{emit: told, with: {by: one}}]
  two: {steps: [{use: log, with: {message: two}}]}
  three: {steps: [{use: log, with: {message: three}}]}
  check: {steps: [{use: log, with: {message: check}}]}
"""
LATER = """
  late: {steps: [{use: log, with: {message: late}}]}
"""


@pytest.fixture
def shop(place: tuple[str, str | None], tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/f.yaml").write_text(FLOW)
    (tmp_path / "flowrun.yaml").write_text("project: shop\n")
    broker, store = place
    with Shop(tmp_path, broker, root=tmp_path, store=store) as shop:
        for ident in ("1", "2", "skipped"):
            shop.run("emit", "asked", "--data", json.dumps({"id": ident}), "--id", f"m-{ident}")
        shop.run("emit", "other", "--data", "{}", "--id", "m-other")
        shop.run("start", "--until-idle", "--quiet")
        yield shop


def runs(shop: Shop, handler: str) -> list[dict[str, Any]]:
    return shop.json("runs", "list", "--handler", handler, "--limit", "100")


def test_a_new_handler_gets_what_it_missed_and_no_other_handler_anything(shop: Shop) -> None:
    flow = FLOW.replace("  - {on: told, to: three}", "  - {on: told, to: three}\n  - {on: asked, to: late}") + LATER[1:]
    (shop.root / "flows/f.yaml").write_text(flow)
    before = {name: len(runs(shop, f"f.{name}")) for name in ("one", "two", "three")}
    events = len(shop.json("events", "list"))
    assert shop.json("events", "replay", "--handler", "f.late", "--dry-run") == {
        "events": 3,
        "by_type": {"asked": 3},
        "have_run": 0,
    }
    sent = shop.json("events", "replay", "--handler", "f.late")
    assert sent["events"] == 3
    shop.run("start", "--until-idle", "--quiet")
    late = runs(shop, "f.late")
    assert sorted(run["trigger"]["id"] for run in late) == ["m-1", "m-2", "m-skipped"]
    assert shop.json("runs", "show", late[0]["id"])["replay"] == sent["replay"]
    assert before == {name: len(runs(shop, f"f.{name}")) for name in before}
    assert len(shop.json("events", "list")) == events


def test_what_has_run_does_nothing_again_unless_it_is_forced_to(shop: Shop) -> None:
    looked = shop.run("events", "replay", "--handler", "f.two", "--dry-run").stdout
    assert "3 events would go to f.two: 1 new; 2 have run, and would do nothing" in looked
    for force in ((), ("--force",)):
        shop.run("events", "replay", "--handler", "f.two", *force)
        shop.run("start", "--until-idle", "--quiet")
        assert len(runs(shop, "f.two")) == (4 if force else 2)  # its route lets one of the three pass


def test_forced_runs_have_keys_of_their_own_and_what_comes_of_them_goes_to_all(shop: Shop) -> None:
    assert len(runs(shop, "f.one")) == 4
    shop.run("events", "replay", "--handler", "f.one", "--type", "asked", "--subject", "q/1")
    shop.run("start", "--until-idle", "--quiet")
    assert len(runs(shop, "f.one")) == 4
    shop.run("events", "replay", "--handler", "f.one", "--type", "asked", "--subject", "q/1", "--force")
    shop.run("start", "--until-idle", "--quiet")
    assert len(runs(shop, "f.one")) == 5
    assert len(runs(shop, "f.three")) == 5
    assert shop.json("runs", "show", runs(shop, "f.three")[0]["id"])["replay"] is not None


def test_what_cannot_be_replayed_is_said_and_nothing_to_replay_is_no_fault(shop: Shop) -> None:
    for arguments, code, said in (
        (("--handler", "f.too"), 1, 'did you mean "f.two"'),
        (("--handler", "f.check"), 1, "it does the command check"),
        (("--handler", "f.two", "--type", "told"), 1, 'no route leads "told" to f.two'),
        (("--handler", "f.two", "--from", "soon"), 2, "neither a time"),
        ((), 2, "--handler"),
        (("--handler", "f.two", "--subject", "none"), 0, ""),
    ):
        done = shop.run("events", "replay", *arguments, check=False)
        assert done.returncode == code
        assert said in done.stderr
        assert "Traceback" not in done.stderr
