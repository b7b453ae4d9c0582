"""`flowrun diff`: what a change of the flow files breaks, as the one who deploys it reads it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from runner.cli.diff import command

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
FLOW = """\
flow: shop
events:
  placed:
    external: true
    schema: {$ref: ../schemas/placed.json}
  paid:
    schema: {type: object, required: [id], properties: {id: {type: string}}}
commands:
  pay:
    schema: {type: object, required: [id], properties: {id: {type: string}}}
    reply: {type: object, required: [ok], properties: {ok: {type: boolean}}}
    handler: charge
routes:
  - {on: placed, to: fulfil}
ingress:
  place: {http: "POST /orders/{id}", emit: placed, with: {id: "{{ request.path.id }}"}}
handlers:
  fulfil:
    steps:
      - {id: pay, command: pay, with: {id: "{{ event.id }}"}, irreversible: true}
      - {id: note, use: notes.write, with: {text: "{{ event.id }}"}}
      - {emit: paid, with: {id: "{{ event.id }}"}}
  charge:
    steps: [{use: log, with: {message: pay}}]
    reply: {ok: true}
"""
PLACED = {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}
PLUGIN = """\
from runner import Context, handler


@handler("notes.write", effect=False)
def write(ctx: Context, *, text: str) -> None:
    "Write it down."
"""


class Both:
    """A project before and after, in two folders."""

    def __init__(self, folder: Path) -> None:
        self.old, self.new = folder / "old", folder / "new"
        for root in (self.old, self.new):
            for name, text in {
                "flows/shop.yaml": FLOW,
                "schemas/placed.json": json.dumps(PLACED, indent=2),
                "plugins/notes.py": PLUGIN,
            }.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)

    def change(self, old: str, new: str, name: str = "flows/shop.yaml") -> None:
        """Replace a text in the new files."""
        path = self.new / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def diff(self, *options: str) -> Result:
        return CliRunner().invoke(command, [str(self.old), str(self.new), *options], catch_exceptions=False)

    def changes(self, *options: str) -> list[Any]:
        shown = json.loads(self.diff("--json", *options).stdout)
        return [c for c in shown["changes"] if c["level"] != "compatible"]


@pytest.fixture
def both(tmp_path: Path) -> Both:
    return Both(tmp_path)


def test_the_same_files_in_another_folder_break_nothing(both: Both) -> None:
    done = both.diff()
    assert (done.exit_code, done.output) == (0, "Nothing changed that anybody else could notice.\n")


def test_a_narrower_event_breaks_its_handlers_backward_at_its_place(both: Both) -> None:
    both.change('"type": "string"', '"type": "string",\n      "minLength": 3', "schemas/placed.json")
    done = both.diff()
    assert done.exit_code == 1
    assert (
        done.output
        == """\
messages
  event placed
    ✗ breaks backward: /id must have 3 characters or more
      --> schemas/placed.json:9:7
      {"id": ""} fitted, and does not any more
      hits shop.fulfil: what was sent before, or by who is not updated, is refused
    ✓ breaks nothing forward: who reads as before can go on
      --> flows/shop.yaml:5:13

