"""`parallel` and `foreach` with the real command: killed in the midst of them, a run goes on on every line."""

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
commands:
  double: {schema: {}, reply: {type: integer}, handler: double}
routes: [{on: asked, to: both}]
handlers:
  both:
    steps:
      - id: both
        parallel:
          branches:
            asks:
              - {id: reply, command: double, with: {n: 4}}
              - {id: answer, wait_for: {event: answered}}
              - {id: told, use: noted, with: {what: told}}
            works:
              - id: each
                foreach:
                  in: range(4)
                  concurrency: 2
                  do:
                    - {id: before, use: noted, with: {what: "before {{ item }}"}}
                    - {id: slow, use: held, with: {what: "{{ item }}"}}
      - {id: end, use: noted, with: {what: end}}
  double:
    steps: []
    reply: "{{ command.n * 2 }}"
"""
PLUGIN = """
import os, time
from pathlib import Path
from runner import Context, handler

FOLDER = Path(__file__).parent.parent

def note(ctx, what):
    with open(FOLDER / "effects", "a") as file:
        file.write(f"{ctx.idempotency_key} {what}\\n")

@handler("noted")
def noted(ctx: Context, *, what: str) -> str:
    note(ctx, what)
    return what

@handler("held")
async def held(ctx: Context, *, what: int) -> int:
    import asyncio
    note(ctx, f"held {what}")
    while not (FOLDER / "open").exists():
        await asyncio.sleep(0.01)
    return what * 10
"""


@pytest.fixture
def shop(place: tuple[str, str | None], tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/f.yaml").write_text(FLOW)
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/p.py").write_text(PLUGIN)
    (tmp_path / "flowrun.yaml").write_text("project: shop\n")
    broker, store = place
    with Shop(tmp_path, broker, root=tmp_path, store=store) as shop:
        yield shop


def effects(shop: Shop) -> list[tuple[str, str]]:
    path = shop.folder / "effects"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(key, what) for key, _, what in (line.partition(" ") for line in lines)]


def done(shop: Shop) -> list[str]:
    return [what for _, what in effects(shop)]


def begun(shop: Shop) -> list[int]:
    """How often each of the first two rounds has begun what it is held in."""
    return [done(shop).count(f"held {n}") for n in (0, 1)]


def test_a_run_that_is_killed_inside_its_branches_and_rounds_goes_on_on_each_of_them(shop: Shop) -> None:
    shop.run("emit", "asked", "--data", "{}", "--id", "r-1")
    kills = 3 if shop.store is None else 1  # each costs a lease there
    for times in range(1, kills + 1):
        worker = shop.start("--quiet")
        wait_until(lambda times=times: begun(shop) == [times, times], alive=worker)
        worker.kill()
        worker.communicate()
    assert "held 2" not in done(shop), "two at once"

    last = shop.start()
    wait_until(lambda: begun(shop) == [kills + 1, kills + 1], alive=last)
    # While the rounds go on, the other branch gets what it waits for.
    shop.run("emit", "answered", "--data", "{}")
    wait_until(lambda: "told" in done(shop), alive=last)
    (shop.folder / "open").touch()
    wait_until(lambda: [run["state"] for run in shop.json("runs", "list", "--handler", "f.both")] == ["completed"])
    code, output = stop(last)
    assert code == 0, output

    [row] = shop.json("runs", "list", "--handler", "f.both")
    steps = {step["id"]: step for step in shop.json("runs", "show", row["id"])["steps"]}
    assert steps["both"]["output"] == {"asks": "told", "works": [0, 10, 20, 30]}
    assert steps["reply"]["output"] == 8
    by_what: dict[str, set[str]] = {}
    for key, what in effects(shop):
        by_what.setdefault(what, set()).add(key)
    assert all(len(keys) == 1 for keys in by_what.values()), "each effect under one key, however often it was begun"
    assert [done(shop).count(f"before {n}") for n in range(4)] == [1, 1, 1, 1], "what was recorded was not done again"
