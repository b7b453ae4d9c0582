"""Commands as users have them: flows that call each other, `flowrun call`, and programs that are not flowrun."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from project import PATIENCE_S, Shop, stop, wait_for_line, wait_until

SALES = """
flow: sales
events: {order.placed: {external: true}}
routes: [{on: order.placed, to: sell}]
handlers:
  sell:
    steps:
      - id: charge
        command: payment.charge
        with: {order: "{{ event.order }}"}
        compensate: {command: payment.refund, with: {order: "{{ event.order }}"}, if: attempted}
      - id: ship
        use: work.do
        with: {name: "ship {{ event.order }}", how: "{{ event.ship | default('well') }}"}
"""
BANK = """
flow: bank
commands:
  payment.charge:
    handler: charge
    timeout: 10m
    schema: {type: object, required: [order], properties: {order: {type: string}, how: {type: string}}}
    reply: {type: object, required: [charge], properties: {charge: {type: string}}}
  payment.refund: {handler: refund, timeout: 10m}
handlers:
  charge:
    steps:
      - id: note
        use: work.do
        with: {name: "charge {{ command.order }}"}
        compensate: {use: work.do, with: {name: undo}}
      - {id: think, use: work.do, with: {name: think, how: "{{ command.how | default(command.order) }}"}}
    reply: {charge: "of {{ command.order }} {{ uuid() }}"}
  refund: {steps: [{use: work.do, with: {name: "refund {{ command.order }}"}}]}
"""
LABELS = """
flow: labels
events: {label.wanted: {external: true}, label.urgent: {external: true}}
commands: {label.print: {external: true, timeout: 10m, reply: {type: object}}}
routes: [{on: label.wanted, to: patient}, {on: label.urgent, to: hasty}]
handlers:
  patient: {steps: [{id: print, command: label.print, with: {name: "{{ event.name }}"}}]}
  hasty:
    steps:
      - id: print
        command: label.print
        with: {name: "{{ event.name }}"}
        timeout: 300ms
        catch: [{on: [timeout], do: [{use: work.do, with: {name: "gave up {{ event.name }}"}}]}]
"""
PLUGIN = """
import asyncio, os
from pathlib import Path
from runner import Context, TerminalError, handler

HERE = Path(os.environ["SHOP_DATA"])

@handler("work.do")
async def do(ctx: Context, *, name: str, how: str = "well") -> None:
    with (HERE / "notes").open("a") as file:
        file.write(name + "\\n")
    if how == "declined":
        raise TerminalError("card_declined", "no credit", code=51)
    if how == "crash":
        os._exit(3)
    if how.startswith("hang"):
        while not (HERE / "go on").exists():
            await asyncio.sleep(0.01)
"""


class Works(Shop):
    """The project above, in a folder of the test's own."""

    def notes(self) -> list[str]:
        """What was done, in order; of what only thinks, nothing."""
        path = self.folder / "data" / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line != "think"]

    def thinks(self) -> bool:
        path = self.folder / "data" / "notes"
        return path.exists() and "think" in path.read_text()

    def emit(self, event: str, *payloads: dict[str, Any]) -> None:
        self.run("emit", event, "--file", "-", input="".join(json.dumps(payload) + "\n" for payload in payloads))

    def call(self, *arguments: str, order: Any = "A-1") -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a call of payment.charge."""
        done = self.run("call", "payment.charge", "--data", json.dumps({"order": order}), *arguments, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    def go_on(self) -> None:
        (self.folder / "data" / "go on").touch()

    def states(self) -> dict[str, str]:
        """The state of each handler's runs; with several, of any."""
        return dict(self.query("shop", "SELECT handler, state FROM runs"))

    def run_in(self, state: str, handler: str) -> dict[str, Any]:
        """What `runs show` tells of the handler's run in this state."""
        sql = f"SELECT id FROM runs WHERE handler = '{handler}' AND state = '{state}'"
        [(run_id,)] = self.query("shop", sql)
        run: dict[str, Any] = self.json("runs", "show", run_id)
        return run


BROKERS = ["embedded", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]


