"""Whatever a user gives the command `flowrun`, it answers in words and with the right exit code, never a traceback."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 60
FLOW = """\
flow: shop
uses: {env: [SHOP_URL, SHOP_NAME], secrets: [TOKEN]}
events:
  order.placed:
    external: true
    schema: {type: object, required: [how], properties: {how: {type: string}}}
    subject: "order/{{ event.how }}"
routes:
  - {on: order.placed, to: buy}
handlers:
  buy:
    retry: {max_attempts: 1}
    steps:
      - {use: shop.buy, with: {how: "{{ event.how }}"}}
"""
PLUGIN = """\
import sys

from runner import Context, handler

print("a plugin that talks")


@handler("shop.buy")
def buy(ctx: Context, *, how: str):
    match how:
        case "raise":
            ctx.logger.warning("green: \\x1b[32m\\nforged")
            raise ValueError("red: \\x1b[31m\\x07")
        case "exit":
            sys.exit(7)
        case "object":
            return object()
        case "nan":
            return [float("nan")]
        case "circle":
            circle = []
            circle.append(circle)
            return circle
        case "keys":
            return {(1, 2): 3}
        case "large":
            return 2**70
    return how
"""
SET = {"SHOP_URL": "http://shop", "SHOP_NAME": "Shop", "TOKEN": "t0ps3cret"}


class Shop:
    """A project in a folder, and the command in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("flows", "plugins"):
            (root / folder).mkdir(parents=True)
        (root / "flows" / "shop.yaml").write_text(FLOW)
        (root / "plugins" / "shop.py").write_text(PLUGIN)

    def run(
        self, *args: str, code: int, env: dict[str, str] | None = None, stacks: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run `flowrun`, and check what holds of every run."""
        process = self.begin(*args, env=env)
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
        done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
        check(done, code, stacks=stacks)
        return done

    def begin(self, *args: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start `flowrun`."""
        clean = {name: value for name, value in os.environ.items() if name not in ("FLOWRUN_BROKER", "FLOWRUN_STORE")}
        return subprocess.Popen(
            [sys.executable, "-m", "runner", *args],
            cwd=self.root,
            env={**clean, **(SET if env is None else env)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def check(done: subprocess.CompletedProcess[str], code: int, *, stacks: bool = False) -> None:
    """The exit code is this one, and nobody sees our stack, a control character or a secret."""
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert stacks or "Traceback" not in said
    assert all(c.isprintable() or c == "\n" for c in said)
    for word in ("FR999", SET["TOKEN"]):
        assert word not in said


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """One project for the checks that change nothing in it."""
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module", autouse=True)
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A command that waits for a store which another program has locked; it takes its time, so it begins first."""
    shop = Shop(tmp_path_factory.mktemp("locked"))
    store = shop.root / "busy.db"
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("CREATE TABLE taken (x)")
        connection.execute("BEGIN EXCLUSIVE")
        process = shop.begin("start", "--until-idle", "--store", f"sqlite:{store}")
        yield process
        if process.poll() is None:
            process.kill()
            process.communicate()


EMIT = ("emit", "order.placed", "--data")
GOOD = (*EMIT, '{"how": "well"}')
WRONG = [
    # the command line
    (("nope",), 2, "No such command 'nope'"),
    (("validat",), 2, 'did you mean "validate"?'),
    (("start", "--nope"), 2, "No such option '--nope'"),
    (("start", "nope"), 2, 'there is no flow "nope"'),
    (("start", "--grace", "soon"), 2, '"soon" is not a duration'),
    (("validate", "--output-format", "xml"), 2, "'xml' is not one of"),
    (("runs", "list", "--limit", "0"), 2, "--limit"),
    (("emit", "order.placed"), 2, "--data"),
    # files and folders
    (("validate", "nowhere.yaml"), 2, "there is no nowhere.yaml"),
    (("validate", "plugins"), 2, "no flow files found in plugins"),
    (("validate", "/etc/hostname"), 2, "outside the project"),
    (("validate", "-C", "nowhere"), 2, "nowhere is not a folder"),
    (("start", "-C", "flows"), 2, "flowrun init DIR makes one"),
    (("plan", "-C", "flows/shop.yaml"), 2, "is not a folder"),
    (("init", "flows/shop.yaml"), 2, "is a file"),
    (("init", "flows/shop.yaml/project"), 2, "cannot be made"),
    # payloads
    ((*EMIT, '{"how": '), 1, "--data is not JSON"),
    ((*EMIT, "[" * 50_000), 1, "--data is not JSON"),
    ((*EMIT, '{"how": "\\ud800"}'), 1, "--data is not JSON"),
    ((*EMIT, "{}"), 1, '"how" is a required property'),
    ((*EMIT, '{"how": 3}'), 1, "/how: 3 is not of type"),
    ((*EMIT, "@nowhere.json"), 1, "nowhere.json cannot be read"),
    ((*EMIT, "@flows"), 1, "flows cannot be read"),
    (("emit", "order.place", "--data", "{}"), 1, 'did you mean "order.placed"?'),
    # brokers
    ((*GOOD, "--broker", "amqp://guest:guest@127.0.0.1:1/"), 69, "no broker can be reached at 127.0.0.1:1"),
    ((*GOOD, "--broker", "ampq://localhost/"), 2, "is not a broker's URL"),
    ((*GOOD, "--broker", "localhost"), 2, "is not a broker's URL"),
    ((*GOOD, "--broker", "amqp://localhost:abc/"), 2, "the broker's URL cannot be read"),
    ((*GOOD, "--broker", "amqp://localhost:15672/"), 2, "messages go to port 5672"),
    (("start", "--broker", "amqp://u:t0ps3cret@127.0.0.1:1/"), 69, "no broker can be reached"),
    # stores
    (("start", "--store", "sqlite:flows"), 69, "flows"),
    (("start", "--store", "sqlite:flows/shop.yaml"), 69, "is not a SQLite database"),
    (("start", "--store", "sqlite:flows/shop.yaml/x.db"), 69, "cannot be used"),
    (("start", "--store", "sqlite:/proc/nowhere/x.db"), 69, "cannot be used"),
    (("start", "--store", "sqlite:"), 2, "is not a store"),
    (("start", "--store", "mysql://localhost/shop"), 2, "is not a store"),
    (("runs", "list", "--store", "sqlite:nowhere.db"), 1, "there is no store"),
]


@pytest.mark.parametrize(("args", "code", "words"), WRONG, ids=lambda value: None)
def test_a_mistake_is_named(shop: Shop, args: tuple[str, ...], code: int, words: str) -> None:
    done = shop.run(*args, code=code)
    assert words in done.stderr
    assert not done.stdout


def test_no_flow_file_is_too_broken(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    flows = shop.root / "flows"
    (flows / "binary.yaml").write_bytes(bytes(range(256)))
    (flows / "bomb.yaml").write_text(
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
    )
    (flows / "deep.yaml").write_text("[" * 100_000)
    (flows / "deep_maps.yaml").write_text("{a: " * 100_000)
    (flows / "expression.yaml").write_text(
        "flow: e\nhandlers: {go: {steps: [{set: {a: '{{ "
        + "(" * 50_000
        + " }}', b: '{{ "
        + "1+" * 20_000
        + "1 }}'}}]}}\n"
    )
    (flows / "folder.yaml").mkdir()
    (flows / "large.yaml").write_bytes(b"#" * 3_000_000)
    (flows / "number.yaml").write_text(f"flow: {'9' * 50_000}\nversion: 0x{'f' * 50_000}\n")
    os.mkfifo(flows / "pipe.yaml")
    report = json.loads(shop.run("validate", "--output-format", "json", code=1).stdout)
    faulty = {d["range"]["filename"] for d in report["diagnostics"] if d["severity"] == "error"}
    assert faulty == {f"flows/{path.name}" for path in flows.iterdir()} - {"flows/shop.yaml"}


def test_broken_settings_and_plugins_are_named_by_every_command(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    settings = shop.root / "flowrun.yaml"
    settings.write_text("project: shop\nbroker: ${NO_SUCH_BROKER}\nstore: ${NO_SUCH_STORE:?where runs are kept}\n")
    assert "1 file valid." in shop.run("validate", code=0).stdout
    done = shop.run("start", code=2)
    assert "NO_SUCH_BROKER, NO_SUCH_STORE (where runs are kept)" in done.stderr
    settings.write_text("project: [")
    for command in (("start",), GOOD, ("runs", "list")):
        assert "flowrun.yaml:1:11" in shop.run(*command, code=2).stderr
    settings.unlink()
    (shop.root / "plugins" / "broken.py").write_text("import sys\n\nsys.nowhere\n")
    for command in (("start",), GOOD):
        done = shop.run(*command, code=1)
        assert "plugins/broken.py:3:1" in done.stderr


def test_start_lists_every_variable_that_is_missing(shop: Shop) -> None:
    done = shop.run("start", code=2, env={"SHOP_NAME": "Shop"})
    assert "SHOP_URL (shop), TOKEN or TOKEN_FILE (shop)" in done.stderr


def test_what_a_plugin_does_ends_its_run_only(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    ways = ["well", "raise", "exit", "object", "nan", "circle", "keys", "large"]
    (shop.root / "events.jsonl").write_text("".join(json.dumps({"how": how}) + "\n" for how in ways))
    shop.run("emit", "order.placed", "--file", "events.jsonl", code=0)
    # The log has the stack of a plugin's own error: its author needs it.
    shop.run("start", "--until-idle", code=0, env={**SET, "FORCE_COLOR": "1", "NO_COLOR": "1"}, stacks=True)
    runs = json.loads(shop.run("runs", "list", "--json", code=0).stdout)
    ended = {run["trigger"]["subject"].removeprefix("order/"): run for run in runs}
    assert {how: run["state"] for how, run in ended.items()} == {
        how: "completed" if how in ("well", "nan", "large") else "failed" for how in ways
    }
    assert {ended[how]["error"]["type"] for how in ("object", "circle", "keys")} == {"invalid_output"}
    assert {ended[how]["error"]["type"] for how in ("raise", "exit")} == {"internal"}
    shop.run("runs", "show", ended["raise"]["id"], code=0)
    assert 'there is no run "nope"' in shop.run("runs", "show", "nope", code=1).stderr


def test_json_is_one_value_and_nothing_else_on_stdout(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    commands: list[tuple[tuple[str, ...], type]] = [
        (("validate", "--output-format", "json"), dict),
        (("plan", "--json"), dict),
        (("plugins", "list", "--json"), list),
        ((*GOOD, "--json"), dict),
        (("runs", "list", "--json"), list),
    ]
    for command, kind in commands:
        value: Any = json.loads(shop.run(*command, code=0).stdout)
        assert isinstance(value, kind)


def test_a_store_of_a_newer_flowrun_is_refused(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    shop.run(*GOOD, "--store", "sqlite:s.db", code=0)
    shop.run("start", "--until-idle", "--store", "sqlite:s.db", code=0)
    with closing(sqlite3.connect(shop.root / "s.db")) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
        connection.commit()
    for command in (("start",), ("runs", "list")):
        assert "written by a newer flowrun" in shop.run(*command, "--store", "sqlite:s.db", code=69).stderr


def test_init_leaves_what_stands(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    before = (shop.root / "flows" / "shop.yaml").read_text()
    (shop.root / "flowrun.yaml").write_text("project: mine\n")
    assert "flowrun.yaml stands already" in shop.run("init", ".", code=2).stderr
    assert (shop.root / "flowrun.yaml").read_text() == "project: mine\n"
    assert (shop.root / "flows" / "shop.yaml").read_text() == before


def test_a_locked_store_is_named(locked: subprocess.Popen[str]) -> None:
    stdout, stderr = locked.communicate(timeout=TIMEOUT_S)
    check(subprocess.CompletedProcess(locked.args, locked.returncode, stdout, stderr), 69)
    assert "is locked by another program" in stderr
