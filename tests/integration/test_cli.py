"""The commands, as a user types them, on the embedded broker."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from project import Shop, stop, wait_for_line, wait_until

ORDER = {
    "order_id": "C-1",
    "customer": "alice",
    "email": "alice@example.com",
    "sku": "widget",
    "quantity": 1,
    "unit_price": 100,
}


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with Shop(tmp_path) as shop:
        yield shop


def test_the_demo_orders_end_as_told(shop: Shop) -> None:
    shop.run("emit", "order.requested", "--file", "flows/demo-orders.jsonl")
    told = shop.run("start", "--until-idle").stderr

    assert "attempt 2 failed, again in 200 ms  bank_unavailable" in told
    assert "↶ create  undo: use order.reject" in told
    statuses = dict(shop.query("orders", "SELECT order_id, status FROM orders"))
    assert list(statuses.values()).count("confirmed") == 3
    assert list(statuses.values()).count("rejected") == 2
    errors = {run["error"]["type"] for run in shop.json("runs", "list") if run["error"]}
    assert errors == {"insufficient_stock", "insufficient_funds"}


def test_an_event_emitted_before_the_first_start_waits_for_it(shop: Shop) -> None:
    ident = shop.run("emit", "order.requested", "--data", json.dumps(ORDER)).stdout.strip()
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", ident)

    shop.run("start", "--until-idle")

    [run] = shop.json("runs", "list", "--handler", "orders.place")
    assert run["trigger"] == {
        "id": ident,
        "type": "order.requested",
        "source": "/flowrun/shop/cli",
        "subject": "order/C-1",
    }
    assert run["state"] == "completed"


def test_emit_in_another_terminal_feeds_a_running_start(shop: Shop) -> None:
    worker = shop.start()
    wait_for_line(worker, "ready")

    shop.run("emit", "order.requested", "--data", json.dumps(ORDER))

    wait_for_line(worker, "orders.confirm  completed")
    code, rest = stop(worker)
    assert code == 0
    assert "stopped:" in rest
    sent = "SELECT json_extract(trigger, '$.time'), started_at FROM runs WHERE handler = 'orders.place'"
    [(time, started_at)] = shop.query("shop", sent)
    # The promise is 100 ms (a benchmark prints it); here just that nobody waits for a poll of seconds.
    assert (datetime.fromisoformat(started_at) - datetime.fromisoformat(time)).total_seconds() < 2


def test_the_payload_can_come_from_a_file_or_standard_input(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text(json.dumps(ORDER))
    shop.run("emit", "order.requested", "--data", f"@{tmp_path}/order.json", "--id", "one")
    shop.run("emit", "order.requested", "--data", "-", "--id", "two", input=json.dumps(ORDER | {"order_id": "C-2"}))
    shop.run("start", "--until-idle")

    assert {run["trigger"]["id"] for run in shop.json("runs", "list", "--handler", "orders.place")} == {"one", "two"}


def test_sigterm_drains_and_the_next_start_goes_on(shop: Shop, tmp_path: Path) -> None:
    orders = tmp_path / "orders.jsonl"
    orders.write_text("".join(json.dumps(ORDER | {"order_id": f"C-{n}"}) + "\n" for n in range(50)))
    shop.run("emit", "order.requested", "--file", str(orders))
    worker = shop.start()
    wait_for_line(worker, "orders.place  completed")

    code, output = stop(worker, signal.SIGTERM)

    assert code == 0, output
    assert shop.query("shop", "SELECT count(*) FROM runs WHERE owner IS NOT NULL") == [(0,)]
    shop.run("start", "--until-idle", "--quiet")
    assert shop.query("orders", "SELECT status, count(*) FROM orders GROUP BY status") == [("confirmed", 50)]
    calls = "SELECT max(n) FROM (SELECT count(*) AS n FROM calls GROUP BY idempotency_key)"
    assert shop.query("payment", calls) == [(1,)], "a drained run repeats nothing"


def test_runs_show_reads_like_a_timeline(shop: Shop) -> None:
    carol = ORDER | {"customer": "carol"}
    shop.run("emit", "order.requested", "--data", json.dumps(carol))
    shop.run("start", "--until-idle")
    [run] = shop.json("runs", "list", "--handler", "payments.charge")

    text = shop.run("runs", "show", run["id"][:8]).stdout
    shown = shop.json("runs", "show", run["id"])

    lines = [line.split("  ", 1)[1] for line in text.splitlines() if re.match(r"\d{4}-", line)]
    assert '"amount":100' in next(line for line in text.splitlines() if line.startswith("about"))
    assert f"of {shown['correlation_id']}" in next(line for line in text.splitlines() if line.startswith("cause"))
    assert set(shown["data"]) >= {"order_id", "amount"}
    assert lines[0] == "begins"
    assert lines[1].startswith("✓ order  use order.status")
    assert lines[2] == "- 2  fail order_not_payable  skipped"
    assert lines[3].startswith("✓ open  use payment.open")
    assert lines[4].startswith("↻ take  attempt 1 failed, again in 100 ms  bank_unavailable")
    assert lines[5].startswith("↻ take  attempt 2 failed")
    assert "attempt 3" in lines[6]
    assert lines[-1] == "completed"
    assert [step["id"] for step in shown["steps"]] == ["order", "2", "open", "take", "4", "5"]
    assert shown["steps"][3]["attempts"] == 3
    assert set(shown["steps"][0]) == {
        "id", "action", "state", "attempts", "started_at", "finished_at", "output", "error",
    }  # fmt: skip
    assert shown["compensations"] == []


def test_two_runners_share_a_store(shop: Shop, tmp_path: Path) -> None:
    orders = tmp_path / "orders.jsonl"
    orders.write_text("".join(json.dumps(ORDER | {"order_id": f"C-{n}"}) + "\n" for n in range(60)))
    first, second = shop.start("--quiet"), shop.start("--quiet")
    shop.run("emit", "order.requested", "--file", str(orders))
    confirmed = "SELECT count(*) FROM orders WHERE status = 'confirmed'"

    wait_until(lambda: shop.query("orders", confirmed) == [(60,)], alive=first)

    assert stop(first)[0] == 0
    assert stop(second)[0] == 0
    shop.run("start", "--until-idle", "--quiet")
    assert shop.query("shop", "SELECT state, count(*) FROM runs GROUP BY state") == [("completed", 300)]


def test_a_new_project_works_as_printed(tmp_path: Path) -> None:
    printed = Shop(tmp_path, root=tmp_path).run("init", "demo").stdout
    commands = [line.strip() for line in printed.splitlines() if line.startswith("  flowrun ")]
    assert commands == [
        "flowrun validate",
        "flowrun start",
        'flowrun emit greeting.requested --data \'{"name": "Ada"}\'',
    ]

    with Shop(tmp_path / "demo" / ".flowrun", root=tmp_path / "demo") as project:
        assert project.run("validate").stdout == "1 file valid.\n"
        worker = project.start()
        wait_for_line(worker, "ready")
        project.run("emit", "greeting.requested", "--data", '{"name": "Ada"}')
        told = wait_for_line(worker, "hello.greet  completed")
        assert any("Hello, Ada!" in line for line in told)
        assert stop(worker, signal.SIGINT)[0] == 0
    modeline = (tmp_path / "demo" / "flows" / "hello.yaml").read_text().splitlines()[0]
    assert modeline == "# yaml-language-server: $schema=../schemas/flow.schema.json"


def test_plugins_are_listed_and_begun(tmp_path: Path) -> None:
    Shop(tmp_path, root=tmp_path).run("init", "demo")
    project = Shop(tmp_path / "demo", root=tmp_path / "demo")

    project.run("plugins", "new", "parcels.send")

    listed = {handler["name"]: handler for handler in project.json("plugins", "list")}
    assert {"log", "http.request", "sql.query", "sql.execute", "email.send", "parcels.send"} <= set(listed)
    assert listed["greetings.compose"]["location"].startswith("plugins/greetings.py:")
    assert listed["greetings.compose"]["effect"] is False
    assert "(name: string) -> Greeting" in project.run("plugins", "list").stdout