@pytest.fixture
def works(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Works]:
    """On RabbitMQ, unless a test says where."""
    broker = getattr(request, "param", "rabbitmq")
    texts = {"flows/sales.yaml": SALES, "flows/bank.yaml": BANK, "flows/labels.yaml": LABELS, "plugins/work.py": PLUGIN}
    texts["flowrun.yaml"] = "project: shop\nbroker: ${FLOWRUN_BROKER}\nstore: ${FLOWRUN_STORE}\n"
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "data").mkdir()
    url = request.getfixturevalue("rabbit_url") if broker == "rabbitmq" else "embedded:"
    with Works(tmp_path, url, root=tmp_path) as works:
        yield works


everywhere = pytest.mark.parametrize("works", BROKERS, indirect=True)


# --- flows that call each other


@everywhere
def test_a_saga_charges_by_a_command_of_another_flow_and_is_undone_by_one(works: Works) -> None:
    works.emit("order.placed", {"order": "good"}, {"order": "bad", "ship": "declined"})

    works.run("start", "--until-idle", "--quiet")

    assert sorted(works.notes()) == ["charge bad", "charge good", "refund bad", "ship bad", "ship good"]
    [charge, _] = works.run_in("completed", "sales.sell")["steps"]
    assert (charge["action"], charge["output"]["charge"][:8]) == ("command", "of good ")
    undone = works.run_in("compensated", "sales.sell")
    [refund] = undone["compensations"]
    assert (refund["action"], refund["state"], refund["attempts"]) == ("command", "completed", 1)
    assert undone["error"]["type"] == "card_declined"


@everywhere
def test_a_command_that_no_queue_takes_fails_at_once(works: Works) -> None:
    works.emit("label.wanted", {"name": "x"})
    works.run("start", "--until-idle", "--quiet")

    error = works.run_in("failed", "labels.patient")["error"]
    assert (error["type"], error["step"]) == ("no_handler", "print")
    assert "label.print" in error["message"]
    called = works.run("call", "label.print", "--data", "{}", "--json", check=False)
    assert (called.returncode, json.loads(called.stdout)["error"]["type"]) == (1, "no_handler")


@everywhere
def test_a_caller_that_is_killed_while_it_waits_goes_on_with_the_answer_that_came_meanwhile(works: Works) -> None:
    caller, callee = works.start("sales"), works.start("bank")
    for process in (caller, callee):
        wait_for_line(process, "ready")
    works.emit("order.placed", {"order": "hang-1"})
    wait_until(works.thinks, alive=callee)

    caller.kill()
    caller.wait()
    works.go_on()
    wait_until(lambda: works.states().get("bank.charge") == "completed", alive=callee)
    assert stop(callee)[0] == 0
    assert works.states()["sales.sell"] == "waiting"

    works.run("start", "--until-idle", "--quiet")
    assert works.states() == {"sales.sell": "completed", "bank.charge": "completed"}
    assert works.notes() == ["charge hang-1", "ship hang-1"]


@everywhere
def test_a_callee_that_is_killed_midway_is_taken_up_again_and_answers(works: Works) -> None:
    caller, callee = works.start("sales"), works.start("bank")
    for process in (caller, callee):
        wait_for_line(process, "ready")
    works.emit("order.placed", {"order": "hang-1"})
    wait_until(works.thinks, alive=callee)

    callee.kill()
    callee.wait()
    works.go_on()
    again = works.start("bank")

    wait_until(lambda: works.states().get("sales.sell") == "completed", alive=again)
    assert works.notes() == ["charge hang-1", "ship hang-1"], "what is recorded is not done again"
    for process in (caller, again):
        assert stop(process)[0] == 0


# --- flowrun call


@everywhere
def test_call_prints_the_result_or_the_error_and_its_exit_code_says_which(works: Works) -> None:
    worker = works.start()
    wait_for_line(worker, "ready")

    code, out, _ = works.call("--id", "c-1")
    assert (code, json.loads(out)["charge"][:7]) == (0, "of A-1 ")
    again, told, _ = works.call("--id", "c-1", "--json")
    assert (again, json.loads(told)) == (0, {"result": json.loads(out)}), "the same command, answered alike"

    code, out, err = works.call(order="declined")
    assert (code, out) == (1, "")
    assert "card_declined: no credit" in err
    code, out, _ = works.call("--json", order="declined")
    error = {"type": "card_declined", "message": "no credit", "retryable": False, "details": {"code": 51}}
    assert (code, json.loads(out)) == (1, {"error": {**error, "step": None}})

    code, out, err = works.call(order=7)
    assert (code, out) == (1, "")
    assert "nothing was sent" in err

    code, out, _ = works.call("--timeout", "300ms", "--json", order="hang-1")
    assert (code, json.loads(out)["error"]["type"]) == (3, "timeout")
    wait_until(lambda: works.notes().count("undo") == 3, alive=worker)
    assert works.notes().count("charge A-1") == 1
    assert stop(worker)[0] == 0


