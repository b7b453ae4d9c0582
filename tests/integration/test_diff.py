"""What `flowrun diff` says will happen is what happens: the old files ran, the new ones run on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from project import Shop, wait_for_line, wait_until

FLOW = """\
flow: f
events:
  placed: {external: true, schema: {type: object, required: [id], properties: {id: {type: string}}}}
  other: {external: true}
commands:
  pay:
    schema: {type: object, required: [id], properties: {id: {type: string}}}
    reply: {type: object, required: [ok], properties: {ok: {type: boolean}}}
    handler: charge
    timeout: 2s
routes:
  - {on: [placed, other], to: serve}
  - {on: other, to: buy}
handlers:
  serve:
    steps: [{use: log, with: {message: served}}]
  buy:
    steps:
      - {wait: 1s}
      - {command: pay, with: {id: "{{ event.id }}"}, retry: {max_attempts: 1}, irreversible: true}
  charge:
    steps: [{use: notes.write, with: {text: x}}]
    reply: {ok: true}
"""
PLUGIN = """\
from runner import Context, handler


@handler("notes.write", effect=False)
def write(ctx: Context, *, text: str) -> None:
    "Write it down."
"""


class Rolled:
    """A project whose old files have run, and whose new ones are to be written."""

    def __init__(self, shop: Shop, folder: Path) -> None:
        self.shop, self.folder = shop, folder
        self._write(shop.root, FLOW)
        self._write(folder / "old", FLOW)
        shop.run("start", "--until-idle", "--quiet")

    def _write(self, root: Path, flow: str, plugin: str = PLUGIN) -> None:
        for name, text in {"flows/f.yaml": flow, "plugins/notes.py": plugin, "flowrun.yaml": "project: shop\n"}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)

    def change(self, *pairs: tuple[str, str], plugin: str = PLUGIN) -> list[str]:
        """Write the new files; what diff calls breaking: kind, name, direction."""
        flow = FLOW
        for old, new in pairs:
            assert old in flow
            flow = flow.replace(old, new)
        self._write(self.shop.root, flow, plugin)
        shown = json.loads(self.shop.run("diff", str(self.folder / "old"), "--json", check=False).stdout)
        found = [c for c in shown["changes"] if c["level"] == "breaking"]
        return [" ".join(filter(None, (c["kind"], c["name"], c["direction"]))) for c in found]

    def live(self, *options: str) -> list[Any]:
        """What --live finds: how many of what, how bad, why."""
        done = self.shop.run("diff", str(self.folder / "old"), "--live", "--json", *options, check=False)
        return [(held["count"], held["name"], held["level"], held["text"]) for held in json.loads(done.stdout)["live"]]

    def emit(self, event: str, data: Any) -> None:
        self.shop.run("emit", event, "--data", json.dumps(data))

    def go_on(self) -> str:
        return self.shop.run("start", "--until-idle").stderr

    def end_of(self, handler: str) -> Any:
        """The run of a handler, once it has ended: a start that ends when it is idle leaves those that wait."""
        while True:
            self.go_on()
            for run in self.shop.json("runs", "list", "--handler", handler):
                if run["finished_at"] is not None:
                    return run

    def begin_and_die(self) -> None:
        """Begin a run of `f.buy`, and be gone while it waits."""
        self.emit("other", {"id": "a"})
        begun = self.shop.start("--quiet")
        wait_until(lambda: bool(self.shop.json("runs", "list", "--handler", "f.buy")), alive=begun)
        begun.kill()
        begun.wait()

    def waiting(self, queue: str) -> int:
        [(number,)] = self.shop.query("shop", f"SELECT count(*) FROM broker_messages WHERE queue = '{queue}'")
        return int(number)


@pytest.fixture
def rolled(tmp_path: Path) -> Iterator[Rolled]:
    root = tmp_path / "project"
    root.mkdir()
    with Shop(tmp_path, root=root) as shop:
        yield Rolled(shop, tmp_path)


def test_what_waits_and_does_not_fit_any_more_is_a_dead_letter(rolled: Rolled) -> None:
    rolled.emit("placed", {"id": "a"})
    said = rolled.change(("properties: {id: {type: string}}}}", "properties: {id: {enum: [b]}}}}"))
    assert said == ["event placed backward"]
    rolled.go_on()
    assert [letter["reason"] for letter in rolled.shop.json("dlq", "list")] == ["schema_violation"]


def test_what_waits_of_an_event_that_is_gone_is_a_dead_letter(rolled: Rolled) -> None:
    rolled.emit("placed", {"id": "a"})
    said = rolled.change(("  placed: {external", "  set: {external"), ("[placed, other]", "[set, other]"))
    assert said == ["event placed"]
    rolled.go_on()
    assert [letter["reason"] for letter in rolled.shop.json("dlq", "list")] == ["unknown_event"]


def test_what_waits_for_a_route_that_is_gone_is_passed_over(rolled: Rolled) -> None:
    rolled.emit("placed", {"id": "a"})
    assert rolled.change(("[placed, other]", "other")) == ["route placed → f.serve"]
    assert "0 runs begun" in rolled.go_on()
    assert rolled.waiting("shop.f.serve") == 0
    rolled.emit("placed", {"id": "b"})
    assert rolled.waiting("shop.f.serve") == 1  # it is bound all the same


def test_what_waits_for_a_handler_that_is_gone_stays(rolled: Rolled) -> None:
    rolled.emit("placed", {"id": "a"})
    assert rolled.change(("to: serve", "to: attend"), ("  serve:", "  attend:")) == ["handler f.serve"]
    rolled.go_on()
    rolled.emit("placed", {"id": "b"})
    assert rolled.waiting("shop.f.serve") == 2


def test_a_command_that_another_handler_does_goes_to_both_queues(rolled: Rolled) -> None:
    assert rolled.change(("handler: charge", "handler: debit"), ("  charge:", "  debit:")) == ["command pay"]
    rolled.emit("other", {"id": "a"})
    assert rolled.end_of("f.debit")["state"] == "completed"
    assert rolled.waiting("shop.f.charge") == 1


def test_a_run_checks_the_reply_by_the_schema_that_it_began_with(rolled: Rolled) -> None:
    rolled.begin_and_die()
    said = rolled.change(("{ok: {type: boolean}}", "{ok: {type: [boolean, string]}}"), ("{ok: true}", '{ok: "yes"}'))
    assert said == ["reply pay forward"]
    assert rolled.end_of("f.buy")["error"]["type"] == "invalid_output"


def test_a_run_whose_plugin_is_gone_is_put_down(rolled: Rolled) -> None:
    rolled.begin_and_die()
    said = rolled.change(("notes.write", "notes.jot"), plugin=PLUGIN.replace("notes.write", "notes.jot"))
    assert said == ["run f.serve, f.buy, f.charge"]
    wait_for_line(rolled.shop.start(), "began with other flow files, and those do not compile here")


# --- --live


def test_live_says_which_runs_cannot_go_on(rolled: Rolled) -> None:
    rolled.begin_and_die()
    rolled.change(("notes.write", "notes.jot"), plugin=PLUGIN.replace("notes.write", "notes.jot"))
    [(count, name, level, text)] = rolled.live()
    assert (count, name, level) == (1, "f.buy", "breaking")
    assert text.startswith('cannot go on: FR202, no handler named "notes.write" (flows/f.yaml:22:')
    [run] = rolled.shop.json("runs", "list", "--handler", "f.buy")
    shown = rolled.shop.run("diff", str(rolled.folder / "old"), "--live", check=False).stdout
    assert "  ✗ 1 run of f.buy: cannot go on: FR202" in shown
    assert f"      {run['id'][:8]}\n" in shown


def test_live_says_what_runs_may_yet_send_that_is_refused(rolled: Rolled) -> None:
    rolled.begin_and_die()
    request = "pay:\n    schema: {type: object, required: [id], properties: {id: {type: string}}}"
    rolled.change((request, request.replace("string", "integer")), ('"{{ event.id }}"', "7"))
    assert rolled.live() == [(1, "f.buy", "breaking", "may yet send pay: /id must be a whole number")]


def test_live_does_not_name_runs_that_nothing_hits(rolled: Rolled) -> None:
    rolled.begin_and_die()
    rolled.change(("message: served", "message: done"))
    assert rolled.live() == []
    shown = rolled.shop.run("diff", str(rolled.folder / "old"), "--live").stdout
    assert "no run that is not over and no message in a queue is hit" in shown


def test_live_counts_messages_that_nobody_reads(rolled: Rolled) -> None:
    rolled.emit("placed", {"id": "a"})
    rolled.emit("placed", {"id": "b"})
    rolled.change(("to: serve", "to: attend"), ("  serve:", "  attend:"))
    assert rolled.live() == [(2, "shop.f.serve", "breaking", "nobody reads them")]
    assert rolled.waiting("shop.f.serve") == 2


def test_live_counts_messages_that_a_change_may_hit(rolled: Rolled) -> None:
    rolled.emit("placed", {"id": "a"})
    rolled.change(("properties: {id: {type: string}}}}", "properties: {id: {enum: [b]}}}}"))
    [(count, queue, level, text)] = rolled.live()
    assert (count, queue, level) == (1, "shop.f.serve", "unknown")
    assert text == "may not be served, or passed over, because of what changed: placed"


def test_live_without_a_store_or_a_broker_says_so(rolled: Rolled) -> None:
    old = str(rolled.folder / "old")
    missing = rolled.shop.run("diff", old, "--live", "--store", "sqlite:nowhere.db", check=False)
    assert (missing.returncode, "there is no store at" in missing.stderr) == (1, True)
    away = rolled.shop.run("diff", old, "--live", "--broker", "amqp://127.0.0.1:1/", check=False)
    assert (away.returncode, "Traceback" in away.stderr) == (69, False)
    alone = rolled.shop.run("diff", old, "--store", "sqlite:x.db", check=False)
    assert (alone.returncode, "are for --live" in alone.stderr) == (2, True)
