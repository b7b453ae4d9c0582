"""`flowrun status`, and the last line of a terminal on which `flowrun start` runs."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import FLOWRUN, Shop, stop, wait_for_line, wait_until

FLOW = """
flow: f
events: {asked: {external: true, schema: {type: object}}, never: {external: true}}
routes: [{on: asked, to: [sleep, fail]}]
handlers:
  sleep: {steps: [{wait: 1h}]}
  fail: {steps: [{fail: {type: broken, message: no}}]}
"""


@pytest.fixture
def shop(place: tuple[str, str | None], tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/f.yaml").write_text(FLOW)
    (tmp_path / "flowrun.yaml").write_text("project: shop\n")
    broker, store = place
    with Shop(tmp_path, broker, root=tmp_path, store=store) as shop:
        yield shop


def test_lag_runs_and_failures_are_told_by_handler_and_in_all(shop: Shop) -> None:
    assert "there is no store" in shop.run("status", check=False).stderr or shop.store is not None
    for _ in range(2):
        shop.run("emit", "asked", "--data", "{}")
    shop.run("start", "--until-idle", "--quiet")
    for _ in range(3):
        shop.run("emit", "asked", "--data", "{}")
    wait_until(lambda: sum(h["lag"] for h in shop.json("status")["handlers"]) == 6)
    told = {h["handler"]: h for h in shop.json("status")["handlers"]}
    assert told["f.sleep"] == {
        "handler": "f.sleep",
        "lag": 3,
        "queued": 0,
        "running": 0,
        "waiting": 2,
        "begun_last_minute": 2,
        "failed_last_minute": 0,
    }
    assert told["f.fail"]["failed_last_minute"] == 2
    text = shop.run("status").stdout.splitlines()
    assert text[0].split() == ["HANDLER", "LAG", "QUEUED", "RUNNING", "WAITING", "BEGUN", "FAILED"]
    assert "0 running · 2 waiting · 2 failed · lag 6" in text[-1]


def test_watched_as_json_it_tells_a_line_each_time(shop: Shop) -> None:
    shop.run("start", "--until-idle", "--quiet")
    watching = shop.begin("status", "--watch", "--json")
    for line in (wait_for_line(watching, "{")[-1], wait_for_line(watching, "{")[-1]):
        assert json.loads(line)["outbox"] == 0
    assert stop(watching, signal.SIGINT)[0] == 0


def test_a_terminal_shows_the_figures_below_the_log_and_a_file_does_not(tmp_path: Path) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/f.yaml").write_text(FLOW)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"} | {"FLOWRUN_BROKER": "embedded:"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen([FLOWRUN, "start"], cwd=tmp_path, env=environment, stderr=theirs, stdout=theirs) as process:
        os.close(theirs)
        seen = b""
        while b"runs/s" not in seen:
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGTERM)
        while b"stopped:" not in seen:
            seen += os.read(ours, 4096)
        process.wait()
    os.close(ours)
    assert "0 running · 0 waiting · 0 failed · lag 0".encode() in seen
    with Shop(tmp_path, root=tmp_path) as shop:
        process = shop.start("--until-idle")
        assert "runs/s" not in "".join(wait_for_line(process, "stopped:"))
