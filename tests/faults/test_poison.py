"""A message whose handler kills the process is put aside after a few deaths; its neighbours are served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from project import Shop

FLOW = """
flow: risky
events: {job: {external: true}}
routes: [{on: job, to: work}]
handlers:
  work:
    steps:
      - {id: first, use: work.do, with: {name: "{{ event.name }}"}, compensate: {use: work.undo}}
      - {id: second, use: work.explode, when: event.name == "poison"}
"""
PLUGIN = """
import os
from runner import Context, handler

@handler("work.do")
async def do(ctx: Context, *, name: str) -> None: ...

@handler("work.undo")
async def undo(ctx: Context) -> None: ...

@handler("work.explode")
async def explode(ctx: Context) -> None:
    os._exit(7)
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    for folder, name, text in (("flows", "risky.yaml", FLOW), ("plugins", "work.py", PLUGIN)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    with Shop(tmp_path, root=tmp_path) as shop:
        yield shop


def test_a_run_that_kills_its_process_is_ended_after_three_crashes_and_harms_no_other(
    shop: Shop, tmp_path: Path
) -> None:
    names = [f"good-{n}" for n in range(10)]
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("".join(f'{{"name": "{name}"}}\n' for name in [*names[:5], "poison", *names[5:]]))
    shop.run("emit", "job", "--file", str(jobs))

    told = shop.run("start", "--until-idle", "--quiet").stderr

    assert told.count("process died (exit code 7)") == 3, told
    runs = shop.json("runs", "list")
    assert sorted(run["state"] for run in runs) == ["compensated", *["completed"] * 10]
    [poison] = [run for run in runs if run["state"] == "compensated"]
    assert poison["error"]["type"] == "crashed"