1 breaking, 0 undecided, 1 compatible.
"""
    )


def test_a_wider_event_breaks_those_who_are_not_updated(both: Both) -> None:
    both.change(
        "required: [id], properties: {id: {type: string}}}\ncommands", "properties: {id: {type: string}}}\ncommands"
    )
    [change] = both.changes()
    assert (change["kind"], change["name"], change["direction"]) == ("event", "paid", "forward")
    assert (change["pointer"], change["examples"], change["hits"]) == ("/id", [{}], ["other programs"])
    assert both.diff("--compatibility", "backward").exit_code == 0


def test_a_reply_is_read_by_those_who_send_the_command(both: Both) -> None:
    both.change("reply: {type: object, required: [ok],", "reply: {type: object,")
    [change] = both.changes()
    assert (change["kind"], change["direction"], change["hits"]) == ("reply", "forward", ["shop.fulfil"])


def test_a_request_is_read_by_the_handler(both: Both) -> None:
    both.change(
        "  pay:\n    schema: {type: object, required: [id], properties: {id: {type: string}}}",
        "  pay:\n    schema: {type: object, required: [id], properties: {id: {enum: [a, b]}}}",
    )
    both.change('command: pay, with: {id: "{{ event.id }}"}', "command: pay, with: {id: a}")
    [change] = both.changes()
    assert (change["kind"], change["direction"], change["hits"]) == ("request", "backward", ["shop.charge"])


def test_an_optional_field_under_an_open_schema_may_break_and_counts_when_strict(both: Both) -> None:
    both.change('"string"\n    }', '"string"\n    },\n    "note": {"type": "string"}', "schemas/placed.json")
    assert [change["level"] for change in both.changes()] == ["unknown"]
    assert both.diff().exit_code == 0
    assert both.diff("--strict").exit_code == 1


def test_an_event_under_another_name_is_recognised(both: Both) -> None:
    both.change("paid", "settled")
    [change] = both.changes()
    assert change["text"] == 'is gone, or called "settled" now: it is published no more'
    assert (change["level"], change["place"]["project"], change["place"]["line"]) == ("unknown", "old", 6)


def test_an_event_that_a_handler_took_breaks_what_waits(both: Both) -> None:
    both.change("placed", "ordered")
    both.change("schemas/ordered.json", "schemas/placed.json")
    [event] = [change for change in both.changes() if change["kind"] == "event"]
    assert event["text"] == (
        'is gone, or called "ordered" now: what waits in the queues of its handlers is a dead letter, unknown_event'
    )
    assert event["hits"] == ["shop.fulfil", "other programs that read it"]


def test_a_command_that_another_handler_does_leaves_its_old_queue_bound(both: Both) -> None:
    both.change("handler: charge", "handler: debit")
    both.change("  charge:", "  debit:")
    [change] = both.changes()
    assert (change["kind"], change["level"], change["hits"]) == ("command", "breaking", ["shop.fulfil"])
    assert "what waits in new.shop.charge is not done" in change["text"]
    assert change["place"] == {"project": "new", "filename": "flows/shop.yaml", "line": 12, "column": 14}


def test_a_handler_that_is_gone_leaves_its_queue(both: Both) -> None:
    both.change("to: fulfil", "to: serve")
    both.change("  fulfil:", "  serve:")
    [change] = both.changes()
    assert (change["kind"], change["name"], change["hits"]) == ("handler", "shop.fulfil", ["placed"])
    assert change["text"].startswith('is gone, or called "shop.serve" now: nobody reads what waits in new.shop.fulfil')


def test_a_route_that_is_gone_passes_over_what_waits(both: Both) -> None:
    both.change("on: placed", "on: paid")
    [change] = [change for change in both.changes() if change["kind"] == "route"]
    assert (change["name"], change["level"]) == ("placed → shop.fulfil", "breaking")


def test_a_route_with_another_condition_cannot_be_decided(both: Both) -> None:
    both.change("on: placed,", "on: placed, when: event.id != '',")
    [change] = both.changes()
    assert (change["kind"], change["level"]) == ("route", "unknown")


def test_an_endpoint_that_only_calls_its_parameter_otherwise_is_the_same(both: Both) -> None:
    both.change("POST /orders/{id}", "POST /orders/{order}")
    both.change("request.path.id", "request.path.order")
    assert both.changes() == []
    both.change("POST /orders/", "PUT /orders/")
    [change] = both.changes()
    assert (change["kind"], change["name"]) == ("endpoint", "POST /orders/{id}")


def test_a_plugin_that_old_runs_call_and_that_is_gone_stops_them(both: Both) -> None:
    both.change("notes.write", "notes.jot")
    both.change("notes.write", "notes.jot", "plugins/notes.py")
    [change] = both.changes()
    assert (change["kind"], change["hits"]) == ("run", ["shop.fulfil", "shop.charge"])
    assert 'FR202, no handler named "notes.write"' in change["text"]
    assert change["place"] == {"project": "old", "filename": "flows/shop.yaml", "line": 21, "column": 25}
    assert both.changes("--no-plugins") == []


def test_another_name_of_the_project_is_another_topology(both: Both) -> None:
    (both.old / "flowrun.yaml").write_text("project: shop\n")
    (both.new / "flowrun.yaml").write_text("project: market\n")
    [change] = both.changes()
    assert (change["kind"], change["name"], change["level"]) == ("project", "shop", "breaking")
    assert change["place"] == {"project": "new", "filename": "flowrun.yaml", "line": 1, "column": 10}
    (both.old / "flowrun.yaml").unlink()
    assert [change["level"] for change in both.changes()] == ["unknown"]


def test_a_project_with_faults_is_shown_as_validate_shows_it(both: Both) -> None:
    (both.old / "flows/shop.yaml").write_text(FLOW.replace("to: fulfil", "to: fulfill"))
    done = both.diff()
    assert done.exit_code == 1
    assert 'did you mean "fulfil"?' in done.stderr
    assert f"{both.old} has errors: nothing can be said of what it breaks." in done.stderr
    assert done.stdout == ""


def test_the_example_in_the_docs_is_what_it_prints(tmp_path: Path) -> None:
    shown = re.search(r"\$ flowrun diff \.\./before    # exit 1\n(.*?)```", OPERATIONS, re.DOTALL)
    assert shown is not None
    for folder in ("flows", "plugins", "schemas"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "flowrun.yaml", tmp_path)
    before = tmp_path / "schemas" / "order-placed.schema.json"
    before.write_text(
        before.read_text().replace('"total": {"type": "integer", "minimum": 1', '"total": {"type": "integer"')
    )
    done = CliRunner().invoke(command, [str(tmp_path), str(ROOT)], catch_exceptions=False)
    assert (done.exit_code, done.output) == (1, shown[1])


def test_a_folder_that_is_none_is_a_fault_of_usage(both: Both, tmp_path: Path) -> None:
    from runner.errors import SettingsError

    with pytest.raises(SettingsError, match="is not a folder"):
        CliRunner().invoke(command, [str(tmp_path / "nowhere"), str(both.new)], catch_exceptions=False)
    done = CliRunner().invoke(command, [str(both.old), str(both.new), "-C", str(both.new)])
    assert (done.exit_code, "give one of them" in done.output) == (2, True)