@pytest.mark.parametrize("works", ["embedded"], indirect=True)
def test_call_says_what_there_is_where_there_is_no_such_command(works: Works) -> None:
    done = works.run("call", "payment.chargo", "--data", "{}", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "payment.charge" in done.stderr
    assert works.run("call", "payment.charge", "--data", "{}", "--timeout", "soon", check=False).returncode == 2


@pytest.mark.parametrize("works", ["embedded"], indirect=True)
def test_call_with_nobody_there_waits_no_longer_than_it_says_and_what_it_asked_is_not_done_later(works: Works) -> None:
    code, _, err = works.call("--timeout", "300ms")
    assert (code, "timeout" in err) == (3, True)
    works.run("start", "--until-idle", "--quiet")
    assert (works.notes(), works.states()) == ([], {})


@pytest.mark.parametrize("works", ["embedded"], indirect=True)
def test_a_command_that_its_processes_die_with_is_answered_crashed_and_undone(works: Works) -> None:
    worker = works.start()
    wait_for_line(worker, "ready")
    code, out, _ = works.call("--json", order="crash")
    assert (code, json.loads(out)["error"]["type"]) == (1, "crashed")
    assert works.notes() == ["charge crash", "undo"]
    assert stop(worker)[0] == 0


# --- programs that are not flowrun


class Client:
    """A plain client: pika, which knows nothing of flowrun."""

    def __init__(self, url: str) -> None:
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.answers = self.channel.queue_declare("", exclusive=True).method.queue

    def ask(self, body: Any, **properties: Any) -> None:
        """Send payment.charge."""
        properties.setdefault("reply_to", self.answers)
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.channel.basic_publish("shop.commands", "payment.charge", payload, pika.BasicProperties(**properties))

    def next(self, queue: str | None = None) -> tuple[Any, Any]:
        """The properties and the payload of the next message; waits for it."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            method, properties, body = self.channel.basic_get(queue or self.answers, auto_ack=True)
            if method is not None:
                return properties, json.loads(body)
            self.connection.process_data_events(time_limit=0.01)
        raise AssertionError("nothing came")

    def print_labels(self) -> None:
        """Be the one that does label.print, with a queue of its own."""
        self.channel.queue_declare("printer")
        self.channel.queue_bind("printer", "shop.commands", "label.print")

    def answer(self, command: Any, body: Any, **headers: str) -> None:
        """Answer a command, given its properties."""
        properties = pika.BasicProperties(correlation_id=command.correlation_id, headers=headers)
        self.channel.basic_publish("", command.reply_to, json.dumps(body).encode(), properties)


@pytest.fixture
def client(works: Works) -> Iterator[Client]:
    client = Client(works.broker)
    yield client
    client.connection.close()


@pytest.mark.rabbitmq
def test_a_plain_client_calls_a_command_and_gets_the_result_or_the_error(works: Works, client: Client) -> None:
    worker = works.start()
    wait_for_line(worker, "ready")

    client.ask({"order": "A-1"}, message_id="m-1", correlation_id="mine-1")
    properties, body = client.next()
    assert (properties.correlation_id, body["charge"][:7]) == ("mine-1", "of A-1 ")
    assert (properties.type, properties.app_id) == ("payment.charge.reply", "flowrun/shop")
    assert properties.content_type == "application/json"
    assert "flowrun-status" not in (properties.headers or {})

    client.ask({"order": "A-1"}, message_id="m-1", correlation_id="mine-1")
    assert client.next()[1] == body, "the same message: executed once, answered alike"

    client.ask({"order": "A-2"}, correlation_id="without-an-id")
    properties, second = client.next()
    assert (properties.correlation_id, second["charge"][:7]) == ("without-an-id", "of A-2 ")
    client.ask({"order": "A-2"}, correlation_id="without-an-id")
    assert client.next()[1] == second, "its correlation id is its id"

    client.ask({"order": "A-3"}, message_id="m-3")
    assert client.next()[0].correlation_id == "m-3", "it has no other"

    client.ask({"order": "declined"}, message_id="m-4", correlation_id="mine-4")
    properties, body = client.next()
    assert (properties.correlation_id, properties.headers) == ("mine-4", {"flowrun-status": "failed"})
    assert body == {"type": "card_declined", "message": "no credit", "retryable": False, "details": {"code": 51}}

    for n, invalid in enumerate((b"{", {"order": 7}, {}, b"\xff\x00")):
        client.ask(invalid, message_id=f"bad-{n}", correlation_id=f"bad-{n}")
        properties, body = client.next()
        assert (properties.correlation_id, properties.headers) == (f"bad-{n}", {"flowrun-status": "failed"})
        assert (body["type"], body["retryable"]) == ("invalid_input", False)

    client.ask({"order": "A-5"}, message_id="m-5", reply_to=None)
    wait_until(lambda: "charge A-5" in works.notes(), alive=worker)
    assert stop(worker)[0] == 0
    charges = sorted(note for note in works.notes() if note.startswith("charge"))
    assert charges == ["charge A-1", "charge A-2", "charge A-3", "charge A-5", "charge declined"]
    assert works.json("dlq", "list") == []


@pytest.mark.rabbitmq
def test_a_plain_program_does_an_external_command(works: Works, client: Client) -> None:
    worker = works.start()
    wait_for_line(worker, "ready")
    client.print_labels()

    works.emit("label.wanted", {"name": "twice"})
    command, payload = client.next("printer")
    assert payload == {"name": "twice"}
    assert (command.type, command.app_id, command.reply_to) == ("label.print", "flowrun/shop", "shop.replies")
    assert command.message_id == command.correlation_id == command.headers["ce-id"]
    assert command.headers["ce-expirytime"] > command.headers["ce-time"]
    client.answer(command, {"label": 1})
    client.answer(command, {"label": 2})
    wait_until(until(works, "labels.patient", ["completed"]), alive=worker)

    works.emit("label.wanted", {"name": "jammed"})
    client.answer(
        client.next("printer")[0], {"type": "paper.jam", "message": "tray 2", "details": {"tray": 2}}, **FAILED
    )
    wait_until(until(works, "labels.patient", ["completed", "failed"]), alive=worker)
    assert stop(worker)[0] == 0

    [printed] = works.run_in("completed", "labels.patient")["steps"]
    assert printed["output"] == {"label": 1}, "the first answer counts"
    jam = {"type": "paper.jam", "message": "tray 2", "retryable": False, "details": {"tray": 2}, "step": "print"}
    assert works.run_in("failed", "labels.patient")["error"] == jam


@pytest.mark.rabbitmq
def test_an_external_program_that_is_silent_or_late_is_not_waited_for_and_its_late_answer_changes_nothing(
    works: Works, client: Client
) -> None:
    worker = works.start()
    wait_for_line(worker, "ready")
    client.print_labels()

    works.emit("label.urgent", {"name": "late"})
    command, _ = client.next("printer")
    wait_until(until(works, "labels.hasty", ["completed"]), alive=worker)
    client.answer(command, {"label": 1})
    kept = "SELECT count(*) FROM commands WHERE answer IS NOT NULL"
    wait_until(lambda: works.query("shop", kept) == [(1,)], alive=worker)
    client.answer(command, "nonsense", **FAILED)
    wait_until(lambda: len(works.query("shop", "SELECT id FROM dead_letters")) == 1, alive=worker)
    properties = pika.BasicProperties(correlation_id="unknown")
    client.channel.basic_publish("", "shop.replies", b"{}", properties)
    wait_until(lambda: len(works.query("shop", "SELECT id FROM dead_letters")) == 2, alive=worker)
    assert stop(worker)[0] == 0

    steps = works.run_in("completed", "labels.hasty")["steps"]
    assert {step["id"]: (step["error"] or {}).get("type") for step in steps}["print"] == "timeout"
    assert works.notes() == ["gave up late"]
    letters = {letter["reason"] for letter in works.json("dlq", "list")}
    assert letters == {"bad_envelope", "unknown_reply"}


FAILED = {"flowrun-status": "failed"}


def until(works: Works, handler: str, states: list[str]) -> Callable[[], bool]:
    """The runs of a handler are in these states."""
    sql = f"SELECT state FROM runs WHERE handler = '{handler}'"
    return lambda: sorted(state for (state,) in works.query("shop", sql)) == states
