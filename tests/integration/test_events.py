"""The event log with the real command: what came, what flows emitted, by what, and as files."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from project import Shop, stop, wait_for_line

FLOW = """
flow: f
events:
  asked:
    external: true
    schema: {type: object, required: [id], properties: {id: {type: string}, n: {type: integer}, text: {type: string}}}
    subject: "q/{{ event.id }}"
  told: {schema: {type: object, required: [id]}, subject: "q/{{ event.id }}"}
  checked: {schema: {type: object, required: [id]}, subject: "q/{{ event.id }}"}
commands:
  check: {schema: {type: object, required: [id]}, reply: {type: object}, handler: check, timeout: 20s}
routes: [{on: asked, to: tell}]
handlers:
  tell:
    steps:
      - {id: c, command: check, with: {id: "{{ event.id }}"}}
      - {emit: told, with: {id: "{{ event.id }}", n: "{{ (event.n | default(0)) + 1 }}"}}
  check:
    steps: [{emit: checked, with: {id: "{{ command.id }}", by: check}}]
    reply: {}
"""


@pytest.fixture
def shop(place: tuple[str, str | None], tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/f.yaml").write_text(FLOW)
    (tmp_path / "flowrun.yaml").write_text("project: shop\n")
    broker, store = place
    with Shop(tmp_path, broker, root=tmp_path, store=store) as shop:
        yield shop


def tell(shop: Shop, *idents: str, **more: Any) -> None:
    for ident in idents:
        shop.run("emit", "asked", "--data", json.dumps({"id": ident, **more}), "--id", f"m-{ident}", "--source", "/us")
    shop.run("start", "--until-idle", "--quiet")


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def test_a_subjects_story_tells_who_and_why_and_what_is_new(shop: Shop) -> None:
    tell(shop, "1", n=1, text="red \x1b[31m\u202e")
    run, check = (shop.json("runs", "list", "--handler", name)[0]["id"][:8] for name in ("f.tell", "f.check"))

    told = shop.run("events", "chain", "q/1").stdout.splitlines()
    assert [line[24:].strip() for line in told] == [
        "1  asked  from /us",
        'id: "1"',
        "n: 1",
        'text: "red \\u001b[31m�"',
        f"2  checked  by f.check, run {check}, caused by command check",
        'by: "check"',
        f"3  told  by f.tell, run {run}, caused by asked, version 1",
        "n: 1 → 2",
    ]
    assert types(shop.json("events", "chain", "q/1")) == ["asked", "checked", "told"]
    assert types(shop.json("events", "chain", "q/1", "--as-of", "2")) == ["asked", "checked"]
    assert len(shop.json("events", "chain", "q/1", "--as-of", "0s")) == 3
    first = shop.json("events", "list")[0]
    assert types(shop.json("events", "chain", "q/1", "--as-of", first["time"])) == ["asked"]
    early = shop.run("events", "chain", "q/1", "--as-of", "7d", check=False)
    assert (early.returncode, early.stdout) == (1, "")
    assert 'there was no event about "q/1" yet' in early.stderr
    misspelt = shop.run("events", "chain", "q/2", check=False)
    assert misspelt.returncode == 1
    assert 'there is no event about "q/2"; did you mean "q/1"?' in misspelt.stderr


def test_one_event_is_shown_with_what_caused_it_and_what_it_caused(shop: Shop) -> None:
    tell(shop, "1")
    asked, checked, told = shop.json("events", "list")
    [run] = shop.json("runs", "list", "--handler", "f.tell")

    shown = shop.json("events", "show", "m-1")
    assert shown["cause"] is None
    assert shown["run"] is None
    assert shown["began"] == [{"id": run["id"], "handler": "f.tell", "state": "completed"}]
    assert [event["id"] for event in shown["caused"]] == [told["id"]]
    shown = shop.json("events", "show", told["id"])
    assert shown["run"] == {"id": run["id"], "handler": "f.tell", "state": "completed"}
    assert shown["cause"] == {"id": "m-1", "kind": "event", "type": "asked", "source": "/us", "subject": "q/1"}
    assert shop.json("events", "show", checked["id"])["cause"]["kind"] == "command"

    text = shop.run("events", "show", told["id"]).stdout
    assert f"emitted by  f.tell, run {run['id']} (completed)" in text
    assert "caused by   asked about q/1, version 1  (m-1)" in text
    assert '{\n  "id": "1",\n  "n": 1\n}\n' in text
    text = shop.run("events", "show", "m-").stdout
    assert "emitted by  outside" in text
    assert f"{run['id'][:8]}   f.tell   completed" in text
    assert told["id"] in text
    assert asked["id"] == "m-1"

    shop.run("emit", "asked", "--data", '{"id": "1"}', "--id", "m-1", "--source", "/them")
    shop.run("start", "--until-idle", "--quiet")
    twice = shop.run("events", "show", "m-1", check=False)
    assert twice.returncode == 1
    assert "/us" in twice.stderr
    assert "--source" in twice.stderr
    assert shop.json("events", "show", "m-1", "--source", "/them")["source"] == "/them"
    assert shop.run("events", "show", "x", check=False).returncode == 1


def test_listings_are_filtered(shop: Shop) -> None:
    tell(shop, "1", "2")

    def ids(*filters: str) -> list[str]:
        return [f"{event['subject'][2:]} {event['type']}" for event in shop.json("events", "list", *filters)]

    assert len(ids()) == 6
    assert ids("--type", "asked") == ["1 asked", "2 asked"]
    assert sorted(ids("--type", "*")) == sorted(ids("--type", "#")) == sorted(ids())
    assert ids("--type", "told", "--subject", "q/2") == ["2 told"]
    assert ids("--source", "/us") == ["1 asked", "2 asked"]
    assert sorted(ids("--correlation", "m-1")) == ["1 asked", "1 checked", "1 told"]
    assert ids("--to", "1h") == []
    assert len(ids("--from", "1h", "--to", "0s")) == 6
    assert len(ids("--limit", "4")) == 4
    assert ids("--from", "2020-01-01T00:00:00+01:00", "--to", "2020-01-02T00:00:00Z") == []
    listed = shop.run("events", "list", "--type", "told", "--subject", "q/1").stdout.splitlines()
    assert listed[0].split() == ["TIME", "TYPE", "SUBJECT", "VERSION", "BY", "ID"]
    assert listed[1].split()[1:5] == ["told", "q/1", "3", "f.tell"]
    for mistake, said in (
        (("--type", "tolt"), 'there is no event of type "tolt"; did you mean "told"?'),
        (("--subject", "q/11"), 'there is no event about "q/11"; did you mean "q/1"?'),
    ):
        done = shop.run("events", "list", *mistake)
        assert done.stdout == "No events.\n"
        assert said in done.stderr
    wrong = shop.run("events", "list", "--from", "yesterday", check=False)
    assert wrong.returncode == 2
    assert '"yesterday" is neither a time like' in wrong.stderr


def test_who_follows_sees_events_as_they_come_until_ctrl_c(shop: Shop) -> None:
    tell(shop, "1")
    following = shop.begin("events", "list", "--follow", "--type", "*", "--json")
    other = shop.begin("events", "list", "--follow", "--type", "told")
    for process in (following, other):
        wait_for_line(process, "told")
    tell(shop, "2")
    line = wait_for_line(following, "told")[-1]
    assert json.loads(line)["subject"] == "q/2"
    assert "q/2" in wait_for_line(other, "told")[-1]
    for process in (following, other):
        assert stop(process, signal.SIGINT) == (0, "")


def test_what_was_exported_is_imported_elsewhere_once(shop: Shop, tmp_path: Path) -> None:
    tell(shop, "1", "2")
    assert shop.run("events", "export", "all.jsonl").stdout == "exported 6 events to all.jsonl\n"
    exported = (tmp_path / "all.jsonl").read_text()
    assert shop.run("events", "export").stdout == exported
    assert len(shop.run("events", "export", "--type", "told", "--subject", "q/1").stdout.splitlines()) == 1
    assert shop.run("events", "import", "all.jsonl").stdout == "imported 0 events, 6 were there already\n"

    (tmp_path / "more.jsonl").write_text('\n{"id":"x","type":"t","source":"/s","time":"2026-11-24T09:00:00+01:00",')
    with (tmp_path / "more.jsonl").open("a") as more:
        more.write(f'"data":{{"big":{2**80}}}}}\n{exported}')
    done = shop.run("events", "import", "-", input=(tmp_path / "more.jsonl").read_text())
    assert done.stdout == "imported 1 event, 6 were there already\n"
    shown = shop.run("events", "list", "--type", "t", "--json").stdout
    assert str(2**80) in shown
    assert json.loads(shown)[0]["time"] == "2026-11-24T08:00:00.000Z"

    with Shop(tmp_path / "new", root=tmp_path) as elsewhere:
        (tmp_path / "new").mkdir()
        elsewhere.run("start", "--until-idle", "--quiet")
        assert elsewhere.run("events", "import", "all.jsonl").stdout == "imported 6 events\n"
        there = [json.loads(line) for line in elsewhere.run("events", "export").stdout.splitlines()]
        here = [json.loads(line) for line in exported.splitlines()]
        assert [{**event, "position": 0} for event in there] == [{**event, "position": 0} for event in here]
        asked = elsewhere.run("events", "chain", "q/1").stdout
        assert "told  from /flowrun/shop/f, caused by asked, version 1" in asked, "its runs are not there"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ('{"id": "1"}', "missing required field `type`"),
        ('{"id":"","type":"t","source":"s","time":"2026-11-24T09:00:00Z","data":1}', "`id` is empty"),
        ('{"id":"1","type":"t","source":"s","time":"now","data":1}', "`time` is no RFC 3339 time"),
        ("[" * 100_000, ""),
    ],
)
def test_a_fault_in_any_line_is_said_and_nothing_is_imported(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/f.yaml").write_text(FLOW)
    good = '{"id":"g","type":"t","source":"s","time":"2026-11-24T09:00:00Z","data":1}'
    (tmp_path / "in.jsonl").write_text(f"{good}\n{line}\n")
    with Shop(tmp_path, root=tmp_path) as shop:
        assert shop.run("events", "list", check=False).returncode == 1  # there is no store yet
        shop.run("start", "--until-idle", "--quiet")
        done = shop.run("events", "import", "in.jsonl", check=False)
        assert done.returncode == 1
        assert "in.jsonl:2: " in done.stderr
        assert said in done.stderr
        assert "nothing was imported" in done.stderr
        assert shop.run("events", "list").stdout == "No events.\n"
        assert shop.run("events", "import", "nowhere.jsonl", check=False).returncode == 2
        assert shop.run("events", "export", "no/where.jsonl", check=False).returncode == 2
